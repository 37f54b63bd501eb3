"""An update as it came: its size is judged before it is decoded, its form by what was agreed."""

from typing import Any

from flwr.app import RecordDict
from numpy import float32
from numpy.typing import NDArray

from iedn.config import TransferConfig
from iedn.errors import RefusedError
from iedn.protocol.checks import Shapes
from iedn.protocol.encoding import decode
from iedn.protocol.records import check_size, parse_encoded, parse_groups


def decoded_update(
    record: RecordDict, shapes: Shapes, transfer: TransferConfig
) -> dict[str, dict[str, NDArray[float32]]]:
    """The deltas of a reply.

    Args:
        record: the reply.
        shapes: of the groups the site was asked for; quantised payloads are read by them.
        transfer: how updates have to travel in this run.

    Raises:
        ProtocolError: tensors or payloads that do not decode.
        RefusedError: too many bytes, an unknown group, or another encoding than the run's.
    """
    check_size(record, shapes)
    if transfer.up == "fp32":
        if encoded := sorted(parse_encoded(record)):
            text = f"{encoded} came quantised; this run's updates travel in fp32"
            raise RefusedError("wrong-encoding", text)
        return parse_groups(record)
    if plain := sorted(parse_groups(record)):
        text = f"{plain} came as tensors; this run's updates travel in {transfer.up}"
        raise RefusedError("wrong-encoding", text)
    payloads = parse_encoded(record)
    if foreign := sorted(set(payloads) - set(shapes)):
        raise RefusedError("wrong-group", f"groups that were not asked for: {foreign}")
    return {g: decode(payload, shapes[g], transfer.up) for g, payload in payloads.items()}


def masked_update(record: RecordDict, shapes: Shapes) -> dict[str, dict[str, NDArray[Any]]]:
    """The masked integers of a reply; whether they are all that is expected, the gate says.

    Args:
        record: the reply.
        shapes: of the groups the site was asked for.

    Raises:
        ProtocolError: tensors that do not decode.
        RefusedError: too many bytes.
    """
    check_size(record, shapes, item_bytes=8)
    return parse_groups(record)

"""The one place where messages become Flower records and back.

A record dict holds one ``ConfigRecord`` ``message`` (kind and JSON), one ``ArrayRecord`` a group
(key = group name) and, for evaluations, one ``MetricRecord`` ``metrics``. A group's tensors travel
as one array of bytes, a safetensors file: Flower moves every array by requests of its own, and a
network has hundreds of small ones. Whatever arrives is hostile input: it is parsed strictly and
every fault is a ``ProtocolError``.

Flower's views of a record dict (``array_records`` and its like) are not used: they refer back to
it, and a model's worth of memory would stay until Python looks for cycles.
"""

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import ValidationError

from ..errors import ProtocolError
from .messages import PROTOCOL_VERSION, EvaluateReply, FailureReply, ProtocolMessage

Tensors = Mapping[str, NDArray[np.float32]]
Groups = Mapping[str, Tensors]
RingTensors = Mapping[str, NDArray[np.uint64]]
RingGroups = Mapping[str, RingTensors]
M = TypeVar("M", bound=ProtocolMessage)

_MESSAGE, _METRICS, _TENSORS = "message", "metrics", "tensors"
_UNDECODABLE = (
    ValueError,
    TypeError,
    EOFError,
    OSError,
    KeyError,
    safetensors.SafetensorError,
)


def to_record(message: ProtocolMessage, groups: Groups | RingGroups | None = None) -> RecordDict:
    """Encode a message and the tensors that travel with it.

    Args:
        message: any message of ``messages``.
        groups: float32 tensors by group and tensor name; integers where they are masked.
    """
    fields = message.model_dump(mode="json")
    record = RecordDict()
    if isinstance(message, EvaluateReply):
        record[_METRICS] = MetricRecord(dict(fields.pop("metrics")))
    record[_MESSAGE] = ConfigRecord({"kind": message.kind, "json": json.dumps(fields)})
    for group, tensors in (groups or {}).items():
        record[group] = ArrayRecord({_TENSORS: Array(_packed(tensors))})
    return record


def parse(record: RecordDict, expected: type[M]) -> M:
    """Decode the message of a record.

    Raises:
        ProtocolError: ``failure`` (the other side says it failed), ``wrong-protocol``,
            ``wrong-message`` or ``malformed``.
    """
    kind, fields = _envelope(record)
    if kind == FailureReply.kind and expected is not FailureReply:
        failure = _validated(FailureReply, fields)
        raise ProtocolError("failure", f"{failure.code} (incident {failure.incident})")
    if kind != expected.kind:
        raise ProtocolError("wrong-message", f"got {kind!r}, expected {expected.kind!r}")
    if expected is EvaluateReply:
        metrics = record.get(_METRICS)
        fields["metrics"] = dict(metrics) if isinstance(metrics, MetricRecord) else {}
    return _validated(expected, fields)


def parse_groups(record: RecordDict) -> dict[str, dict[str, NDArray[Any]]]:
    """Decode the tensors of a record, by group and tensor name.

    The arrays keep the dtype they came with; whether that is right is the gate's business.

    Raises:
        ProtocolError: ``malformed``: tensors that do not decode.
    """
    return {
        str(group): _unpacked(str(group), arrays)
        for group, arrays in record.items()
        if isinstance(arrays, ArrayRecord)
    }


def _envelope(record: RecordDict) -> tuple[str, dict[str, object]]:
    config = record.get(_MESSAGE)
    if not isinstance(config, ConfigRecord):
        raise ProtocolError("malformed", "the record holds no message")
    try:
        fields = json.loads(str(config["json"]))
    except (KeyError, ValueError, RecursionError) as error:
        raise ProtocolError("malformed", "the message is not JSON") from error
    if not isinstance(fields, dict):
        raise ProtocolError("malformed", "the message is not an object")
    version = fields.get("protocol_version")
    if version != PROTOCOL_VERSION:
        text = f"the other side speaks protocol {version!r}, this side {PROTOCOL_VERSION}"
        raise ProtocolError("wrong-protocol", text)
    return str(config.get("kind", "")), fields


def _validated(model: type[M], fields: dict[str, object]) -> M:
    try:
        return model.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ProtocolError("malformed", f"{model.kind}: {place}: {first['msg']}") from None


def _packed(tensors: Tensors | RingTensors) -> NDArray[np.uint8]:
    contiguous = {name: np.array(value, order="C") for name, value in tensors.items()}
    return np.frombuffer(safetensors.numpy.save(contiguous), dtype=np.uint8)


def _unpacked(group: str, arrays: ArrayRecord) -> dict[str, NDArray[Any]]:
    try:
        if list(arrays) != [_TENSORS]:
            raise ValueError("not one array of tensors")
        return dict(safetensors.numpy.load(_payload(arrays[_TENSORS].data)))
    except _UNDECODABLE as error:
        raise ProtocolError("malformed", f"group {group} does not decode") from error


def _payload(content: bytes) -> bytes:
    """The bytes inside numpy's file format, if they are as many as its header says."""
    stream = BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        msg = f"npy format {version} is not accepted"
        raise ValueError(msg)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != np.uint8 or shape != (len(content) - stream.tell(),):
        msg = "announced and sent bytes differ"
        raise ValueError(msg)
    return content[stream.tell() :]

"""The one place where messages become Flower records and back.

A record dict holds one ``ConfigRecord`` ``message`` (kind and JSON), one ``ArrayRecord`` a group
(key = group name) and, for evaluations, one ``MetricRecord`` ``metrics``. A group travels as one
array of bytes, since Flower moves every array by requests of its own, and a network has hundreds of
small ones: a safetensors file (``tensors``) or a quantised payload of ``encoding`` (``encoded``).
Whatever arrives is hostile input: its size is looked at before anything is decoded, it is parsed
strictly, and every fault is a ``ProtocolError``.

Flower's views of a record dict (``array_records`` and its like) are not used: they refer back to
it, and a model's worth of memory would stay until Python looks for cycles.
"""

import json
import math
from collections.abc import Mapping
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import ValidationError

from ..errors import ProtocolError, RefusedError
from .checks import Shapes
from .messages import PROTOCOL_VERSION, EvaluateReply, FailureReply, ProtocolMessage

Tensors = Mapping[str, NDArray[np.float32]]
Groups = Mapping[str, Tensors]
RingTensors = Mapping[str, NDArray[np.uint64]]
RingGroups = Mapping[str, RingTensors]
Sendable = Mapping[str, Tensors | RingTensors | bytes]
"""Groups as they travel: float32 tensors, integers where they are masked, or quantised payloads."""

M = TypeVar("M", bound=ProtocolMessage)

_MESSAGE, _METRICS, _TENSORS, _ENCODED = "message", "metrics", "tensors", "encoded"
_MAX_MESSAGE = 2**23
"""Characters; a request under secure aggregation names some 500 for each site of the round."""

_GROUP_OVERHEAD, _TENSOR_OVERHEAD = 1024, 512
_UNDECODABLE = (
    ValueError,
    TypeError,
    EOFError,
    OSError,
    KeyError,
    safetensors.SafetensorError,
)


def to_record(message: ProtocolMessage, groups: Sendable | None = None) -> RecordDict:
    """Encode a message and the tensors that travel with it.

    Args:
        message: any message of ``messages``.
        groups: by group, float32 tensors by name (integers where masked), or a quantised payload.
    """
    fields = message.model_dump(mode="json")
    record = RecordDict()
    if isinstance(message, EvaluateReply):
        record[_METRICS] = MetricRecord(dict(fields.pop("metrics")))
    record[_MESSAGE] = ConfigRecord({"kind": message.kind, "json": json.dumps(fields)})
    for group, content in (groups or {}).items():
        if isinstance(content, bytes):
            record[group] = ArrayRecord({_ENCODED: Array(np.frombuffer(content, np.uint8))})
        else:
            record[group] = ArrayRecord({_TENSORS: Array(_packed(content))})
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
    """Decode the tensors of a record, by group and tensor name; quantised groups are passed over.

    The arrays keep the dtype they came with; whether that is right is the gate's business.

    Raises:
        ProtocolError: ``malformed``: tensors that do not decode.
    """
    return {
        group: _unpacked(group, arrays)
        for group, arrays in _array_records(record).items()
        if list(arrays) != [_ENCODED]
    }


def parse_encoded(record: RecordDict) -> dict[str, bytes]:
    """The quantised payloads of a record, by group, still to be decoded.

    Raises:
        ProtocolError: ``malformed``: bytes that are not as many as announced.
    """
    return {
        group: _bytes_of(group, arrays[_ENCODED])
        for group, arrays in _array_records(record).items()
        if list(arrays) == [_ENCODED]
    }


def array_bytes(record: RecordDict) -> int:
    """Bytes of all arrays of a record, as they travel."""
    return sum(
        len(array.data) for arrays in _array_records(record).values() for array in arrays.values()
    )


def check_size(record: RecordDict, expected: Shapes, *, item_bytes: int = 4) -> None:
    """Refuse a record whose arrays are larger than these tensors, before decoding them.

    Args:
        record: what came.
        expected: tensors by group and name.
        item_bytes: of an element: 4 of float32, 8 of masked integers.

    Raises:
        RefusedError: ``wrong-size``.
    """
    limit = sum(
        _GROUP_OVERHEAD
        + sum(item_bytes * math.prod(shape) + _TENSOR_OVERHEAD for shape in tensors.values())
        for tensors in expected.values()
    )
    found = array_bytes(record)
    if found > limit:
        raise RefusedError("wrong-size", f"{found} bytes of tensors, at most {limit} are expected")


def _envelope(record: RecordDict) -> tuple[str, dict[str, object]]:
    config = record.get(_MESSAGE)
    if not isinstance(config, ConfigRecord):
        raise ProtocolError("malformed", "the record holds no message")
    if len(str(config.get("json", ""))) > _MAX_MESSAGE:
        raise ProtocolError("malformed", f"the message is longer than {_MAX_MESSAGE} characters")
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


def _array_records(record: RecordDict) -> dict[str, ArrayRecord]:
    return {str(g): arrays for g, arrays in record.items() if isinstance(arrays, ArrayRecord)}


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


def _bytes_of(group: str, array: Array) -> bytes:
    try:
        return _payload(array.data)
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

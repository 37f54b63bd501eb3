"""A group's quantised tensors as bytes on the wire, and what quantising lost, fed back.

A payload is a header (format, encoding, whether it is compressed, a digest of the tensors' names
and shapes), then the scales and the codes of all tensors in the order of their names, compressed by
Zstandard if that makes them smaller. Names and shapes do not travel: both ends know them, so the
length of the content is known before anything is decompressed, and nothing longer is.

*Error feedback* (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847): what quantising
takes from a tensor is kept and added to the next one, so that the sum over rounds is the truth but
for the last remainder.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from ..errors import RefusedError
from ..quantisation import ENCODINGS, Encoding, dequantise, num_code_bytes, num_scales, quantise

Shape = tuple[int, ...]
Layout = Mapping[str, Shape]
"""Shapes of a group's tensors by name."""

_MAGIC = b"IQ1"
_HEADER = len(_MAGIC) + 2 + 8
_PLAIN, _COMPRESSED = 0, 1
_LEVEL = 3


@dataclass(frozen=True)
class Encoded:
    """A group's tensors as they travel.

    Attributes:
        payload: the bytes.
        decoded: what the other side will read, float32 by name; exact multiples of 2^-30.
        residual: what it will not: asked for, less ``decoded``.
    """

    payload: bytes
    decoded: dict[str, NDArray[np.float32]]
    residual: dict[str, NDArray[np.float64]]


def encode(
    tensors: Mapping[str, NDArray[np.floating]],
    residual: Mapping[str, NDArray[np.floating]],
    encoding: Encoding,
    *,
    entropy_coding: bool,
) -> Encoded:
    """Quantise a group's tensors plus what earlier rounds have left over.

    Args:
        tensors: of one group, by name.
        residual: of the round before, by name; absent ones count as zero.
        encoding: how.
        entropy_coding: whether to compress the codes.

    Raises:
        RefusedError: ``not-finite`` or ``too-large``.
    """
    wanted = {name: _added(values, residual.get(name)) for name, values in tensors.items()}
    layout = {name: values.shape for name, values in wanted.items()}
    parts = [quantise(wanted[name], encoding) for name in sorted(layout)]
    content = b"".join(x.tobytes() for x in [*(s for s, _ in parts), *(c for _, c in parts)])
    decoded = _values(content, layout, encoding)
    lost = {name: np.asarray(wanted[name] - decoded[name], np.float64) for name in layout}
    return Encoded(_framed(content, layout, encoding, entropy_coding), decoded, lost)


def decode(payload: bytes, layout: Layout, encoding: Encoding) -> dict[str, NDArray[np.float32]]:
    """The tensors of a payload from the other side; nothing in it is trusted.

    Raises:
        RefusedError: ``wrong-encoding``, ``wrong-key`` (other tensors or shapes), ``wrong-size``
            (found before decompressing), ``malformed`` or ``wrong-scale``.
    """
    if encoding_of(payload) != encoding:
        text = f"a payload in {encoding_of(payload)}, expected {encoding}"
        raise RefusedError("wrong-encoding", text)
    flag, digest = payload[len(_MAGIC) + 1], payload[len(_MAGIC) + 2 : _HEADER]
    if digest != _digest(layout):
        raise RefusedError("wrong-key", "the payload is of other tensors or shapes")
    size = content_bytes(layout, encoding)
    body = payload[_HEADER:]
    if len(body) > size:
        raise RefusedError("wrong-size", f"{len(body)} bytes came, {size} are expected at most")
    if flag == _COMPRESSED:
        body = _decompressed(body, size)
    elif flag != _PLAIN:
        raise RefusedError("malformed", f"unknown compression {flag}")
    if len(body) != size:
        raise RefusedError("wrong-size", f"{len(body)} bytes came, {size} are expected")
    return _values(body, layout, encoding)


def apply_delta(
    tensors: Mapping[str, NDArray[np.float32]], delta: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Add in float64, round once to float32: the same bits wherever it is done."""
    return {
        name: np.asarray(value.astype(np.float64) + delta[name], dtype=np.float32)
        for name, value in tensors.items()
    }


def encoding_of(payload: bytes) -> Encoding:
    """How a payload says it is encoded.

    Raises:
        RefusedError: ``malformed``: it is no payload.
    """
    if len(payload) < _HEADER or payload[: len(_MAGIC)] != _MAGIC:
        raise RefusedError("malformed", "bytes that are no payload")
    number = payload[len(_MAGIC)]
    if number >= len(ENCODINGS):
        raise RefusedError("wrong-encoding", f"unknown encoding {number}")
    return ENCODINGS[number]


def content_bytes(layout: Layout, encoding: Encoding) -> int:
    """Bytes of a group's scales and codes before entropy coding."""
    sizes = [math.prod(shape) for shape in layout.values()]
    return sum(num_scales(n, encoding) + num_code_bytes(n, encoding) for n in sizes)


def payload_limit(layout: Layout, encoding: Encoding) -> int:
    """Bytes that no honest payload exceeds."""
    return _HEADER + content_bytes(layout, encoding)


def _added(
    values: NDArray[np.floating], residual: NDArray[np.floating] | None
) -> NDArray[np.float64]:
    wanted = values.astype(np.float64)
    return wanted if residual is None else np.asarray(wanted + residual, np.float64)


def _framed(content: bytes, layout: Layout, encoding: Encoding, entropy_coding: bool) -> bytes:
    flag, body = _PLAIN, content
    if entropy_coding:
        compressed = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
        if len(compressed) < len(content):
            flag, body = _COMPRESSED, compressed
    return _MAGIC + bytes([ENCODINGS.index(encoding), flag]) + _digest(layout) + body


def _values(content: bytes, layout: Layout, encoding: Encoding) -> dict[str, NDArray[np.float32]]:
    source = np.frombuffer(content, np.uint8)
    names = sorted(layout)
    sizes = {name: math.prod(layout[name]) for name in names}
    scale, code = 0, sum(num_scales(n, encoding) for n in sizes.values())
    values = {}
    for name in names:
        scales = source[scale : scale + num_scales(sizes[name], encoding)]
        codes = source[code : code + num_code_bytes(sizes[name], encoding)]
        flat = dequantise(scales, codes, sizes[name], encoding)
        values[name] = flat.reshape(layout[name])
        scale, code = scale + scales.size, code + codes.size
    return values


def _decompressed(body: bytes, size: int) -> bytes:
    """The content of exactly one frame that announces exactly ``size`` bytes."""
    try:
        announced = zstandard.get_frame_parameters(body).content_size
        if announced != size:
            text = f"{announced} bytes are announced, {size} are expected"
            raise RefusedError("wrong-size", text)
        decompressor = zstandard.ZstdDecompressor()
        return decompressor.decompress(body, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RefusedError("malformed", "the payload does not decompress") from error


def _digest(layout: Layout) -> bytes:
    text = "\n".join(f"{name} {layout[name]}" for name in sorted(layout))
    return hashlib.sha256(text.encode()).digest()[:8]

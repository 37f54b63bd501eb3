"""Tensors in fewer bits: half precision, or small integers times a power of two.

Every value that decodes is a multiple of 2^-30, so that the coordinator's fixed-point sum holds it
exactly: integer codes because their scales are powers of two >= 2^-30, fp16 because its smallest
step is 2^-24, bf16 because values are first rounded to multiples of 2^-30. Nothing is random.

``int8`` and ``int4`` cut a tensor, flattened, into blocks with a scale each. A block's scale is the
smallest power of two at which nothing is clipped; ``int4`` also tries the two below it and takes
the one with the least squared error, since its seven levels are better spent on the bulk of the
values than on the largest one. What is lost is the caller's to feed back (``protocol.encoding``).
"""

from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import RefusedError

Encoding = Literal["fp16", "bf16", "int8", "int4"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)

MIN_EXPONENT, MAX_EXPONENT = -30, 10
"""Of the scales, as powers of two."""

MAX_ABS = 2.0**10
"""Largest value that can be encoded; the same bound as of a delta."""

BLOCK = {"int8": 8192, "int4": 256}
"""Values that share a scale. Few bits need scales that fit closely; a scale takes one byte."""

_LIMIT = {"int8": 127, "int4": 7}
_SCALES_TRIED = {"int8": 1, "int4": 3}
_ZERO_NIBBLE = 8

Bytes = NDArray[np.uint8]
T = TypeVar("T", bound=np.generic)


def num_scales(size: int, encoding: Encoding) -> int:
    """Scales (one byte each) of a tensor of ``size`` elements."""
    return -(-size // BLOCK[encoding]) if encoding in BLOCK else 0


def num_code_bytes(size: int, encoding: Encoding) -> int:
    """Bytes of the codes of a tensor of ``size`` elements, without its scales."""
    if encoding == "int4":
        return (size + 1) // 2
    return size if encoding == "int8" else 2 * size


def quantise(values: NDArray[np.float64], encoding: Encoding) -> tuple[Bytes, Bytes]:
    """Scales and codes of a tensor, as bytes.

    Args:
        values: any shape; finite and at most 2^10 in absolute value.
        encoding: how.

    Raises:
        RefusedError: ``not-finite`` or ``too-large``.
    """
    flat = np.asarray(values, np.float64).ravel()
    _check_range(flat)
    if encoding == "fp16":
        return _no_scales(), _planes(flat.astype("<f2").view("<u2"))
    if encoding == "bf16":
        return _no_scales(), _planes(_bfloat16(flat))
    exponents, codes = _integers(flat, encoding)
    packed = codes.view(np.uint8) if encoding == "int8" else _nibbles(codes)
    return exponents.view(np.uint8), packed


def dequantise(scales: Bytes, codes: Bytes, size: int, encoding: Encoding) -> NDArray[np.float32]:
    """The values, flat; exact.

    Args:
        scales: ``num_scales(size, encoding)`` bytes.
        codes: ``num_code_bytes(size, encoding)`` bytes.
        size: number of elements.
        encoding: how they were quantised.

    Raises:
        RefusedError: ``wrong-scale``: outside 2^-30 .. 2^10.
    """
    if encoding == "fp16":
        return _words(codes).view("<f2").astype(np.float32)
    if encoding == "bf16":
        return (_words(codes).astype(np.uint32) << np.uint32(16)).view(np.float32)
    exponents = scales.view(np.int8)
    if exponents.size and not MIN_EXPONENT <= exponents.min() <= exponents.max() <= MAX_EXPONENT:
        text = f"scales of 2^{exponents.min()} .. 2^{exponents.max()}"
        raise RefusedError("wrong-scale", f"{text}, allowed 2^{MIN_EXPONENT} .. 2^{MAX_EXPONENT}")
    integers = codes.view(np.int8) if encoding == "int8" else _from_nibbles(codes)[:size]
    blocks = np.ldexp(_blocks(integers.astype(np.float32), encoding), exponents[:, None])
    return np.asarray(blocks.ravel()[:size], np.float32)


def _check_range(flat: NDArray[np.float64]) -> None:
    largest = float(np.abs(flat).max()) if flat.size else 0.0
    if not np.isfinite(largest):
        raise RefusedError("not-finite", "a tensor holds NaN or Inf")
    if largest > MAX_ABS:
        raise RefusedError("too-large", f"a tensor holds a value above {MAX_ABS:g}")


def _integers(
    flat: NDArray[np.float64], encoding: Encoding
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    limit = _LIMIT[encoding]
    blocks = _blocks(flat, encoding)
    largest = _exponent_without_clipping(np.abs(blocks).max(axis=1), limit)
    best, codes = largest, _codes(blocks, largest, limit)
    for lower in range(1, _SCALES_TRIED[encoding]):
        tried = np.maximum(largest - lower, MIN_EXPONENT)
        other = _codes(blocks, tried, limit)
        better = _squared_error(blocks, other, tried) < _squared_error(blocks, codes, best)
        best = np.where(better, tried, best)
        codes = np.where(better[:, None], other, codes)
    return best.astype(np.int8), codes.ravel()[: flat.size].astype(np.int8)


def _exponent_without_clipping(largest: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """The smallest e with largest <= limit * 2^e, within what a scale may be."""
    mantissa, exponent = np.frexp(largest / limit)
    exact = np.where(mantissa == 0.5, exponent - 1, exponent)
    bounded = np.clip(exact, MIN_EXPONENT, MAX_EXPONENT)
    return np.where(largest == 0.0, MIN_EXPONENT, bounded).astype(np.int64)


def _codes(
    blocks: NDArray[np.float64], exponents: NDArray[np.int64], limit: int
) -> NDArray[np.float64]:
    scaled = np.rint(np.ldexp(blocks, -exponents[:, None]))
    return np.clip(scaled, -limit, limit, out=scaled)


def _squared_error(
    blocks: NDArray[np.float64], codes: NDArray[np.float64], exponents: NDArray[np.int64]
) -> NDArray[np.float64]:
    difference = np.ldexp(codes, exponents[:, None]) - blocks
    return np.asarray(np.einsum("ij,ij->i", difference, difference))


def _blocks(flat: NDArray[T], encoding: Encoding) -> NDArray[T]:
    """Rows of a block each, the last one filled up with zeros."""
    length = BLOCK[encoding]
    if 0 < flat.size < length:
        return flat[None]
    padded = np.zeros(num_scales(flat.size, encoding) * length, flat.dtype)
    padded[: flat.size] = flat
    return padded.reshape(-1, length)


def _bfloat16(flat: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Multiples of 2^-30, rounded to eight significant bits, half to even."""
    grid = np.ldexp(np.rint(np.ldexp(flat, -MIN_EXPONENT)), MIN_EXPONENT)
    bits = grid.astype(np.float32).view(np.uint32)
    is_odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + is_odd) >> np.uint32(16)).astype("<u2")


def _planes(words: NDArray[np.uint16]) -> Bytes:
    """All low bytes, then all high bytes: the high ones repeat, which entropy coding uses."""
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, 2).T).ravel()


def _words(planes: Bytes) -> NDArray[np.uint16]:
    return np.ascontiguousarray(planes.reshape(2, -1).T).view("<u2").ravel()


def _nibbles(codes: NDArray[np.int8]) -> Bytes:
    """Two codes a byte, the first in the low half; an odd one is followed by a zero."""
    shifted = np.full(codes.size + codes.size % 2, _ZERO_NIBBLE, np.uint8)
    shifted[: codes.size] = (codes + np.int8(_ZERO_NIBBLE)).view(np.uint8)
    return np.asarray(shifted[0::2] | (shifted[1::2] << np.uint8(4)), np.uint8)


def _from_nibbles(packed: Bytes) -> NDArray[np.int8]:
    codes = np.empty(2 * packed.size, np.int8)
    codes[0::2] = (packed & np.uint8(15)).view(np.int8) - np.int8(_ZERO_NIBBLE)
    codes[1::2] = (packed >> np.uint8(4)).view(np.int8) - np.int8(_ZERO_NIBBLE)
    return codes


def _no_scales() -> Bytes:
    return np.zeros(0, np.uint8)

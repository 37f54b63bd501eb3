"""Exact sums of float32 tensors in int64 fixed point (2^-30), at the speed of memory.

A delta is rounded to a multiple of 2^-30. With |delta| <= 2^10 and a total weight <= 2^20 a sum of
weighted deltas stays within +-2^60: it fits an int64, and read as an unsigned number modulo 2^64 it
can be masked and opened again without loss (see ``masking``).

A block that fits the processor's cache is rounded, weighted and added before the next one is read,
in buffers that are made once a tensor: nothing of a tensor's size is made besides the sum itself.
With numba installed (extra ``compiled``) large tensors are added by a compiled loop, faster, with
the same bits.

Rounding is an addition. Near ``_ROUNDING`` = 1.5 * 2^22 the distance between neighbouring float64
numbers is 2^-30, so ``x + _ROUNDING`` is x rounded to a multiple of 2^-30, half to even, and its
bits are those of ``_ROUNDING`` plus the integer sought, for any |x| <= 2^21. The surplus
``_ROUNDING_BITS`` is not taken off every addend: integer arithmetic is modulo 2^64, so that taking
it off once, times the total weight, gives the same sum.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

FRACTION_BITS = 30
SCALE = float(2**FRACTION_BITS)
MAX_TOTAL_WEIGHT = 2**20
BLOCK = 2**15
"""Elements at a time: 256 KiB of float64, which the second-level cache holds."""
LARGE = 2**17
"""Elements of a tensor from which on a compiled loop is worth the second that compiling takes."""

_ROUNDING = 1.5 * 2.0 ** (52 - FRACTION_BITS)
_ROUNDING_BITS = int(np.float64(_ROUNDING).view(np.int64))


_Loop = Callable[[NDArray[np.int64], NDArray[np.float32], int, float, int], None]


class ExactSum:
    """Running sum of weight * tensor; the order of the additions does not matter.

    Exact as long as |tensor| <= 2^10 and the weights add up to <= 2^20, which is the gate's and
    the sums' business.

    Args:
        shape: of the tensors.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._biased = np.zeros(int(np.prod(shape)), np.int64)
        self._weight = 0

    def add(self, tensor: NDArray[np.float32], weight: int) -> None:
        """Add ``weight * tensor``; the tensor is not kept.

        Raises:
            ValueError: it has another shape; nothing is added.
        """
        if tensor.shape != self._shape:
            msg = f"a tensor of shape {tensor.shape} does not add to one of {self._shape}"
            raise ValueError(msg)
        addend = np.ascontiguousarray(tensor).reshape(-1)
        compiled = _compiled() if addend.size >= LARGE else None
        if compiled is None:
            _add_by_blocks(self._biased, addend, weight)
        else:
            compiled(self._biased, addend, weight, SCALE, _ROUNDING_BITS)
        self._weight += weight

    def total(self) -> NDArray[np.int64]:
        """The sum, in units of 2^-30."""
        return (self._biased - self._surplus()).reshape(self._shape)

    def mean(self, divisor: float) -> NDArray[np.float64]:
        """The sum divided by ``divisor``: converted, scaled and divided in float64."""
        return _quotient(self._biased, self._surplus(), divisor).reshape(self._shape)

    def _surplus(self) -> np.int64:
        """What rounding has left in every element, modulo 2^64."""
        return np.uint64(_ROUNDING_BITS * self._weight % 2**64).astype(np.int64)


def _add_by_blocks(total: NDArray[np.int64], addend: NDArray[np.float32], weight: int) -> None:
    values = np.empty(min(BLOCK, addend.size), np.float64)
    for start in range(0, addend.size, BLOCK):
        block = addend[start : start + BLOCK]
        rounded = values[: block.size]
        np.copyto(rounded, block)
        np.add(rounded, _ROUNDING, out=rounded)
        integers = rounded.view(np.int64)
        np.multiply(integers, weight, out=integers)
        part = total[start : start + BLOCK]
        np.add(part, integers, out=part)


@cache
def _compiled() -> _Loop | None:
    """``compiled.add_weighted``; None without numba."""
    if find_spec("numba") is None:
        return None
    from .compiled import add_weighted

    loop: _Loop = add_weighted
    return loop


def quantise(delta: NDArray[np.float32]) -> NDArray[np.int64]:
    """Fixed point with 30 fractional bits, round half to even; exact for |delta| <= 2^10."""
    addend = ExactSum(delta.shape)
    addend.add(delta, 1)
    return addend.total()


def mean_of(total: NDArray[np.int64], weight: int) -> NDArray[np.float64]:
    """The weighted mean delta behind a sum of weighted, quantised deltas."""
    return _quotient(total.reshape(-1), np.int64(0), float(weight)).reshape(total.shape)


def _quotient(total: NDArray[np.int64], surplus: np.int64, divisor: float) -> NDArray[np.float64]:
    """``(total - surplus)``, in units of 2^-30, divided in float64; flat."""
    quotient = np.empty(total.size, np.float64)
    integers = np.empty(min(BLOCK, total.size), np.int64)
    for start in range(0, total.size, BLOCK):
        block = quotient[start : start + BLOCK]
        part = integers[: block.size]
        np.subtract(total[start : start + BLOCK], surplus, out=part)
        np.copyto(block, part)
        np.multiply(block, 1.0 / SCALE, out=block)
        np.divide(block, divisor, out=block)
    return quotient

"""Deltas as integers, so that sums are exact and masks can cancel to the last bit.

A delta is rounded to a multiple of 2^-30. With |delta| <= 2^10 and a total weight <= 2^20 a sum of
weighted deltas stays within +-2^60: it fits an int64, and read as an unsigned number modulo 2^64 it
can be masked and opened again without loss.
"""

import numpy as np
from numpy.typing import NDArray

FRACTION_BITS = 30
MAX_TOTAL_WEIGHT = 2**20
SCALE = float(2**FRACTION_BITS)


def quantise(delta: NDArray[np.float32]) -> NDArray[np.int64]:
    """Fixed point with 30 fractional bits, round half to even; exact for |delta| <= 2^10."""
    scaled = np.multiply(delta, SCALE, dtype=np.float64)
    return np.rint(scaled, out=scaled).astype(np.int64)


def mean_of(total: NDArray[np.int64], weight: int) -> NDArray[np.float64]:
    """The weighted mean delta behind a sum of weighted, quantised deltas."""
    return total / SCALE / float(weight)

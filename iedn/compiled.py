"""The loop of the exact sum, compiled by numba: memory is passed over once.

Imported only where the extra ``compiled`` is installed. The numbers are those of the blocks of
``fixed_point``, bit for bit.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(nogil=True)
def add_weighted(
    total: NDArray[np.int64], addend: NDArray[np.float32], weight: int, scale: float, bias: int
) -> None:
    """``total += weight * (bias + round(scale * addend))``, half to even, modulo 2^64.

    Args:
        total: (n,), contiguous; changed.
        addend: (n,), contiguous.
        weight: of the addend.
        scale: a power of two.
        bias: added to every rounded number.
    """
    for i in range(addend.size):
        total[i] += (np.int64(np.rint(scale * np.float64(addend[i]))) + bias) * weight

"""Checks of tensors that both ends of the wall make: keys, dtype, shape, finite, bounded."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..errors import RefusedError

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Tensor shapes by group and tensor name."""

MAX_ABS_DELTA = 2.0**10
"""Largest absolute element of a delta; with the weight bound it keeps sums below 2^60."""

_BLOCK = 2**14
"""Elements at a time, so that no copy of a tensor's size is made."""


def shapes_of(groups: Mapping[str, Mapping[str, NDArray[np.float32]]]) -> Shapes:
    """Shapes by group and tensor name."""
    return {g: {n: tuple(x.shape) for n, x in tensors.items()} for g, tensors in groups.items()}


def check_tensors(
    groups: Mapping[str, Mapping[str, NDArray[np.float32]]],
    expected: Shapes,
    *,
    max_abs: float | None = None,
) -> None:
    """Refuse anything but exactly the expected float32 tensors with finite values.

    Args:
        groups: what came.
        expected: exact groups, tensor names and shapes.
        max_abs: largest absolute value of an element, if bounded.

    Raises:
        RefusedError: ``wrong-group``, ``wrong-key``, ``wrong-dtype``, ``wrong-shape``,
            ``not-finite`` or ``too-large``.
    """
    _check_names(groups, expected)
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            _check_layout(name, tensor, np.float32, expected[group][name])
            _check_values(name, tensor, max_abs)


def check_ring_tensors(
    groups: Mapping[str, Mapping[str, NDArray[np.generic]]], expected: Shapes
) -> None:
    """Refuse anything but exactly the expected uint64 tensors; a masked value may be any.

    Args:
        groups: what came.
        expected: exact groups, tensor names and shapes.

    Raises:
        RefusedError: ``wrong-group``, ``wrong-key``, ``wrong-dtype`` or ``wrong-shape``.
    """
    _check_names(groups, expected)
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            _check_layout(name, tensor, np.uint64, expected[group][name])


def update_norm(groups: Mapping[str, Mapping[str, NDArray[np.float32]]]) -> float:
    """Euclidean norm over all tensors, accumulated in float64 in sorted order.

    By einsum, not a product of vectors: BLAS shares a block of this size among all cores, and
    waits for a site that trains on one of them a hundred times as long as the sum takes.
    """
    total = 0.0
    for group in sorted(groups):
        for name in sorted(groups[group]):
            flat = groups[group][name].reshape(-1)
            for start in range(0, flat.size, _BLOCK):
                block = flat[start : start + _BLOCK].astype(np.float64)
                total += float(np.einsum("i,i->", block, block))
    return float(np.sqrt(total))


def _check_names(groups: Mapping[str, Mapping[str, NDArray[np.generic]]], expected: Shapes) -> None:
    if set(groups) != set(expected):
        raise RefusedError("wrong-group", _difference("groups", set(groups), set(expected)))
    for group, tensors in groups.items():
        if set(tensors) != set(expected[group]):
            text = _difference(f"tensors of {group}", set(tensors), set(expected[group]))
            raise RefusedError("wrong-key", text)


def _check_layout(
    name: str, tensor: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]
) -> None:
    if tensor.dtype != dtype:
        text = f"{name} is {tensor.dtype}, expected {np.dtype(dtype)}"
        raise RefusedError("wrong-dtype", text)
    if tuple(tensor.shape) != shape:
        raise RefusedError("wrong-shape", f"{name} is {tuple(tensor.shape)}, expected {shape}")


def _check_values(name: str, tensor: NDArray[np.float32], max_abs: float | None) -> None:
    if tensor.size == 0:
        return
    low, high = float(tensor.min()), float(tensor.max())  # either is NaN if any element is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RefusedError("not-finite", f"{name} holds NaN or Inf")
    if max_abs is not None and max(-low, high) > max_abs:
        raise RefusedError("too-large", f"{name} holds a value above {max_abs:g}")


def _difference(what: str, came: set[str], expected: set[str]) -> str:
    missing, extra = sorted(expected - came)[:3], sorted(came - expected)[:3]
    return f"{what}: missing {missing}, unexpected {extra}"

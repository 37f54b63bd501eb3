"""Convolutions of channels-last volumes by the fastest exact way on a device, with gradients.

All keep the size (odd kernels, zero padding) but for an in-plane stride, and have no bias. On a CPU
three shapes are slow in PyTorch and take a way of their own:

- a kernel of one voxel is a matrix product of voxels and channels;
- a few output channels (the head's two) starve the vector units, and above 256 rows the gradient of
  such weights is slower by another factor of ten: a kernel's slices and columns become output
  channels of a column of a kernel, whose outputs are then shifted and added;
- a batch of one with few voxels would be taken for too small for oneDNN: forward it is asked for by
  name, backward a second sample of zeros is added.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

CHANNELS_LAST = torch.channels_last_3d
FEW_CHANNELS = 2
SLICES_AT_A_TIME = 4
SLOW_BATCH_OF_ONE = 20480
"""Of a batch of one, PyTorch gives oneDNN kernels up to 3 only if C * D * H exceeds this."""


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """(B, C_in, D, H, W) -> (B, C_out, D, H / stride, W / stride).

    Args:
        x: channels last.
        weight: (C_out, C_in, kernel...), of the dtype of ``x``.
        stride: in-plane.
    """
    if is_pointwise(weight):
        return _unrows(F.linear(_rows(x, stride), weight.flatten(1)))
    if is_folded(x, weight, stride):
        return _fold(x, weight)
    ones, steps, padding = (1, 1, 1), (1, stride, stride), padding_of(weight)
    if _has_onednn(x):
        return torch.mkldnn_convolution(x, weight, None, padding, steps, ones, 1)
    return torch.convolution(x, weight, None, steps, padding, ones, False, (0, 0, 0), 1)


def convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, *, need_x: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Gradients of ``x`` (None unless needed) and ``weight``, for a gradient of the output."""
    if is_pointwise(weight):
        return _pointwise_backward(grad, x, weight, stride, need_x=need_x)
    if is_folded(x, weight, stride):
        grad_x = _backward(grad, x, weight, stride, wanted=(True, False))[0] if need_x else None
        return grad_x, _fold_weight_gradient(grad, x, weight)
    grad_x, grad_weight = _backward(grad, x, weight, stride, wanted=(need_x, True))
    return grad_x, grad_weight


def is_pointwise(weight: Tensor) -> bool:
    """Whether the kernel is a single voxel."""
    return weight.shape[2:].numel() == 1


def is_folded(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether the kernel's slices and columns are folded into output channels."""
    few = weight.shape[0] <= FEW_CHANNELS and stride == 1
    return few and x.device.type == "cpu" and not is_pointwise(weight)


def padding_of(weight: Tensor) -> tuple[int, int, int]:
    """Zeros that keep the size."""
    depth, rows, columns = weight.shape[2:]
    return depth // 2, rows // 2, columns // 2


def _has_onednn(x: Tensor) -> bool:
    plain = x.device.type == "cpu" and x.dtype == torch.float32
    return plain and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, *, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    if _is_slow_alone(x, weight, stride):
        none = torch.zeros_like(x)
        grad, x = torch.cat([grad, torch.zeros_like(grad)]), torch.cat([x, none])
        grad_x, grad_weight = _backward(grad, x, weight, stride, wanted=wanted)
        return grad_x[:1] if wanted[0] else grad_x, grad_weight
    steps, padding = (1, stride, stride), padding_of(weight)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, steps, padding, (1, 1, 1), False, (0, 0, 0), 1, [*wanted, False]
    )
    return grad_x, grad_weight


def _is_slow_alone(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether PyTorch takes gradients of this batch of one the slow way on a CPU.

    Ten times slower; a second sample of zeros takes twice the time and changes no number.
    """
    small = x.shape[0] == 1 and x.shape[1:4].numel() <= SLOW_BATCH_OF_ONE
    return small and stride == 1 and max(weight.shape[3:]) <= 3 and _has_onednn(x)


# --- one voxel ---------------------------------------------------------------------------------


def _rows(x: Tensor, stride: int) -> Tensor:
    """(B, C, D, H, W) -> (B, D, H / stride, W / stride, C)."""
    return x[..., ::stride, ::stride].permute(0, 2, 3, 4, 1)


def _unrows(rows: Tensor) -> Tensor:
    return rows.permute(0, 4, 1, 2, 3)


def _pointwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, *, need_x: bool
) -> tuple[Tensor | None, Tensor]:
    rows = _rows(grad, 1).flatten(0, 3)
    grad_weight = (rows.T @ _rows(x, stride).flatten(0, 3)).view(weight.shape)
    if not need_x:
        return None, grad_weight
    within = _unrows((rows @ weight.flatten(1)).view(*_rows(grad, 1).shape[:4], -1))
    if stride == 1:
        return within, grad_weight
    grad_x = torch.zeros_like(x)
    grad_x[..., ::stride, ::stride] = within
    return grad_x, grad_weight


# --- few output channels -----------------------------------------------------------------------


def _fold(x: Tensor, weight: Tensor) -> Tensor:
    """Sum over kernel slices a and columns e of shifted outputs of the kernel's column (a, e)."""
    channels_out, _, taps, _, width = weight.shape
    batch, _, depth, rows, columns = x.shape
    column_weights = _column_weights(weight)
    padding = padding_of(weight)
    total = x.new_zeros(batch, channels_out, depth + taps - 1, rows, columns + width - 1)
    for planes, sample, start in _plane_chunks(x):
        parts = F.conv2d(planes, column_weights, padding=(padding[1], 0))
        parts = parts.view(-1, channels_out, taps, width, rows, columns).transpose(0, 1)
        for a in range(taps):
            first = start + taps - 1 - a
            for e in range(width):
                at = width - 1 - e
                into = total[sample, :, first : first + planes.shape[0], :, at : at + columns]
                into += parts[:, :, a, e]
    return total[:, :, padding[0] : padding[0] + depth, :, padding[2] : padding[2] + columns]


def _fold_weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    channels_out, channels_in, taps, height, width = weight.shape
    columns = x.shape[-1]
    column_weights = _column_weights(weight)
    padding = padding_of(weight)
    padded = F.pad(grad, (padding[2], padding[2], 0, 0, padding[0], padding[0])).contiguous()
    total = torch.zeros_like(column_weights)
    for planes, sample, start in _plane_chunks(x):
        count = planes.shape[0]
        shifted = [
            padded[sample, :, first : first + count, :, at : at + columns]
            for first in range(start + taps - 1, start - 1, -1)
            for at in range(width - 1, -1, -1)
        ]
        parts = torch.stack(shifted, dim=1).flatten(0, 1).transpose(0, 1)
        total += torch.ops.aten.convolution_backward(
            parts.contiguous(memory_format=torch.channels_last),
            planes,
            column_weights,
            None,
            (1, 1),
            (padding[1], 0),
            (1, 1),
            False,
            (0, 0),
            1,
            [False, True, False],
        )[1]
    unfolded = total.view(channels_out, taps, width, channels_in, height)
    return unfolded.permute(0, 3, 1, 4, 2)


def _column_weights(weight: Tensor) -> Tensor:
    """(C_out, C_in, D, H, W) -> (C_out * D * W, C_in, H, 1)."""
    folded = weight.permute(0, 2, 4, 1, 3).flatten(0, 2).unsqueeze(-1)
    return folded.contiguous(memory_format=torch.channels_last)


def _plane_chunks(x: Tensor) -> Iterator[tuple[Tensor, int, int]]:
    """A few slices at a time as images (slices, C, H, W), with sample and first slice."""
    for sample, volume in enumerate(x):
        planes = volume.transpose(0, 1)
        for start in range(0, planes.shape[0], SLICES_AT_A_TIME):
            yield planes[start : start + SLICES_AT_A_TIME], sample, start

"""The residual block and the normalised convolution, each as one step of automatic differentiation.

Of a block's tensors only its input, its output and what the two convolutions gave are kept for the
backward pass. Normalised and activated values and the shortcut are computed again there: they cost
memory traffic or a small matrix product, never a large convolution, and keeping them would double
the memory of training. What the first convolution of a one-channel image gave is computed again
too, and the output where the next block does not keep it as its input anyway. The numbers are those
of PyTorch's own modules, up to float32 rounding.

Under autocast convolutions take its dtype; moments stay float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .convolution import CHANNELS_LAST, convolve, convolve_backward
from .normalisation import Moments, moments, normalise, normalise_backward


@dataclass(frozen=True)
class Setup:
    """What a block's parameters do not tell.

    Attributes:
        stride: in-plane stride of the first convolution and the shortcut.
        channels_per_group: channels that share statistics.
        epsilon: added to variances.
        slope: of the activation below 0.
        keeps_output: keep the block's output for the backward pass. That costs no memory where it
            is the input of another block, which keeps it as well.
    """

    stride: int
    channels_per_group: int
    epsilon: float
    slope: float
    keeps_output: bool = True


@dataclass(frozen=True)
class Branch:
    """A convolution and its normalisation, as the forward pass left them.

    Attributes:
        x: input, (B, C_in, D, H, W).
        y: what the convolution gave.
        moments: of ``y``.
        parameters: weight, gamma and beta.
    """

    x: Tensor
    y: Tensor
    moments: Moments
    parameters: Sequence[Tensor]

    @classmethod
    def run(cls, x: Tensor, parameters: Sequence[Tensor], setup: Setup, stride: int) -> "Branch":
        """Convolve, and take the moments."""
        y = convolve(x, parameters[0].to(x.dtype), stride)
        return cls(x, y, moments(y, setup.channels_per_group, setup.epsilon), parameters)

    def output(self) -> Tensor:
        """The normalised value; computed at every call."""
        return normalise(self.y, self.moments, self.parameters[1], self.parameters[2])

    def backward(
        self, grad: Tensor, setup: Setup, stride: int, *, need_x: bool = True
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Gradients of input, weight, gamma and beta for one of the output."""
        weight, gamma = self.parameters[0], self.parameters[1]
        group = setup.channels_per_group
        grad, of_gamma, of_beta = normalise_backward(grad, self.y, self.moments, gamma, group)
        used = weight.to(self.x.dtype)
        of_x, of_weight = convolve_backward(grad, self.x, used, stride, need_x=need_x)
        return of_x, of_weight.to(weight.dtype), of_gamma, of_beta


class FusedConvNorm(torch.autograd.Function):
    """Convolution, then normalisation: ``apply(x, setup, weight, gamma, beta)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, setup: Setup, *parameters: Tensor) -> Tensor:
        """(B, C_in, D, H, W) -> (B, C_out, D, H / stride, W / stride)."""
        x = _operand(x)
        with torch.autocast(x.device.type, enabled=False):
            branch = Branch.run(x, parameters, setup, setup.stride)
            ctx.setup = setup
            ctx.save_for_backward(x, branch.y, *branch.moments, *parameters)
            return branch.output()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of the input and the parameters."""
        setup: Setup = ctx.setup
        x, y, mean, scale, *parameters = ctx.saved_tensors
        branch = Branch(x, y, Moments(mean, scale), parameters)
        grad = _laid_out(grad)
        of_x, *others = branch.backward(grad, setup, setup.stride, need_x=ctx.needs_input_grad[0])
        return of_x, None, *others


class FusedBlock(torch.autograd.Function):
    """The residual block: ``apply(x, setup, *parameters)``.

    Parameters are weight, gamma and beta of the first and the second convolution and, where the
    block has one, of the shortcut.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, setup: Setup, *parameters: Tensor) -> Tensor:
        """(B, C_in, D, H, W) -> (B, C_out, D, H / stride, W / stride)."""
        x = _operand(x)
        with torch.autocast(x.device.type, enabled=False):
            first = Branch.run(x, parameters[:3], setup, setup.stride)
            second = Branch.run(_activated(first, setup), parameters[3:6], setup, 1)
            out = _block_output(x, second, parameters[6:], setup)
        ctx.setup = setup
        kept_out = out if setup.keeps_output else None
        kept_y = None if _is_cheap(x) else first.y
        ctx.save_for_backward(
            x, kept_out, kept_y, *first.moments, second.y, *second.moments, *parameters
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of the input and the parameters."""
        setup: Setup = ctx.setup
        need_x: bool = ctx.needs_input_grad[0]
        x, out, y_1, mean_1, scale_1, y_2, mean_2, scale_2, *parameters = ctx.saved_tensors
        if y_1 is None:
            y_1 = convolve(x, parameters[0].to(x.dtype), setup.stride)
        first = Branch(x, y_1, Moments(mean_1, scale_1), parameters[:3])
        active = _activated(first, setup)
        second = Branch(active, y_2, Moments(mean_2, scale_2), parameters[3:6])
        if out is None:
            out = _block_output(x, second, parameters[6:], setup)

        grad = _activation_backward(_laid_out(grad), out, setup)
        inner, *of_second = second.backward(grad, setup, 1)
        inner = _activation_backward_(inner, active, setup)
        del active, second
        of_x, *of_first = first.backward(inner, setup, setup.stride, need_x=need_x)
        del inner, first
        if len(parameters) == 6:
            return _add(of_x, grad), None, *of_first, *of_second
        shortcut = Branch.run(x, parameters[6:], setup, setup.stride)
        within, *of_shortcut = shortcut.backward(grad, setup, setup.stride, need_x=need_x)
        return _add(of_x, within), None, *of_first, *of_second, *of_shortcut


def _operand(x: Tensor) -> Tensor:
    """The input in the layout and, under autocast, the dtype of the convolutions."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return x.to(dtype).contiguous(memory_format=CHANNELS_LAST)


def _laid_out(grad: Tensor) -> Tensor:
    return grad.contiguous(memory_format=CHANNELS_LAST)


def _is_cheap(x: Tensor) -> bool:
    """Whether the first convolution is cheap enough to run again: of one channel to C, 1 : C."""
    return x.shape[1] == 1


def _block_output(x: Tensor, second: Branch, shortcut: Sequence[Tensor], setup: Setup) -> Tensor:
    out = second.output()
    out += Branch.run(x, shortcut, setup, setup.stride).output() if shortcut else x
    return F.leaky_relu_(out, setup.slope)


def _activated(branch: Branch, setup: Setup) -> Tensor:
    return F.leaky_relu_(branch.output(), setup.slope)


def _activation_backward(grad: Tensor, out: Tensor, setup: Setup) -> Tensor:
    """Gradient before the activation that gave ``out``, whose sign is that of its argument."""
    result: Tensor = torch.ops.aten.leaky_relu_backward(grad, out, setup.slope, True)
    return result


def _activation_backward_(grad: Tensor | None, out: Tensor, setup: Setup) -> Tensor:
    """The same, in place."""
    if grad is None:
        raise AssertionError("the gradient of the second convolution's input was asked for")
    backward = torch.ops.aten.leaky_relu_backward.grad_input
    result: Tensor = backward(grad, out, setup.slope, True, grad_input=grad)
    return result


def _add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return None if total is None or more is None else total.add_(more)

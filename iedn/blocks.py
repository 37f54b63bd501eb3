"""The one building block of all networks: the residual double convolution.

    y = LReLU(N(conv_2(LReLU(N(conv_1(x))))) + s(x))

with N the normalisation, s(x) = x if the channels stay the same, else N(conv 1x1x1). Kernels are
(3, k, k): the network always looks at three slices and never changes their number; only rows and
columns are strided. Convolutions that feed a normalisation carry no bias (it would have no effect,
but would travel and random-walk under noise). They pad with zeros: reflecting padding inside a
convolution gives wrong per-sample gradients. No statistics are kept, so training and evaluation
compute the same and a sample never depends on the others of its batch.
"""

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .fused import FusedBlock, FusedConvNorm, Setup

SLOPE = 0.01


class Initialised(nn.Module, ABC):
    """A module that wants other initial values than its parts would get."""

    @abstractmethod
    def set_initial_values(self) -> None:
        """Overwrite the parts' initial values, without drawing random numbers."""


class ConvNorm(nn.Module):
    """A (slices, k, k) convolution without bias, then normalisation.

    Args:
        channels_in: C_in.
        channels_out: C_out.
        kernel: (slices, rows, columns), all odd; padded with zeros to keep the size.
        stride: in-plane stride.
        channels_per_group: channels that share statistics over D, H, W; 1 is instance norm.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: tuple[int, int, int],
        stride: int = 1,
        channels_per_group: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            channels_in,
            channels_out,
            kernel_size=kernel,
            stride=(1, stride, stride),
            padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2),
            bias=False,
        )
        self.norm = nn.GroupNorm(channels_out // channels_per_group, channels_out)
        self.fused = True

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight, gamma and beta."""
        return self.conv.weight, self.norm.weight, self.norm.bias

    @property
    def setup(self) -> Setup:
        """What the parameters do not tell."""
        norm = self.norm
        return Setup(
            stride=self.conv.stride[1],
            channels_per_group=norm.num_channels // norm.num_groups,
            epsilon=norm.eps,
            slope=SLOPE,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise (B, C_in, D, H, W)."""
        if self.fused:
            y: Tensor = FusedConvNorm.apply(x, self.setup, *self.parts)  # type: ignore[no-untyped-call]
        else:
            # Group norm is several times slower on the channels-last volume of the convolution.
            y = self.norm(self.conv(x).contiguous())
        return y


class ResidualBlock(Initialised):
    """Two convolutions with a shortcut; (B, C_in, D, H, W) -> (B, C_out, D, H / s, W / s).

    Args:
        channels_in: C_in.
        channels_out: C_out.
        middle: channels between the convolutions; C_out unless told.
        kernel: in-plane kernel size k of both convolutions.
        stride: in-plane stride s of the first convolution.
        channels_per_group: see ``NetworkConfig``.

    Attributes:
        keeps_output: see ``Setup``; set to False where no block takes the output as its input.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        middle: int | None = None,
        kernel: int = 3,
        stride: int = 1,
        channels_per_group: int = 1,
    ) -> None:
        super().__init__()
        middle, size, group = middle or channels_out, (3, kernel, kernel), channels_per_group
        self.first = ConvNorm(
            channels_in, middle, kernel=size, stride=stride, channels_per_group=group
        )
        self.second = ConvNorm(middle, channels_out, kernel=size, channels_per_group=group)
        self.shortcut: nn.Module = nn.Identity()
        self.fused = True
        self.keeps_output = True
        if channels_in != channels_out:
            self.shortcut = ConvNorm(
                channels_in,
                channels_out,
                kernel=(1, 1, 1),
                stride=stride,
                channels_per_group=group,
            )

    def set_initial_values(self) -> None:
        """Start as the identity where the shortcut is one: a deep bank then learns at once."""
        if isinstance(self.shortcut, nn.Identity):
            nn.init.zeros_(self.second.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        if self.fused:
            parts = [*self.first.parts, *self.second.parts]
            if isinstance(self.shortcut, ConvNorm):
                parts += self.shortcut.parts
            setup = replace(self.first.setup, keeps_output=self.keeps_output)
            fused: Tensor = FusedBlock.apply(x, setup, *parts)  # type: ignore[no-untyped-call]
            return fused
        # Not in place: hooks that compute per-sample gradients do not allow it.
        y = self.second(F.leaky_relu(self.first(x), SLOPE))
        return F.leaky_relu(y + self.shortcut(x), SLOPE)


def upsample(x: Tensor) -> Tensor:
    """Double rows and columns, bilinear: (B, C, D, H, W) -> (B, C, D, 2H, 2W).

    Slices are handled like samples: the same numbers as a trilinear (1, 2, 2) upsampling, faster.
    """
    batch, channels, depth, rows, columns = x.shape
    planes = x.transpose(1, 2).reshape(-1, channels, rows, columns)
    planes = F.interpolate(planes, scale_factor=2.0, mode="bilinear", align_corners=False)
    return planes.view(batch, depth, channels, 2 * rows, 2 * columns).transpose(1, 2)


def initialise(module: nn.Module, generator: Generator | None = None) -> None:
    """Draw all weights below ``module`` afresh.

    Children come first, so that a module with ``set_initial_values`` has the last word.

    Args:
        module: the network or a part of it.
        generator: source of the draws; PyTorch's global one if None.
    """
    for child in module.children():
        initialise(child, generator)
    if isinstance(module, nn.Conv3d):
        # Drawn in the plain layout: the values of a seed must not depend on the layout.
        plain = torch.empty(module.weight.shape, device=module.weight.device)
        nn.init.kaiming_uniform_(plain, a=5**0.5, generator=generator)
        with torch.no_grad():
            module.weight.copy_(plain)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.GroupNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Initialised):
        module.set_initial_values()


def prepare(network: nn.Module) -> None:
    """Lay out convolution weights for speed and give all parameters their initial values."""
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    initialise(network)

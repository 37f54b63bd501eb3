"""The one building block of all networks: the residual double convolution.

    y = LReLU(N(conv_b(LReLU(N(conv_a(x))))) + s(x))

with N the normalisation, s(x) = x if the channels stay the same, else N(conv 1x1x1). Kernels are
(3, k, k): the network always looks at three slices and never changes their number; only rows and
columns are strided. Convolutions that feed a normalisation carry no bias (it would have no effect,
but would travel and random-walk under noise). They pad with zeros: reflecting padding inside a
convolution gives wrong per-sample gradients. No statistics are kept, so training and evaluation
compute the same and a sample never depends on the others of its batch.
"""

from torch import Generator, Tensor, nn
from torch.nn import functional as F

SLOPE = 0.01


def normalisation(channels: int, channels_per_group: int) -> nn.GroupNorm:
    """Normalisation over (channels of a group, D, H, W); one channel a group is instance norm."""
    return nn.GroupNorm(channels // channels_per_group, channels)


def convolution(
    channels_in: int, channels_out: int, *, kernel: int = 3, stride: int = 1, bias: bool = False
) -> nn.Conv3d:
    """A (3, k, k) convolution, zero padded, strided (1, stride, stride)."""
    return nn.Conv3d(
        channels_in,
        channels_out,
        kernel_size=(3, kernel, kernel),
        stride=(1, stride, stride),
        padding=(1, kernel // 2, kernel // 2),
        bias=bias,
    )


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut; (B, C_in, D, H, W) -> (B, C_out, D, H / s, W / s).

    Args:
        channels_in: C_in.
        channels_out: C_out.
        middle: channels between the convolutions; C_out unless told.
        kernel: in-plane kernel size k of both convolutions.
        stride: in-plane stride s of the first convolution.
        channels_per_group: see ``NetworkConfig``.
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
        middle = middle or channels_out
        self.conv_a = convolution(channels_in, middle, kernel=kernel, stride=stride)
        self.norm_a = normalisation(middle, channels_per_group)
        self.conv_b = convolution(middle, channels_out, kernel=kernel)
        self.norm_b = normalisation(channels_out, channels_per_group)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv3d(channels_in, channels_out, 1, stride=(1, stride, stride), bias=False),
                normalisation(channels_out, channels_per_group),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        # Not in place: hooks that compute per-sample gradients do not allow it.
        y = F.leaky_relu(self.norm_a(self.conv_a(x)), SLOPE)
        y = self.norm_b(self.conv_b(y)) + self.shortcut(x)
        return F.leaky_relu(y, SLOPE)


def upsample(x: Tensor) -> Tensor:
    """Double rows and columns, bilinear: (B, C, D, H, W) -> (B, C, D, 2H, 2W).

    Slices are folded into channels: the same numbers as a trilinear (1, 2, 2) upsampling, faster.
    """
    batch, channels, depth, rows, columns = x.shape
    planes = F.interpolate(x.flatten(1, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
    return planes.view(batch, channels, depth, 2 * rows, 2 * columns)


def initialise(module: nn.Module, generator: Generator | None = None) -> None:
    """Draw all weights below ``module`` afresh.

    Args:
        module: children first, so that a module with its own ``set_initial_values`` has the last word.
        generator: source of the draws; PyTorch's global one if None.
    """
    for child in module.children():
        initialise(child, generator)
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.GroupNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Initialised):
        module.set_initial_values()


class Initialised(nn.Module):
    """A module that wants other initial values than its parts would get."""

    def set_initial_values(self) -> None:
        """Overwrite the parts' initial values, without drawing random numbers."""
        raise NotImplementedError

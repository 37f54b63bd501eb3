"""The one decoder: fused features -> CBV map and brain mask.

The coarsest feature enters twice, raw and refined:

    u = F_L
    for l = L .. 1:  u = up(Block_l(cat[u, bank_l(F_l)]))
    out = head(cat[u, bank_0(F_0)])
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import ConvNorm, Initialised, ResidualBlock, upsample
from .config import NetworkConfig
from .encoder import level_channels

CBV_SHARPNESS = 20.0
INITIAL_SCALE = (0.15, 2.0)
INITIAL_SHIFT = (0.25, 0.0)


class IednOutput(NamedTuple):
    """What a network gives.

    Attributes:
        cbv: (B, 1, D, H, W), >= 0, on the scale where the brain mean is 0.25.
        brain_mask: (B, 1, D, H, W), probability of brain in [0, 1].
    """

    cbv: Tensor
    brain_mask: Tensor


def as_output(channels: Tensor) -> IednOutput:
    """Turn the head's two channels (B, 2, D, H, W) into an output.

    CBV goes through a softplus, not a ReLU: where all voxels of a ReLU are negative its gradient is
    zero everywhere and the map stays 0 for ever. The sharpness keeps the two within 0.035.
    """
    channels = channels.float()
    return IednOutput(
        cbv=F.softplus(channels[:, :1], beta=CBV_SHARPNESS),
        brain_mask=torch.sigmoid(channels[:, 1:]),
    )


class Head(Initialised):
    """A (3, 5, 5) convolution to CBV and mask, each normalised by itself.

    The normalisation carries the load: without it CBV collapses to 0 in training. It starts where
    the targets are, at a mean of 0.25, instead of spending the first rounds on getting there.
    """

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.output = ConvNorm(channels_in, 2, kernel=(3, 5, 5))

    def set_initial_values(self) -> None:
        """Start at the scale of the targets."""
        with torch.no_grad():
            self.output.norm.weight.copy_(torch.tensor(INITIAL_SCALE))
            self.output.norm.bias.copy_(torch.tensor(INITIAL_SHIFT))

    def forward(self, x: Tensor) -> IednOutput:
        """CBV and mask of features (B, C, D, H, W)."""
        return as_output(self.output(x))


class Decoder(nn.Module):
    """Refinement bank, up blocks and head."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = level_channels(config)
        self.bank = nn.ModuleList(refinement(width, config) for width in widths)
        self.up = up_blocks(config)
        self.head = Head(2 * widths[0])

    def forward(self, fused: Sequence[Tensor]) -> IednOutput:
        """CBV and mask of the fused features, finest scale first."""
        refined = [bank(f) for bank, f in zip(self.bank, fused, strict=True)]
        output: IednOutput = self.head(ascend(self.up, fused[-1], refined))
        return output


def refinement(width: int, config: NetworkConfig, *, kernel: int = 3) -> nn.Sequential:
    """``config.refine_blocks`` residual blocks that keep the shape."""
    return nn.Sequential(
        *(
            ResidualBlock(width, width, kernel=kernel, channels_per_group=config.channels_per_group)
            for _ in range(config.refine_blocks)
        )
    )


def up_blocks(config: NetworkConfig) -> nn.ModuleList:
    """Blocks for levels ``depth`` to 1: 2C channels in, C in the middle, C / 2 out."""
    widths = level_channels(config)
    return nn.ModuleList(
        ResidualBlock(2 * wide, narrow, middle=wide, channels_per_group=config.channels_per_group)
        for narrow, wide in zip(widths[-2::-1], widths[:0:-1], strict=True)
    )


def ascend(blocks: nn.ModuleList, coarsest: Tensor, skips: Sequence[Tensor]) -> Tensor:
    """From the coarsest feature up to full resolution, joining a skip at every level.

    Args:
        blocks: ``up_blocks``.
        coarsest: (B, C_L, D, H / 2 ** L, W / 2 ** L).
        skips: one feature a level, finest first.

    Returns:
        (B, 2 * C_0, D, H, W).
    """
    x = coarsest
    for block, skip in zip(blocks, reversed(skips), strict=False):
        x = upsample(block(torch.cat([x, skip], dim=1)))
    return torch.cat([x, skips[0]], dim=1)

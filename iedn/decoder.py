"""The one decoder: fused features -> CBV map and brain mask.

The coarsest feature enters twice, raw and refined:

    u = F_L
    for l = L .. 1:  u = up(Block_l(cat[u, bank_l(F_l)]))
    out = head(cat[u, bank_0(F_0)])
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .blocks import ConvNorm, Initialised, ResidualBlock, upsample
from .config import NetworkConfig
from .encoder import level_channels

CORNER = 0.001
INITIAL_SCALE = (0.2, 4.0)
INITIAL_SHIFT = (0.1, 0.0)
"""Of CBV and mask logit: the targets' standard deviation and mean over a box around a brain.

Adam moves a scale by about the learning rate a step, whatever its gradient: from 1 it would need
hundreds of steps to get where it belongs, and the map stays near its mean meanwhile.
"""


class IednOutput(NamedTuple):
    """What a network gives.

    Attributes:
        cbv: (B, 1, D, H, W), >= 0, on the scale where the brain mean is 0.25.
        brain_mask: (B, 1, D, H, W), probability of brain in [0, 1].
    """

    cbv: Tensor
    brain_mask: Tensor


def as_output(channels: Tensor) -> IednOutput:
    """Turn the head's two channels (B, 2, D, H, W) into an output."""
    channels = channels.to(torch.promote_types(channels.dtype, torch.float32))
    return IednOutput(cbv=positive(channels[:, :1]), brain_mask=torch.sigmoid(channels[:, 1:]))


def positive(x: Tensor) -> Tensor:
    """(x + sqrt(x^2 + 0.001)) / 2: a ReLU with a rounded corner, 0.016 at 0.

    Where all voxels of a ReLU are negative its gradient is zero and the map stays 0 for ever. This
    gradient falls off with 1 / x^2 only (a softplus' exponentially), so that Adam, which does not
    care for the size of a gradient, brings any map back.
    """
    return (x + (x * x + CORNER).sqrt()) / 2


class Head(Initialised):
    """A (3, 5, 5) convolution to CBV and mask, each normalised by itself.

    The normalisation carries the load: without it CBV collapses to 0 in training. Its scale and
    shift start where the targets are, so that only the contrast is left to learn.
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
        levels = zip(reversed(self.bank), reversed(fused), strict=True)
        refined = (bank(f) for bank, f in levels)  # one at a time: less memory in inference
        output: IednOutput = self.head(ascend(self.up, fused[-1], refined))
        return output


def refinement(width: int, config: NetworkConfig, *, kernel: int = 3) -> nn.Sequential:
    """``config.refine_blocks`` residual blocks that keep the shape."""
    blocks = [
        ResidualBlock(width, width, kernel=kernel, channels_per_group=config.channels_per_group)
        for _ in range(config.refine_blocks)
    ]
    if blocks:
        blocks[-1].keeps_output = False
    return nn.Sequential(*blocks)


def up_blocks(config: NetworkConfig) -> nn.ModuleList:
    """Blocks for levels ``depth`` to 1: 2C channels in, C in the middle, C / 2 out."""
    widths = level_channels(config)
    blocks = [
        ResidualBlock(2 * wide, narrow, middle=wide, channels_per_group=config.channels_per_group)
        for narrow, wide in zip(widths[-2::-1], widths[:0:-1], strict=True)
    ]
    for block in blocks:
        block.keeps_output = False
    return nn.ModuleList(blocks)


def ascend(blocks: nn.ModuleList, coarsest: Tensor, skips: Iterator[Tensor]) -> Tensor:
    """From the coarsest feature up to full resolution, joining a skip at every level.

    Args:
        blocks: ``up_blocks``.
        coarsest: (B, C_L, D, H / 2 ** L, W / 2 ** L).
        skips: one feature a level, coarsest first.

    Returns:
        (B, 2 * C_0, D, H, W).
    """
    x = coarsest
    for block in blocks:
        x = upsample(block(torch.cat([x, next(skips)], dim=1)))
    return torch.cat([x, next(skips)], dim=1)

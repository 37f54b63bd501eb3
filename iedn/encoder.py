"""The encoder of one modality: an image -> features at depth + 1 scales."""

from itertools import pairwise

from torch import Tensor, nn

from .blocks import ResidualBlock
from .config import NetworkConfig


class Encoder(nn.Module):
    """A stem at full resolution, then ``depth`` blocks that halve rows and columns.

    Level l has ``base_channels * 2 ** l`` channels at (D, H / 2 ** l, W / 2 ** l).

    Args:
        config: sizes.
        channels_in: channels of the image.
        stem_kernel: in-plane kernel size of the stem.
    """

    def __init__(
        self, config: NetworkConfig, *, channels_in: int = 1, stem_kernel: int = 5
    ) -> None:
        super().__init__()
        group = config.channels_per_group
        widths = level_channels(config)
        self.stem = ResidualBlock(
            channels_in, widths[0], kernel=stem_kernel, channels_per_group=group
        )
        self.down = nn.ModuleList(
            ResidualBlock(narrow, wide, stride=2, channels_per_group=group)
            for narrow, wide in pairwise(widths)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of ``image`` (B, C, D, H, W), finest scale first."""
        features = [self.stem(image)]
        for block in self.down:
            features.append(block(features[-1]))
        return features


def level_channels(config: NetworkConfig) -> list[int]:
    """Channels at level 0 (full resolution) to level ``depth``."""
    return [config.base_channels * 2**level for level in range(config.depth + 1)]

"""The baseline "3D encoder-decoder": modalities are input channels, one model a combination.

Same blocks as the IEDN, but a single encoder with a 3x3 stem, skips that are not refined, a
refinement of the coarsest feature along slices only, and an output without normalisation. A
missing modality cannot be handled; it is an error.
"""

import torch
from torch import nn

from .blocks import Initialised, ResidualBlock, prepare
from .config import NetworkConfig
from .decoder import IednOutput, as_output, ascend, refinement, up_blocks
from .encoder import Encoder, level_channels
from .fusion import Images, Weights, check_images, shares
from .sample import BRAIN_MEAN


class EncoderDecoder(nn.Module):
    """Synthesises a CBV map from exactly the configured modalities.

    Args:
        config: size and shape; ``modalities`` are the input channels.
    """

    accepts_missing = False

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        base = level_channels(config)[0]
        self.encoder = Encoder(config, channels_in=len(config.modalities), stem_kernel=3)
        self.bank = refinement(level_channels(config)[-1], config, kernel=1)
        self.up = up_blocks(config)
        self.end = ResidualBlock(2 * base, base, channels_per_group=config.channels_per_group)
        self.head = PlainHead(base)
        prepare(self)

    def forward(self, images: Images, weights: Weights | None = None) -> IednOutput:
        """CBV map and brain mask; arguments as of ``Iedn``.

        Raises:
            ValueError: shapes do not fit, or a configured modality is missing in any sample.
        """
        check_images(images, self.config)
        self._check_complete(images, weights)
        features = self.encoder(torch.cat([images[m] for m in self.config.modalities], dim=1))
        skips = iter([self.bank(features[-1]), *features[-2::-1]])
        output: IednOutput = self.head(self.end(ascend(self.up, features[-1], skips)))
        return output

    def _check_complete(self, images: Images, weights: Weights | None) -> None:
        present = shares(images, weights)
        for modality in self.config.modalities:
            share = present.get(modality)
            if share is None or not bool((share > 0).all()):
                raise ValueError(
                    f"the baseline needs {modality} in every sample; "
                    f"its modalities are {', '.join(self.config.modalities)}"
                )


class PlainHead(Initialised):
    """A convolution to CBV and mask without normalisation."""

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, 2, kernel_size=(1, 3, 3), padding=(0, 1, 1))

    def set_initial_values(self) -> None:
        """Start with CBV near the brain mean; nothing later brings it there."""
        if self.conv.bias is None:
            raise AssertionError("the plain head has a bias")
        with torch.no_grad():
            self.conv.weight[0].mul_(BRAIN_MEAN)
            self.conv.bias.copy_(torch.tensor([BRAIN_MEAN, 0.0]))

    def forward(self, x: torch.Tensor) -> IednOutput:
        """CBV and mask of features (B, C, D, H, W)."""
        return as_output(self.conv(x))

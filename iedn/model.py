"""The IEDN: one encoder a modality, features fused at every scale, one decoder.

Parameter names are part of the protocol: ``encoders.<MODALITY>.…`` belongs to that modality's
group, everything else is shared (``iedn.parameters``).
"""

import hashlib

import torch
from torch import Tensor, nn

from .baseline import EncoderDecoder
from .blocks import ConvNorm, ResidualBlock, initialise, prepare
from .config import NetworkConfig, Recompute
from .decoder import Decoder, IednOutput
from .encoder import Encoder
from .fusion import Images, Weights, check_images, fuse

__all__ = ["EncoderDecoder", "Iedn", "IednOutput", "Network", "build_network", "set_recompute"]


class Iedn(nn.Module):
    """Synthesises a CBV map from any non-empty subset of the configured modalities.

    Args:
        config: size and shape of the network.
    """

    accepts_missing = True

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict({m.value: Encoder(config) for m in config.modalities})
        self.decoder = Decoder(config)
        self.refiner = Encoder(config) if config.self_refine else None
        self.run_encoders_again = False
        prepare(self)

    def forward(self, images: Images, weights: Weights | None = None) -> IednOutput:
        """CBV map and brain mask.

        Args:
            images: (B, 1, D, H, W) a present modality, brain mean 0.25.
            weights: a_m >= 0, (B,), for each image; 0 means absent in that sample. 1 if None.

        Raises:
            ValueError: shapes, modalities or weights do not fit, or a sample has no modality.
        """
        check_images(images, self.config)
        fused = fuse(self.encoders, images, weights, run_again=self.run_encoders_again)
        output: IednOutput = self.decoder(fused)
        if self.refiner is None:
            return output
        return self._second_pass(fused, output.cbv, images, weights)

    def _second_pass(
        self, fused: list[Tensor], cbv: Tensor, images: Images, weights: Weights | None
    ) -> IednOutput:
        """Let the first CBV map join the mean with a = 1, and decode again."""
        if self.refiner is None:
            raise AssertionError("a second pass needs the refiner")
        total = total_weight(images, weights).view(-1, 1, 1, 1, 1)
        features = self.refiner(cbv)
        joined = [
            (total.to(f.dtype) * f + g) / (total.to(f.dtype) + 1)
            for f, g in zip(fused, features, strict=True)
        ]
        output: IednOutput = self.decoder(joined)
        return output


def total_weight(images: Images, weights: Weights | None) -> Tensor:
    """sum_m a_m of every sample, (B,)."""
    reference = next(iter(images.values()))
    if weights is None:
        return torch.full((reference.shape[0],), float(len(images)), device=reference.device)
    return torch.stack([a.to(reference.device) for a in weights.values()]).sum(dim=0)


Network = Iedn | EncoderDecoder


def empty_network(config: NetworkConfig) -> Network:
    """The network of ``config`` with whatever the memory holds: every weight is still to be set."""
    with torch.device("meta"):
        network = Iedn(config) if config.architecture == "iedn" else EncoderDecoder(config)
    return network.to_empty(device="cpu")


def build_network(config: NetworkConfig, seed: int) -> Network:
    """The network of ``config`` with initial weights that depend on ``seed`` alone.

    Every group of parameters has a seed of its own: the encoder of a modality starts equal whatever
    other modalities are configured. PyTorch's global random state is neither read nor changed.
    """
    network = empty_network(config)
    for name, part in _separately_seeded(network).items():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        initialise(part, generator)
    return network


def set_recompute(network: Network, recompute: Recompute) -> None:
    """Choose what training keeps and what it computes again in the backward pass.

    ``nothing``: PyTorch's own modules, as hooks on them need it; everything is kept.
    ``norms``: fused blocks (``iedn.fused``); less memory and time.
    ``encoders``: of an encoder nothing is kept, it is run again; least memory.
    """
    for module in network.modules():
        if isinstance(module, ConvNorm | ResidualBlock):
            module.fused = recompute != "nothing"
    if isinstance(network, Iedn):
        network.run_encoders_again = recompute == "encoders"


def _separately_seeded(network: Network) -> dict[str, nn.Module]:
    if isinstance(network, EncoderDecoder):
        return {"encoder-decoder": network}
    parts: dict[str, nn.Module] = {f"encoder.{m}": e for m, e in network.encoders.items()}
    parts["decoder"] = network.decoder
    if network.refiner is not None:
        parts["refiner"] = network.refiner
    return parts

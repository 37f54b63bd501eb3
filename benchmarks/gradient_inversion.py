"""Rebuilding a patient's images from an update: how far it gets, with and without noise.

The strongest case for an attacker: an update of one step on one scan, the network known, and the
measured CBV and the brain mask known too. Images are sought whose gradient points where the
update does, smooth ones first (Geiping et al. 2020, arXiv:2003.14053). With privacy the same
update is clipped and gets its noise. The correlation is that of true and rebuilt image inside the
brain, a phantom's. Prints one JSON object.

    python benchmarks/gradient_inversion.py --out runs/inversion --steps 120
"""

import argparse
import json
from pathlib import Path

import torch
from phantom_hospital import hospital
from torch import Tensor

from iedn.batching import restrict
from iedn.config import PRESETS
from iedn.losses import paper_loss
from iedn.modalities import Modality
from iedn.model import Network, build_network, set_recompute
from iedn.sample import IednBatch, IednSample, collate

MODALITIES = (Modality.T1WI, Modality.ASL)
CLIP = 1.0
SMOOTHNESS = 0.1
"""Weight of the total variation beside 1 - cosine; tried: 0 and 0.1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/inversion"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.01, 0.1, 0.5])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(report(arguments.out, arguments.noise, arguments.steps), indent=1))


def report(out: Path, noises: list[float], steps: int) -> dict[str, object]:
    scan = hospital(out, patients=3, train=1.0, seed=9).train[0]
    return {
        "label": "phantom results",
        "parameters": sum(p.numel() for p in _network().parameters()),
        "steps": steps,
        "correlation_by_noise_multiplier": {
            f"{noise:g}": rebuilt(scan, noise, steps, clip=CLIP) for noise in noises
        },
    }


def rebuilt(scan: IednSample, noise: float, steps: int, *, clip: float) -> dict[Modality, float]:
    """Correlation of each rebuilt image with the true one; noise 0 is an exact update."""
    model = _network()
    batch = collate([restrict(scan, MODALITIES)], model.config.multiple)
    seen = _update(model, batch, noise, clip)
    generator = torch.Generator().manual_seed(4)
    images = {
        m: (0.25 * batch.brain_mask + 0.02 * torch.randn(x.shape, generator=generator))
        .clone()
        .requires_grad_()
        for m, x in batch.images.items()
    }
    adam = torch.optim.Adam(images.values(), lr=0.02)
    for _ in range(steps):
        adam.zero_grad()
        made = _gradient(model, images, batch, differentiable=True)
        distance = 1 - torch.nn.functional.cosine_similarity(made, seen, dim=0)
        roughness = torch.stack([_total_variation(image) for image in images.values()]).sum()
        (distance + SMOOTHNESS * roughness).backward()
        adam.step()
    inside = batch.brain_mask > 0
    return {
        m: round(_correlation(image.detach()[inside], batch.images[m][inside]), 3)
        for m, image in images.items()
    }


def _network() -> Network:
    network = PRESETS["tiny"].network.model_copy(update={"modalities": MODALITIES})
    model = build_network(network, seed=2)
    set_recompute(model, "nothing")  # plain modules can be differentiated twice
    return model


def _update(model: Network, batch: IednBatch, noise: float, clip: float) -> Tensor:
    """The patient's gradient; with noise, clipped and noisy as training sends it."""
    exact = _gradient(model, batch.images, batch, differentiable=False)
    if noise == 0:
        return exact
    clipped = exact * min(1.0, clip / float(exact.norm()))
    generator = torch.Generator().manual_seed(5)
    return clipped + noise * clip * torch.randn(exact.shape, generator=generator)


def _gradient(
    model: Network, images: dict[Modality, Tensor], batch: IednBatch, *, differentiable: bool
) -> Tensor:
    """Of all parameters, in a row."""
    loss = paper_loss(model(images, batch.weights), batch.cbv, batch.brain_mask).total
    parts = torch.autograd.grad(loss, list(model.parameters()), create_graph=differentiable)
    return torch.cat([part.flatten() for part in parts])


def _total_variation(image: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, summed over the axes of (B, 1, D, H, W)."""
    return torch.stack([image.diff(dim=axis).abs().mean() for axis in (2, 3, 4)]).sum()


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


if __name__ == "__main__":
    main()

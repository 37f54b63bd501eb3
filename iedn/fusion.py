"""Checks on what a network is given, and the weighted mean over modalities at every scale.

    F_l = sum_m a_m f_{m,l} / sum_m a_m

An encoder whose a_m is 0 for the whole batch is not called: no compute, no gradient, and an
optimiser skips its parameters. The sum is kept running, so that memory at inference does not grow
with the number of modalities.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import NetworkConfig
from .modalities import Modality, in_order

Images = Mapping[Modality, Tensor]
Weights = Mapping[Modality, Tensor]


def check_images(images: Images, config: NetworkConfig) -> None:
    """Raise ``ValueError`` unless ``images`` fit a network of ``config``.

    All must be (B, 1, D, H, W) of one shape, with D >= 2 and H, W multiples of 2 ** depth, at least
    twice it, so that the normalisation has more than one voxel at the coarsest scale.
    """
    if not images:
        raise ValueError("no image given; at least one modality is needed")
    unknown = [str(m) for m in images if m not in config.modalities]
    if unknown:
        allowed = ", ".join(config.modalities)
        raise ValueError(f"the network has no encoder for {', '.join(unknown)}; it has {allowed}")
    shapes = {str(m): tuple(image.shape) for m, image in images.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"images must have one shape, got {shapes}")
    _check_shape(next(iter(shapes.values())), config.multiple)


def _check_shape(shape: tuple[int, ...], multiple: int) -> None:
    allowed = (
        f"allowed is (B, 1, D, H, W) with D >= 2 and H, W multiples of {multiple}, "
        f"at least {2 * multiple}"
    )
    fits = (
        len(shape) == 5
        and shape[0] >= 1
        and shape[1] == 1
        and shape[2] >= 2
        and all(size % multiple == 0 and size >= 2 * multiple for size in shape[3:])
    )
    if not fits:
        raise ValueError(f"image of shape {shape}; {allowed}")


def shares(images: Images, weights: Weights | None) -> dict[Modality, Tensor]:
    """a_m / sum_m a_m of every modality that any sample uses, in the enum's order.

    Args:
        images: (B, 1, D, H, W) a modality.
        weights: a_m >= 0, of shape (B,), a modality; 1 for each image if None.

    Returns:
        Shares of shape (B,) that sum to 1 for every sample.

    Raises:
        ValueError: a weight is negative, not finite, of the wrong shape, without an image or
            missing, or a sample has no modality left.
    """
    given = _as_given(images, weights)
    table = torch.stack([a.detach() for a in given.values()]).tolist()  # one transfer from a GPU
    rows: dict[Modality, list[float]] = dict(zip(given, table, strict=True))
    for modality, values in rows.items():
        for sample, value in enumerate(values):
            if not math.isfinite(value) or value < 0:
                raise ValueError(
                    f"weight of {modality} for sample {sample} is {value}; "
                    "allowed are finite numbers >= 0"
                )
    for sample, column in enumerate(zip(*rows.values(), strict=True)):
        if not any(column):
            raise ValueError(f"sample {sample} has no modality with a weight above 0")
    used = {m: given[m] for m in in_order(given) if any(rows[m])}
    total = torch.stack(list(used.values())).sum(dim=0)
    return {m: a / total for m, a in used.items()}


def _as_given(images: Images, weights: Weights | None) -> dict[Modality, Tensor]:
    reference = next(iter(images.values()))
    size = reference.shape[0]
    if weights is None:
        return {m: torch.ones(size, device=reference.device) for m in images}
    used = {m for m, a in weights.items() if m in images or bool((a != 0).any())}
    if used != set(images):
        raise ValueError(
            f"weights are given for {sorted(used)}, images for {sorted(images)}; every image "
            "needs a weight, and a weight without an image must be 0"
        )
    for modality in images:
        weight = weights[modality]
        if tuple(weight.shape) != (size,):
            raise ValueError(
                f"weight of {modality} has shape {tuple(weight.shape)}; allowed is ({size},)"
            )
    return {m: weights[m].to(reference.device) for m in images}


def add_share(total: list[Tensor] | None, features: list[Tensor], share: Tensor) -> list[Tensor]:
    """Add ``share`` (B,) times one modality's features to the running sum, in place."""
    scaled = [share.to(f.dtype).view(-1, 1, 1, 1, 1) for f in features]
    if total is None:
        return [a * f for a, f in zip(scaled, features, strict=True)]
    return [t.addcmul_(a, f) for t, a, f in zip(total, scaled, features, strict=True)]


def fuse(
    encoders: nn.ModuleDict, images: Images, weights: Weights | None, *, run_again: bool = False
) -> list[Tensor]:
    """Weighted mean of the encoders' features, finest scale first.

    Args:
        encoders: by name of the modality.
        images: (B, 1, D, H, W) a modality.
        weights: see ``shares``.
        run_again: keep nothing of an encoder for the backward pass, which runs it again.
    """
    fused: list[Tensor] | None = None
    parts = shares(images, weights)
    for modality, share in parts.items():
        encoder, image = encoders[modality.value], images[modality]
        features: list[Tensor] = (
            checkpoint(encoder, image, use_reentrant=False, preserve_rng_state=False)
            if run_again and torch.is_grad_enabled()
            else encoder(image)
        )
        fused = features if len(parts) == 1 else add_share(fused, features, share)
    if fused is None:
        raise AssertionError("shares() leaves at least one modality")
    return fused

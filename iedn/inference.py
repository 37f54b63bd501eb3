"""Whole-volume synthesis of one scan.

The network normalises over what it sees, so it is given the same crop as in training: the box
around the brain, never tiles. Outside of the brain the map is 0: there, measured CBV is noise and
scalp, and a synthetic value would mean nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .batching import restrict
from .modalities import Modality
from .model import IednOutput, Network
from .sample import IednSample, brain_box

CPU = torch.device("cpu")


@dataclass(frozen=True)
class SyntheticMap:
    """What the network makes of one scan.

    Attributes:
        cbv: (1, D, H, W) on the scan's grid, >= 0, 0 outside the scan's brain mask.
        brain_mask: (1, D, H, W), probability of brain; 0 outside the box.
    """

    cbv: Tensor
    brain_mask: Tensor


def synthesize(
    model: Network,
    sample: IednSample,
    *,
    flip_average: bool = False,
    device: torch.device = CPU,
) -> SyntheticMap:
    """Synthesise the CBV map of a scan.

    Images of modalities that the network does not know are not used.

    Args:
        model: moved to ``device``; its training mode is kept.
        sample: the scan; its brain mask says where to compute, its CBV is not looked at.
        flip_average: mean of the prediction and the mirrored prediction of the mirrored scan.
        device: where to compute.

    Raises:
        ValueError: the network knows none of the scan's modalities, or the mask is empty.
    """
    scan = restrict(sample, model.config.modalities)
    box = brain_box([scan.brain_mask], model.config.multiple)
    images = {m: x.unsqueeze(0).to(device) for m, x in scan.crop(box).images.items()}
    was_training = model.training
    model.to(device).eval()
    try:
        cbv, mask = _predict(model, images, flip_average=flip_average)
    finally:
        model.train(was_training)
    whole, probability = (_paste(x, scan.brain_mask, box) for x in (cbv, mask))
    return SyntheticMap(whole * (scan.brain_mask.cpu() > 0), probability)


@torch.inference_mode()
def _predict(
    model: Network, images: dict[Modality, Tensor], *, flip_average: bool
) -> tuple[Tensor, Tensor]:
    if not flip_average:
        output: IednOutput = model(images)
        return output
    both = {m: torch.cat([x, x.flip(-1)]) for m, x in images.items()}
    cbv, mask = ((x[:1] + x[1:].flip(-1)) / 2 for x in model(both))
    return cbv, mask


def _paste(inside: Tensor, grid: Tensor, box: tuple[slice, slice, slice]) -> Tensor:
    whole = torch.zeros_like(grid, device="cpu")
    whole[(slice(None), *box)] = inside[0].cpu()
    return whole

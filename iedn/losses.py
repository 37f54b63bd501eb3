"""Losses on CBV and brain mask; lower is better.

Voxels count with w = mask + 0.1, so that the background is not free. ``paper``: weighted mean
absolute error of CBV plus soft Dice of the mask. ``reference``: as published with the paper's code,
mean(w |d|) + sqrt(mean(w d^2)) for CBV and mean(w |d|) + soft Dice for the mask.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import LossName
from .decoder import IednOutput

BACKGROUND_WEIGHT = 0.1
DICE_SMOOTHING = 1.0


@dataclass(frozen=True)
class Loss:
    """Scalar tensors; ``total`` is what is minimised.

    Attributes:
        cbv: part of the CBV map.
        mask: part of the brain mask.
    """

    cbv: Tensor
    mask: Tensor

    @property
    def total(self) -> Tensor:
        """Sum of the parts."""
        return self.cbv + self.mask


LossFunction = Callable[[IednOutput, Tensor, Tensor], Loss]


def paper_loss(output: IednOutput, cbv: Tensor, brain_mask: Tensor) -> Loss:
    """Weighted L1 on CBV and soft Dice on the mask.

    Args:
        output: of a network, (B, 1, D, H, W) each.
        cbv: measured CBV, (B, 1, D, H, W).
        brain_mask: 0 or 1, (B, 1, D, H, W).
    """
    weight = brain_mask + BACKGROUND_WEIGHT
    return Loss(
        cbv=weighted_l1(output.cbv, cbv, weight), mask=soft_dice(output.brain_mask, brain_mask)
    )


def reference_loss(output: IednOutput, cbv: Tensor, brain_mask: Tensor) -> Loss:
    """Weighted L1 plus root mean square on CBV, weighted L1 plus soft Dice on the mask.

    Arguments as of ``paper_loss``.
    """
    weight = brain_mask + BACKGROUND_WEIGHT
    mean_square = per_sample_mean(weight * (output.cbv - cbv) ** 2)
    # The derivative of a square root at 0 is infinite; a perfect map must not give NaN.
    root = (mean_square + torch.finfo(mean_square.dtype).eps).sqrt().mean()
    return Loss(
        cbv=weighted_l1(output.cbv, cbv, weight) + root,
        mask=weighted_l1(output.brain_mask, brain_mask, weight)
        + soft_dice(output.brain_mask, brain_mask),
    )


def weighted_l1(prediction: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """mean(w |prediction - truth|)."""
    return (weight * (prediction - truth).abs()).mean()


def soft_dice(probability: Tensor, mask: Tensor) -> Tensor:
    """1 - Dice of a probability and a mask, per sample, then the mean over samples."""
    axes = tuple(range(1, mask.ndim))
    overlap = (probability * mask).sum(dim=axes)
    total = probability.sum(dim=axes) + mask.sum(dim=axes)
    dice = (2 * overlap + DICE_SMOOTHING) / (total + DICE_SMOOTHING)
    return (1 - dice).mean()


def per_sample_mean(values: Tensor) -> Tensor:
    """Mean over all axes but the first, (B,)."""
    return values.flatten(1).mean(dim=1)


LOSSES: dict[LossName, LossFunction] = {"paper": paper_loss, "reference": reference_loss}

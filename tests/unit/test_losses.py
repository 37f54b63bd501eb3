"""Losses against values worked out by hand."""

import math

import pytest
import torch

from iedn.decoder import IednOutput
from iedn.losses import LOSSES, paper_loss, reference_loss, soft_dice


def voxels(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 1, 1, -1)


def test_paper_loss_by_hand():
    output = IednOutput(cbv=voxels(0.5, 0.2), brain_mask=voxels(0.8, 0.4))
    loss = paper_loss(output, voxels(0.1, 0.0), voxels(1.0, 0.0))
    # w = (1.1, 0.1): (1.1 * 0.4 + 0.1 * 0.2) / 2; Dice (2 * 0.8 + 1) / (1.2 + 1 + 1)
    assert loss.cbv.item() == pytest.approx(0.23)
    assert loss.mask.item() == pytest.approx(1 - 2.6 / 3.2)
    assert loss.total.item() == pytest.approx(0.23 + 1 - 2.6 / 3.2)


def test_reference_loss_by_hand():
    output = IednOutput(cbv=voxels(0.5, 0.2), brain_mask=voxels(0.8, 0.4))
    loss = reference_loss(output, voxels(0.1, 0.0), voxels(1.0, 0.0))
    root = math.sqrt((1.1 * 0.16 + 0.1 * 0.04) / 2)
    assert loss.cbv.item() == pytest.approx(0.23 + root, rel=1e-5)
    assert loss.mask.item() == pytest.approx((1.1 * 0.2 + 0.1 * 0.4) / 2 + 1 - 2.6 / 3.2)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_perfect_map_costs_nothing_and_has_a_finite_gradient(name):
    mask = voxels(1.0, 1.0, 0.0)
    truth = voxels(0.3, 0.1, 0.0)
    cbv = truth.clone().requires_grad_()
    loss = LOSSES[name](IednOutput(cbv, mask), truth, mask).total
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-3)
    assert bool(torch.isfinite(cbv.grad).all())


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_batch_costs_the_mean_of_its_samples(name):
    generator = torch.Generator().manual_seed(0)
    cbv, truth, probability = (torch.rand(3, 1, 2, 4, 4, generator=generator) for _ in range(3))
    mask = (torch.rand(3, 1, 2, 4, 4, generator=generator) > 0.5).float()
    whole = LOSSES[name](IednOutput(cbv, probability), truth, mask).total
    single = [
        LOSSES[name](
            IednOutput(cbv[i : i + 1], probability[i : i + 1]), truth[i : i + 1], mask[i : i + 1]
        )
        for i in range(3)
    ]
    torch.testing.assert_close(whole, torch.stack([s.total for s in single]).mean())


def test_dice_of_disjoint_masks_is_near_one_and_of_empty_masks_zero():
    ones = torch.ones(1, 1, 2, 8, 8)
    assert soft_dice(ones, torch.zeros_like(ones)).item() == pytest.approx(1 - 1 / 129)
    assert soft_dice(torch.zeros_like(ones), torch.zeros_like(ones)).item() == 0.0

"""The bar that training has to clear, on scans where the answer is known."""

import numpy as np
import pytest
import torch

from iedn.modalities import Modality
from iedn.sample import IednSample
from simulation.baselines import fit, measure, predict

T1, T2 = Modality.T1WI, Modality.T2WI
SHAPE = (1, 8, 16, 16)


def sample(seed, modalities=(T1, T2)):
    rng = np.random.default_rng(seed)
    mask = torch.zeros(SHAPE)
    mask[:, :, 2:14, 2:14] = 1.0
    images = {m: torch.from_numpy(rng.random(SHAPE).astype(np.float32)) for m in (T1, T2)}
    cbv = 0.3 * images[T1] + 0.1 * images[T2] + 0.05
    return IednSample({m: images[m] for m in modalities}, mask, cbv)


def test_ridge_finds_a_linear_relation():
    fitted = fit([sample(s) for s in range(4)], {(T1, T2)})
    np.testing.assert_allclose(fitted.ridge[T1, T2].coefficients, [0.3, 0.1, 0.05], atol=0.002)
    prediction = predict(fitted, sample(9))["ridge"]
    truth = sample(9).cbv[0].numpy() * sample(9).brain_mask[0].numpy()
    np.testing.assert_allclose(prediction, truth, atol=0.003)


def test_constant_and_map_are_means_inside_the_brain():
    scans = [sample(s) for s in range(3)]
    fitted = fit(scans, {(T1,)})
    inside = scans[0].brain_mask[0].numpy() > 0
    stacked = np.stack([s.cbv[0].numpy() for s in scans])
    assert fitted.mean == pytest.approx(stacked[:, inside].mean(), rel=1e-5)
    np.testing.assert_allclose(fitted.mean_map[inside], stacked.mean(axis=0)[inside], rtol=1e-5)
    assert not fitted.mean_map[~inside].any()


def test_quality_orders_the_predictors_as_it_must():
    fitted = fit([sample(s) for s in range(4)], {(T1, T2)})
    quality = measure(fitted, [sample(7), sample(8)])
    assert quality["ridge"].psnr_db > quality["mean"].psnr_db + 10


def test_combination_that_no_training_scan_has_falls_back_to_what_all_have():
    fitted = fit([sample(0), sample(1, (T1,))], {(T1, T2, Modality.ADC)})
    assert fitted.ridge[T1, T2, Modality.ADC].modalities == (T1,)


def test_combination_without_anything_in_common_is_an_error():
    with pytest.raises(ValueError, match="no modality in common"):
        fit([sample(0)], {(Modality.ADC,)})

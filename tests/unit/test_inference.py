"""Whole-volume synthesis of a scan."""

import pytest
import torch

from iedn.config import NetworkConfig
from iedn.inference import synthesize
from iedn.modalities import Modality
from iedn.model import build_network
from iedn.sample import IednSample, brain_box

CONFIG = NetworkConfig(base_channels=2, depth=2, modalities=(Modality.T1WI, Modality.ASL))
GRID = (1, 4, 24, 24)


def scan(*modalities: Modality) -> IednSample:
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(GRID)
    mask[:, 1:4, 3:12, 5:15] = 1
    images = {m: torch.rand(GRID, generator=generator) * mask for m in modalities}
    return IednSample(images, mask, cbv=None)


@pytest.fixture(scope="module")
def network():
    return build_network(CONFIG, seed=0)


def test_map_is_the_networks_inside_the_brain_and_zero_outside(network):
    sample = scan(Modality.T1WI, Modality.ASL)
    result = synthesize(network, sample)
    box = brain_box([sample.brain_mask], CONFIG.multiple)
    index = (slice(None), *box)
    with torch.no_grad():
        cropped = {m: x[index].unsqueeze(0) for m, x in sample.images.items()}
        expected = network(cropped)
    inside = sample.brain_mask[index] > 0
    wanted_cbv = expected.cbv[0] * inside
    assert (expected.cbv[0][~inside] > 0).any(), "the network itself does not know the mask"
    for found, wanted in ((result.cbv, wanted_cbv), (result.brain_mask, expected.brain_mask[0])):
        assert found.shape == GRID
        torch.testing.assert_close(found[index], wanted, rtol=1e-4, atol=1e-5)
        outside = torch.ones(GRID, dtype=torch.bool)
        outside[index] = False
        assert outside.any()
        assert not found[outside].any()


def test_flip_average_is_the_mean_with_the_mirrored_prediction(network):
    sample = scan(Modality.ASL)
    index = (slice(None), *brain_box([sample.brain_mask], CONFIG.multiple))
    image = sample.images[Modality.ASL][index].unsqueeze(0)
    with torch.no_grad():
        plain = network({Modality.ASL: image}).cbv
        mirrored = network({Modality.ASL: image.flip(-1)}).cbv.flip(-1)
    found = synthesize(network, sample, flip_average=True).cbv[index]
    wanted = (plain + mirrored)[0] / 2 * sample.brain_mask[index]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, mirrored, atol=1e-4)


def test_images_the_network_does_not_know_are_not_used(network):
    both, one = scan(Modality.T1WI, Modality.FLAIR), scan(Modality.T1WI)
    assert torch.equal(synthesize(network, both).cbv, synthesize(network, one).cbv)
    with pytest.raises(ValueError, match="at least one modality"):
        synthesize(network, scan(Modality.ADC))


def test_no_gradient_is_kept_and_the_mode_is_restored(network):
    for training in (True, False):
        network.train(training)
        assert not synthesize(network, scan(Modality.ASL)).cbv.requires_grad
        assert network.training is training


def test_results_can_be_used_like_ordinary_tensors(network):
    cbv = synthesize(network, scan(Modality.ASL)).cbv
    cbv += 1
    (cbv * torch.ones(GRID, requires_grad=True)).sum().backward()


def test_a_scan_is_computed_once_and_never_by_the_slow_convolution(network):
    """On a CPU PyTorch takes small batches of one for too small for oneDNN: ten times slower."""
    sample = scan(Modality.ASL)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        synthesize(network, sample)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls.get("aten::mkldnn_convolution", 0) > 0
    assert not [name for name in calls if "slow_conv" in name]

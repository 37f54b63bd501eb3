"""Fused blocks give the numbers of PyTorch's own modules, and take the fast kernels."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iedn.blocks import ConvNorm, ResidualBlock
from iedn.config import NetworkConfig
from iedn.convolution import CHANNELS_LAST, convolve, convolve_backward, is_folded
from iedn.losses import paper_loss
from iedn.modalities import Modality
from iedn.model import build_network, set_recompute
from iedn.normalisation import moments

SMALL = NetworkConfig(base_channels=4, depth=2, modalities=(Modality.T1WI, Modality.ASL))
SHAPE = (2, 1, 3, 16, 16)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients of input and parameters, for a fixed gradient of the output."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(drawn(*y.shape, seed=9))
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


def kept_bytes(module: nn.Module, given: object) -> int:
    """Bytes that the backward pass keeps of activations and moments."""
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        output = module(given)
    del output
    return sum(sizes.values())


def perturbed(module: nn.Module) -> nn.Module:
    """Scales and shifts that are not 1 and 0."""
    for i, parameter in enumerate(module.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    return module


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "module",
    [
        ResidualBlock(4, 4),
        ResidualBlock(4, 8, stride=2),
        ResidualBlock(8, 4, middle=8, channels_per_group=2),
        ResidualBlock(1, 4, kernel=5),
        ConvNorm(4, 2, kernel=(3, 5, 5)),
    ],
    ids=["identity", "stride", "groups", "stem", "head"],
)
def test_fused_values_and_gradients_are_those_of_the_modules(module, batch):
    perturbed(module)
    x = drawn(batch, next(module.parameters()).shape[1], 4, 8, 12)
    fused = gradients(module, x)
    for part in module.modules():
        part.fused = False
    plain = gradients(module, x)
    for one, other in zip(fused, plain, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * (scale + 1))


@pytest.mark.parametrize("channels", [4, 8], ids=["identity", "projection"])
def test_an_output_that_is_not_kept_changes_no_bit(channels):
    block = perturbed(ResidualBlock(channels, 4))
    x = drawn(1, channels, 4, 8, 12)
    usual, sizes = gradients(block, x), [kept_bytes(block, x)]
    block.keeps_output = False
    for one, other in zip(gradients(block, x), usual, strict=True):
        assert torch.equal(one, other)
    sizes.append(kept_bytes(block, x))
    assert sizes[0] - sizes[1] == 4 * 4 * 4 * 8 * 12  # float32, 4 channels


def test_a_stem_keeps_one_tensor_less_than_other_blocks():
    x = {channels: drawn(1, channels, 4, 8, 12) for channels in (1, 2)}
    kept = {c: kept_bytes(ResidualBlock(c, 4, kernel=5), x[c]) for c in x}
    voxels = 4 * 8 * 12
    assert kept[2] - kept[1] == 4 * voxels * (1 + 4)  # a channel of the input, and 4 of the tensor


@pytest.mark.parametrize("recompute", ["nothing", "encoders"])
def test_every_setting_trains_with_the_same_gradients(recompute):
    model = build_network(SMALL, seed=0)
    images = {m: drawn(*SHAPE, seed=i).abs() for i, m in enumerate(SMALL.modalities)}

    def run() -> dict[str, Tensor]:
        model.zero_grad()
        target = torch.full(SHAPE, 0.3)
        paper_loss(model(images), target, torch.ones(SHAPE)).total.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    usual = run()
    set_recompute(model, recompute)
    other = run()
    exact = recompute == "encoders"
    for name, value in usual.items():
        scale = 0.0 if exact else 1e-4 * float(value.abs().max()) + 1e-7
        torch.testing.assert_close(other[name], value, rtol=0.0 if exact else 1e-3, atol=scale)


def test_running_encoders_again_keeps_less():
    model = build_network(SMALL, seed=0)
    images = {m: drawn(*SHAPE) for m in SMALL.modalities}
    counts = {}
    for recompute in ("nothing", "norms", "encoders"):
        set_recompute(model, recompute)
        counts[recompute] = kept_bytes(model, images)
    assert counts["norms"] < 0.7 * counts["nothing"]
    assert counts["encoders"] < 0.8 * counts["norms"]


def test_autocast_computes_in_bfloat16_and_keeps_parameters_in_float32():
    block = perturbed(ResidualBlock(4, 8, stride=2))
    x = drawn(1, 4, 2, 8, 8)
    exact = gradients(block, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = block(x)
        assert rounded.dtype == torch.bfloat16
    rounded.backward(drawn(*rounded.shape, seed=9).bfloat16())
    assert all(p.grad.dtype == torch.float32 for p in block.parameters())
    difference = (rounded.detach().float() - exact[0]).abs().mean() / exact[0].abs().mean()
    assert 0 < float(difference) < 0.05


# --- cliffs ------------------------------------------------------------------------------------


def test_two_output_channels_are_folded_whatever_the_size():
    """The head: a direct gradient of its weights is ten times slower above 256 rows."""
    x = drawn(1, 4, 6, 8, 10).contiguous(memory_format=CHANNELS_LAST)
    weight = drawn(2, 4, 3, 5, 5, seed=1)
    assert is_folded(x, weight, 1)
    assert not is_folded(x, drawn(4, 4, 3, 5, 5), 1)
    assert not is_folded(x, weight, 2)
    expected = F.conv3d(x, weight, padding=(1, 2, 2))
    torch.testing.assert_close(convolve(x, weight, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
def test_no_step_takes_the_slow_convolution(batch):
    model = build_network(SMALL, seed=0)
    images = {m: drawn(batch, 1, 3, 16, 16) for m in SMALL.modalities}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        output = model(images)
        (output.cbv.sum() + output.brain_mask.sum()).backward()
    names = {event.key for event in profile.key_averages()}
    assert not [name for name in names if "slow_conv" in name]


def test_a_batch_of_one_has_the_gradients_of_the_sample_in_a_batch():
    x, weight = drawn(1, 3, 4, 6, 6), drawn(5, 3, 3, 3, 3, seed=1)
    x = x.contiguous(memory_format=CHANNELS_LAST)
    grad = drawn(1, 5, 4, 6, 6, seed=2).contiguous(memory_format=CHANNELS_LAST)
    leaf, kernel = x.clone().requires_grad_(), weight.clone().requires_grad_()
    F.conv3d(leaf, kernel, padding=1).backward(grad)
    found = convolve_backward(grad, x, weight, 1)
    for one, other in zip(found, (leaf.grad, kernel.grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_volumes_stay_channels_last_through_a_block():
    """Group norm gives plain volumes, and every convolution behind one would copy its input."""
    block = ResidualBlock(4, 8, stride=2)
    x = drawn(1, 4, 2, 8, 8).contiguous(memory_format=CHANNELS_LAST)
    assert block(x).is_contiguous(memory_format=CHANNELS_LAST)


def test_moments_of_a_large_volume_are_exact():
    """PyTorch's channels-last kernels are wrong by more than 1e-4 of the variance here."""
    x = (drawn(1, 2, 8, 256, 256) + 30).contiguous(memory_format=CHANNELS_LAST)
    found = moments(x, 1, 0.0)
    wanted = x.double().var(dim=(2, 3, 4), correction=0)
    torch.testing.assert_close(found.scale.double() ** -2, wanted, rtol=2e-6, atol=0)

"""The network: sizes worked out by hand, fusion, absent modalities, and a head that cannot die."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iedn.blocks import ConvNorm, ResidualBlock, upsample
from iedn.config import NetworkConfig
from iedn.encoder import Encoder
from iedn.fusion import fuse
from iedn.modalities import Modality, all_subsets
from iedn.model import EncoderDecoder, Iedn, IednOutput, build_network

SHAPE = (2, 1, 3, 16, 16)
SMALL = NetworkConfig(base_channels=4, depth=2)
PAIR = (Modality.T1WI, Modality.ASL)


def volumes(modalities: tuple[Modality, ...], *, seed: int = 0) -> dict[Modality, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m: torch.rand(SHAPE, generator=generator) for m in modalities}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def network() -> Iedn:
    built = build_network(SMALL, seed=1)
    assert isinstance(built, Iedn)
    return built


@pytest.mark.parametrize("subset", all_subsets(), ids="+".join)
def test_every_subset_of_modalities_gives_a_map_and_a_mask(network, subset):
    with torch.no_grad():
        output = network(volumes(subset))
    assert isinstance(output, IednOutput)
    assert output.cbv.shape == output.brain_mask.shape == SHAPE
    assert bool((output.cbv >= 0).all())
    assert bool(((output.brain_mask >= 0) & (output.brain_mask <= 1)).all())


# --- sizes, with the arithmetic written out ---------------------------------------------------


def conv(k_d, k_h, k_w, c_in, c_out):
    return k_d * k_h * k_w * c_in * c_out


def block(k, c_in, c_mid, c_out, slices=3):
    size = (
        conv(slices, k, k, c_in, c_mid) + 2 * c_mid + conv(slices, k, k, c_mid, c_out) + 2 * c_out
    )
    return size + (c_in * c_out + 2 * c_out if c_in != c_out else 0)


def test_parameters_of_one_encoder_match_the_hand_count():
    stem = 75 * 1 * 16 + 32 + 75 * 16 * 16 + 32 + 1 * 16 + 32  # 1200 + 19200 + shortcut 16 + norms
    assert stem == 20_512
    down = [42_176, 168_320, 672_512, 2_688_512]
    assert down[0] == 27 * 16 * 32 + 64 + 27 * 32 * 32 + 64 + 16 * 32 + 64
    encoder = Encoder(NetworkConfig())
    assert count(encoder.stem) == stem
    assert [count(b) for b in encoder.down] == down
    assert count(encoder) == stem + sum(down) == 3_592_032


def test_parameters_of_the_decoder_match_the_hand_count():
    decoder = Iedn(NetworkConfig(modalities=(Modality.ASL,))).decoder
    widths = [16, 32, 64, 128, 256]
    bank = [2 * (2 * 27 * c * c + 4 * c) for c in widths]
    assert [count(b) for b in decoder.bank] == bank
    assert sum(bank) == 9_431_936
    up = [
        27 * 2 * c * c + 2 * c + 27 * c * (c // 2) + c + 2 * c * (c // 2) + c
        for c in (256, 128, 64, 32)
    ]
    assert up == [4_490_240, 1_122_816, 280_832, 70_272]
    assert [count(b) for b in decoder.up] == up
    assert count(decoder.head) == 75 * 32 * 2 + 2 * 2 == 4_804
    assert count(decoder) == 9_431_936 + sum(up) + 4_804


def test_parameters_of_the_paper_network_and_of_the_baseline():
    decoder = 9_431_936 + 5_964_160 + 4_804
    assert count(Iedn(NetworkConfig())) == 6 * 3_592_032 + decoder == 36_953_092
    stem = block(3, 6, 16, 16)
    bank = 2 * block(1, 256, 256, 256)
    head = 9 * 16 * 2 + 2
    expected = stem + (3_592_032 - 20_512) + bank + 5_964_160 + block(3, 32, 16, 16) + head
    assert count(EncoderDecoder(NetworkConfig(architecture="encoder-decoder"))) == expected


def test_refine_blocks_zero_leaves_the_bank_empty():
    config = SMALL.model_copy(update={"refine_blocks": 0})
    model = build_network(config, seed=0)
    assert count(model.decoder.bank) == 0
    assert model(volumes(PAIR)).cbv.shape == SHAPE


def test_convolutions_that_feed_a_norm_have_no_bias_and_nothing_reflects(network):
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert convolutions
    assert all(c.bias is None and c.padding_mode == "zeros" for c in convolutions)
    kinds = {
        type(m) for m in network.modules() if next(m.parameters(recurse=False), None) is not None
    }
    assert kinds == {nn.Conv3d, nn.GroupNorm}


# --- blocks -----------------------------------------------------------------------------------


def test_residual_block_is_the_formula_with_instance_norm():
    torch.manual_seed(0)
    unit = ResidualBlock(2, 3, stride=2)
    for parameter in unit.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 2, 3, 8, 8)

    def normed(part: ConvNorm, value: Tensor, padding, stride) -> Tensor:
        y = F.conv3d(value, part.conv.weight, padding=padding, stride=stride)
        return F.instance_norm(y, weight=part.norm.weight, bias=part.norm.bias)

    inner = F.leaky_relu(normed(unit.first, x, (1, 1, 1), (1, 2, 2)), 0.01)
    outer = normed(unit.second, inner, (1, 1, 1), (1, 1, 1))
    skip = normed(unit.shortcut, x, (0, 0, 0), (1, 2, 2))
    torch.testing.assert_close(unit(x), F.leaky_relu(outer + skip, 0.01))


def test_upsampling_is_bilinear_within_slices():
    x = torch.randn(2, 3, 4, 5, 6)
    expected = F.interpolate(x, scale_factor=(1, 2, 2), mode="trilinear", align_corners=False)
    torch.testing.assert_close(upsample(x), expected)


# --- fusion -----------------------------------------------------------------------------------


class Constant(nn.Module):
    """Stands for an encoder; two scales with one value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, image: Tensor) -> list[Tensor]:
        return [
            torch.full_like(image, self.value),
            torch.full_like(image[..., ::2, ::2], self.value),
        ]


def test_fusion_is_the_weighted_mean_worked_out_by_hand():
    encoders = nn.ModuleDict({"T1WI": Constant(1.0), "FLAIR": Constant(4.0), "ASL": Constant(7.0)})
    images = volumes((Modality.T1WI, Modality.FLAIR, Modality.ASL))
    weights = {
        Modality.T1WI: torch.tensor([1.0, 2.0]),
        Modality.FLAIR: torch.tensor([1.0, 0.0]),
        Modality.ASL: torch.tensor([1.0, 0.5]),
    }
    fine, coarse = fuse(encoders, images, weights)
    # sample 0: (1 + 4 + 7) / 3; sample 1: (2 * 1 + 0.5 * 7) / 2.5
    for feature in (fine, coarse):
        torch.testing.assert_close(feature[0], torch.full_like(feature[0], 4.0))
        torch.testing.assert_close(feature[1], torch.full_like(feature[1], 2.2))


def test_one_modality_passes_through_unchanged(network):
    images = volumes((Modality.ADC,))
    features = network.encoders["ADC"](images[Modality.ADC])
    fused = fuse(network.encoders, images, {Modality.ADC: torch.tensor([3.0, 0.5])})
    for one, other in zip(features, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_weight_zero_equals_leaving_the_image_out(network):
    images = volumes((Modality.T1WI, Modality.FLAIR, Modality.ASL))
    weights = {m: torch.ones(2) for m in images} | {Modality.FLAIR: torch.zeros(2)}
    with torch.no_grad():
        weighted = network(images, weights)
        fewer = network({m: images[m] for m in PAIR})
    torch.testing.assert_close(weighted.cbv, fewer.cbv, rtol=0, atol=0)


def test_sample_with_weight_zero_does_not_see_that_image(network):
    images = volumes(PAIR)
    weights = {Modality.T1WI: torch.ones(2), Modality.ASL: torch.tensor([1.0, 0.0])}
    changed = {
        **images,
        Modality.ASL: images[Modality.ASL] + torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1),
    }
    with torch.no_grad():
        before, after = network(images, weights).cbv, network(changed, weights).cbv
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_absent_encoder_is_not_called_gets_no_gradient_and_does_not_move():
    model = build_network(SMALL, seed=3)
    calls: list[str] = []
    for name, encoder in model.encoders.items():
        encoder.register_forward_hook(lambda *_, name=name: calls.append(name))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    weights = {Modality.T1WI: torch.ones(2), Modality.ASL: torch.zeros(2)}
    model(volumes(PAIR), weights).cbv.mean().backward()
    optimizer.step()
    assert calls == ["T1WI"]
    for name, parameter in model.named_parameters():
        used = name.startswith(("encoders.T1WI", "decoder"))
        assert (parameter.grad is not None) == used, name
        if not used:
            assert torch.equal(parameter, before[name]), name
    name = "encoders.T1WI.stem.first.conv.weight"
    assert not torch.equal(model.state_dict()[name], before[name])


def test_a_sample_does_not_depend_on_the_others_of_its_batch(network):
    images = volumes(PAIR)
    weights = {Modality.T1WI: torch.ones(2), Modality.ASL: torch.tensor([1.0, 0.0])}
    with torch.no_grad():
        together = network(images, weights)
        for i in range(2):
            one = {m: x[i : i + 1] for m, x in images.items()}
            alone = network(one, {m: a[i : i + 1] for m, a in weights.items()})
            torch.testing.assert_close(together.cbv[i], alone.cbv[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                together.brain_mask[i], alone.brain_mask[0], rtol=1e-4, atol=1e-5
            )


def test_second_pass_takes_the_first_map_as_one_more_image():
    config = SMALL.model_copy(update={"self_refine": True, "modalities": PAIR})
    model = build_network(config, seed=0)
    images = volumes(PAIR)
    weights = {Modality.T1WI: torch.ones(2), Modality.ASL: torch.tensor([1.0, 0.0])}
    with torch.no_grad():
        output = model(images, weights)
        fused = fuse(model.encoders, images, weights)
        again = model.refiner(model.decoder(fused).cbv)
        total = torch.tensor([2.0, 1.0]).view(2, 1, 1, 1, 1)
        expected = model.decoder(
            [(total * f + g) / (total + 1) for f, g in zip(fused, again, strict=True)]
        )
    torch.testing.assert_close(output.cbv, expected.cbv)


# --- wrong use --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 1, 3, 18, 16), "multiples of 4"),
        ((2, 1, 3, 16, 4), "at least 8"),
        ((2, 1, 1, 16, 16), "D >= 2"),
        ((2, 2, 3, 16, 16), r"\(B, 1, D, H, W\)"),
        ((1, 3, 16, 16), r"\(1, 3, 16, 16\)"),
    ],
)
def test_wrong_shapes_are_refused_with_what_is_allowed(network, shape, words):
    with pytest.raises(ValueError, match=words):
        network({Modality.ADC: torch.zeros(shape)})


def test_unequal_shapes_and_unknown_modalities_are_refused(network):
    images = {Modality.ADC: torch.zeros(SHAPE), Modality.ASL: torch.zeros(2, 1, 3, 16, 8)}
    with pytest.raises(ValueError, match="one shape"):
        network(images)
    narrow = Iedn(SMALL.model_copy(update={"modalities": (Modality.T1WI,)}))
    with pytest.raises(ValueError, match="no encoder for ASL; it has T1WI"):
        narrow(volumes(PAIR))


def test_nothing_to_look_at_is_an_error_that_names_the_sample(network):
    with pytest.raises(ValueError, match="no image"):
        network({})
    weights = {Modality.T1WI: torch.tensor([1.0, 0.0]), Modality.ASL: torch.zeros(2)}
    with pytest.raises(ValueError, match="sample 1 has no modality"):
        network(volumes(PAIR), weights)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_wrong_weights_are_refused(network, value):
    weights = {Modality.T1WI: torch.ones(2), Modality.ASL: torch.tensor([1.0, value])}
    with pytest.raises(ValueError, match="ASL for sample 1"):
        network(volumes(PAIR), weights)


def test_weights_must_fit_the_images(network):
    with pytest.raises(ValueError, match="weight without an image must be 0"):
        network(volumes(PAIR), {Modality.ASL: torch.ones(2)})
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        network(volumes(PAIR), {m: torch.ones(3) for m in PAIR})


def test_baseline_needs_every_modality_of_every_sample():
    config = SMALL.model_copy(update={"architecture": "encoder-decoder", "modalities": PAIR})
    model = build_network(config, seed=0)
    output = model(volumes(PAIR))
    assert output.cbv.shape == SHAPE
    assert bool((output.cbv >= 0).all())
    with pytest.raises(ValueError, match="needs ASL"):
        model(volumes((Modality.T1WI,)))
    with pytest.raises(ValueError, match="needs ASL"):
        model(volumes(PAIR), {Modality.T1WI: torch.ones(2), Modality.ASL: torch.tensor([1.0, 0.0])})


# --- initial values ---------------------------------------------------------------------------


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = build_network(SMALL, seed=7).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    second = build_network(SMALL, seed=7).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = build_network(SMALL, seed=8).state_dict()
    assert not torch.equal(
        first["decoder.head.output.conv.weight"], other["decoder.head.output.conv.weight"]
    )


def test_an_encoder_starts_equal_whatever_else_is_configured():
    few = build_network(SMALL.model_copy(update={"modalities": PAIR}), seed=7).state_dict()
    many = build_network(SMALL, seed=7).state_dict()
    assert all(torch.equal(few[k], many[k]) for k in few)
    one = many["encoders.T1WI.stem.first.conv.weight"]
    assert not torch.equal(one, many["encoders.T2WI.stem.first.conv.weight"])


@pytest.mark.parametrize("architecture", ["iedn", "encoder-decoder"])
def test_all_parameters_of_a_built_network_are_set(architecture):
    config = SMALL.model_copy(update={"architecture": architecture})
    for name, value in build_network(config, seed=0).state_dict().items():
        assert bool(torch.isfinite(value).all()), name
        assert float(value.abs().max()) < 5, name


# --- the head cannot die ----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["iedn", "encoder-decoder"])
def test_cbv_recovers_after_training_towards_zero(architecture):
    config = NetworkConfig(
        architecture=architecture, modalities=(Modality.ASL,), base_channels=2, depth=1
    )
    model = build_network(config, seed=0)
    image = torch.rand((2, 1, 2, 8, 8), generator=torch.Generator().manual_seed(1))
    images = {Modality.ASL: image}

    def fit(target: Tensor, steps: int, lr: float) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            (model(images).cbv - target).abs().mean().backward()
            optimizer.step()

    def predicted() -> Tensor:
        with torch.no_grad():
            return model(images).cbv

    fit(torch.zeros_like(image), steps=60, lr=0.03)
    assert 0 < float(predicted().max()) < 0.05
    fit(0.5 * image, steps=60, lr=0.03)
    assert float(predicted().mean()) > 0.15


def test_weight_zero_may_name_a_modality_without_an_image(network):
    image = torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    only = network({Modality.T1WI: image}, {Modality.T1WI: torch.ones(2)})
    named = network(
        {Modality.T1WI: image}, {Modality.T1WI: torch.ones(2), Modality.ASL: torch.zeros(2)}
    )
    torch.testing.assert_close(named.cbv, only.cbv, rtol=0, atol=0)

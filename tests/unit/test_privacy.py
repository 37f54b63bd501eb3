"""Training with noise: what one patient can do to an update, and what nobody can take off again."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Generator, nn

import client.privacy as private
from client.accounting import PrivacyEvent, epsilon_of, noise_multiplier_for
from client.privacy import (
    NoisePlan,
    PatientOptimizer,
    PatientScans,
    SystemEntropy,
    freeze,
    patient_gradient,
    private_steps,
    scan_loss_of,
    train_privately,
)
from iedn.config import NetworkConfig, TrainingConfig
from iedn.losses import paper_loss
from iedn.modalities import Modality
from iedn.model import build_network, set_recompute
from iedn.parameters import group_of
from iedn.sample import IednSample, collate

SMALL = NetworkConfig(
    base_channels=2, depth=1, modalities=(Modality.T1WI, Modality.ADC, Modality.ASL)
)
EVERYTHING = TrainingConfig(keep_probability=1.0, learning_rate=1.0)
GROUPS = {"encoder.T1WI", "encoder.ADC", "encoder.ASL", "decoder"}
SEEDS = range(5)


def scan(seed, *modalities, dtype=torch.float32):
    generator = Generator().manual_seed(seed)
    images = {
        m: torch.rand(1, 3, 8, 8, generator=generator, dtype=dtype) / 2
        for m in (Modality.T1WI, *modalities)
    }
    cbv = torch.rand(1, 3, 8, 8, generator=generator, dtype=dtype) / 2
    return IednSample(images, torch.ones(1, 3, 8, 8, dtype=dtype), cbv)


def cohort(dtype=torch.float32):
    """Five patients with 1, 2, 3, 4 and 5 scans, of mixed modalities."""
    extra = [(), (Modality.ADC,), (Modality.ASL,), (Modality.ADC, Modality.ASL)]
    samples = [scan(i, *extra[i % 4], dtype=dtype) for i in range(15)]
    starts = [0, 1, 3, 6, 10, 15]
    return PatientScans(samples, tuple(tuple(range(a, b)) for a, b in pairwise(starts)))


def network(dtype=torch.float32, recompute="nothing"):
    model = build_network(SMALL, seed=3).to(dtype)
    set_recompute(model, recompute)
    return model.train()


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def gradient_of(model):
    return flat(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())


def oracle(model, scans, patient):
    """The gradient of each scan by itself, then their mean."""
    parameters = list(model.parameters())
    found = []
    for number in scans.by_patient[patient]:
        batch = collate([scans.samples[number]], SMALL.multiple)
        loss = paper_loss(model(batch.images, batch.weights), batch.cbv, batch.brain_mask).total
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = zip(parts, parameters, strict=True)
        found.append(flat(torch.zeros_like(p) if g is None else g for g, p in pairs))
    return torch.stack(found).mean(dim=0)


def released(entropy, scans, plan, *, model=None, before=None):
    """What one step of plain descent with rate 1 takes off the parameters."""
    model = model or network()
    start = flat(model.parameters())
    descent = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = PatientOptimizer(descent, plan, entropy=entropy, before_step=before)
    loss = scan_loss_of(model, scans.samples, EVERYTHING)
    list(private_steps(optimizer, scans.by_patient, loss, plan, entropy))
    return start - flat(model.parameters())


def plan(**changes):
    settings = {
        "clip": 0.05,
        "noise_multiplier": 1e-9,
        "sample_rate": 1.0,
        "patients_per_step": 4,
        "steps": 1,
    }
    return NoisePlan(**(settings | changes))


# --- the gradient of a patient ------------------------------------------------------------------


@pytest.mark.parametrize("patient", range(5))
def test_patient_gradient_is_the_mean_over_scans_to_the_last_digits(seeded_entropy, patient):
    scans, model = cohort(torch.float64), network(torch.float64)
    loss = scan_loss_of(model, scans.samples, EVERYTHING)
    patient_gradient(scans.by_patient[patient], loss, seeded_entropy(0), patient)
    expected = oracle(model, scans, patient)
    assert float((gradient_of(model) - expected).norm() / expected.norm()) < 1e-12


@pytest.mark.parametrize("recompute", ["norms", "encoders"])
def test_patient_gradient_is_the_same_through_fused_blocks(seeded_entropy, recompute):
    scans, model = cohort(), network(recompute=recompute)
    loss = scan_loss_of(model, scans.samples, EVERYTHING)
    patient_gradient(scans.by_patient[4], loss, seeded_entropy(0), 4)
    expected = oracle(network(), scans, 4)
    assert float((gradient_of(model) - expected).norm() / expected.norm()) < 1e-4


def test_step_is_the_clipped_sum_divided_by_a_constant(seeded_entropy):
    scans = cohort()
    gradients = [oracle(network(), scans, patient) for patient in range(5)]
    clip = float(gradients[2].norm())  # some are clipped, some are not
    expected = sum(g * min(1.0, clip / float(g.norm())) for g in gradients) / 4
    step = released(seeded_entropy(0), scans, plan(clip=clip))
    assert float((step - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("patient", range(5))
def test_no_patient_contributes_more_than_the_clipping_norm(seeded_entropy, patient):
    scans = cohort()
    alone = PatientScans(scans.samples, (scans.by_patient[patient],))
    norm = float(released(seeded_entropy(0), alone, plan(clip=0.01)).norm()) * 4
    assert norm <= 0.01 * (1 + 1e-4)
    assert norm == pytest.approx(0.01, rel=1e-2), "the bound is reached, so that it is tested"


@pytest.mark.parametrize("seed", SEEDS)
def test_neighbouring_cohorts_differ_by_the_clipping_norm_over_the_divisor(seeded_entropy, seed):
    scans = cohort()
    everyone = released(seeded_entropy(seed), scans, plan())
    for left_out in range(5):
        others = tuple(p for n, p in enumerate(scans.by_patient) if n != left_out)
        names = tuple(n for n in range(5) if n != left_out)
        fewer = PatientScans(scans.samples, others)
        without = released(seeded_entropy(seed, names=names), fewer, plan())
        assert float((everyone - without).norm()) <= 0.05 / 4 * (1 + 1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_patient_that_is_not_finite_changes_nobody_elses_part(seeded_entropy, value):
    scans = cohort()
    broken = list(scans.samples)
    spoilt = {m: torch.full_like(x, value) for m, x in broken[0].images.items()}
    broken[0] = IednSample(spoilt, broken[0].brain_mask, broken[0].cbv)
    expected = released(
        seeded_entropy(0, names=(1, 2, 3, 4)), PatientScans(broken, scans.by_patient[1:]), plan()
    )
    step = released(seeded_entropy(0), PatientScans(broken, scans.by_patient), plan())
    assert bool(torch.isfinite(step).all())
    assert float((step - expected).norm()) <= 0.05 / 4 * (1 + 1e-3)
    if not math.isfinite(value):
        assert torch.equal(step, expected)


# --- noise --------------------------------------------------------------------------------------


def noise_of(steps, sample_rate=1e-12, sigma=2.0):
    """The noise of each of ``steps`` steps in 40000 parameters that no scan moves."""
    weight = nn.Parameter(torch.zeros(40_000))
    made = plan(clip=0.5, noise_multiplier=sigma, sample_rate=sample_rate, steps=steps)
    optimizer = PatientOptimizer(torch.optim.SGD([weight], lr=1.0), made)
    found, before = [], weight.detach().clone()
    for _ in private_steps(optimizer, [[0]], lambda *_: weight.sum() * 0, made):
        found.append(4 * (before - weight.detach()))
        before = weight.detach().clone()
    return torch.stack(found)


def test_noise_has_its_standard_deviation_and_no_mean():
    noise = noise_of(steps=3, sample_rate=1.0)
    assert float(noise.std()) == pytest.approx(2.0 * 0.5, rel=0.02)
    assert abs(float(noise.mean())) < 5 / math.sqrt(noise.numel())
    assert float(torch.corrcoef(noise)[0, 1]) == pytest.approx(0.0, abs=0.03)


def test_step_without_a_patient_is_noise_and_is_counted():
    noise = noise_of(steps=3)
    assert noise.shape[0] == 3
    assert float(noise.std()) == pytest.approx(2.0 * 0.5, rel=0.02)
    assert plan(steps=3, sample_rate=0.1).event == PrivacyEvent(1e-9, 0.1, 3)


def test_noise_of_a_seed_of_32_bits_could_be_tried_out_so_the_whole_state_is_set():
    seeds = [Generator().manual_seed(s) for s in (7, 7 + 2**32)]
    low = [torch.randn(4, generator=g) for g in seeds]
    assert torch.equal(*low), "PyTorch ignores the upper half of a seed"
    states = {SystemEntropy().noise(torch.device("cpu")).get_state().numpy().tobytes()}
    states.add(SystemEntropy().noise(torch.device("cpu")).get_state().numpy().tobytes())
    assert len(states) == 2
    words = np.frombuffer(states.pop()[24 : 24 + 8 * 624], np.uint64)
    assert len(set(words.tolist())) > 620
    assert int(words.max()) < 2**32


def test_state_that_is_set_is_the_one_that_a_seed_would_set():
    known = Generator().manual_seed(12345)
    words = np.frombuffer(known.get_state().numpy()[24 : 24 + 8 * 624].tobytes(), np.uint64)
    made = private._generator_with_state(words.astype("<u4").tobytes())
    assert torch.equal(torch.randn(2000, generator=known), torch.randn(2000, generator=made))


def test_patients_are_drawn_one_by_one_at_the_rate():
    draws = [SystemEntropy().draw(50, 0.2) for _ in range(2000)]
    sizes = np.array([len(d) for d in draws])
    assert sizes.mean() == pytest.approx(10, abs=5 * math.sqrt(8 / 2000))
    assert sizes.var() == pytest.approx(8, rel=0.2), "a fixed number a step would have none"
    counts = np.bincount(np.concatenate(draws), minlength=50)
    assert counts.min() > 300
    assert all(len(set(d)) == len(d) for d in draws)


# --- training -----------------------------------------------------------------------------------


def test_training_with_noise_leaves_frozen_groups_as_they_came():
    model = network(recompute="norms")
    freeze(model, {"encoder.T1WI", "decoder"}, "all")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    settings = (TrainingConfig(), plan(noise_multiplier=1.0, steps=2))
    summary = train_privately(model, cohort(), settings)
    assert summary.steps == 2
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (group_of(name) in {"encoder.T1WI", "decoder"}), name


def test_only_scales_and_shifts_are_trained():
    model = network()
    freeze(model, GROUPS, "norms")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if ".norm." in n}


def test_without_noise_and_clipping_it_is_plain_adam(seeded_entropy):
    """One patient at every step, and a layout that Adam's fused kernel takes as it lies."""
    scans = PatientScans(cohort().samples, ((0, 1),))
    config = TrainingConfig(keep_probability=1.0, learning_rate=1e-2, proximal_mu=0.5)
    made = plan(clip=1e9, noise_multiplier=1e-30, patients_per_step=1, steps=3)
    model, plain = network(), network()
    train_privately(model, scans, (config, made), entropy=seeded_entropy(0))
    anchor = [p.detach().clone() for p in plain.parameters()]
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2)
    for _ in range(3):
        gradient = oracle(plain, scans, 0).float()
        start = 0
        for parameter, at in zip(plain.parameters(), anchor, strict=True):
            part = gradient[start : start + parameter.numel()].view_as(parameter)
            parameter.grad = part + 0.5 * (parameter.detach() - at)
            start += parameter.numel()
        adam.step()
    assert float((flat(model.parameters()) - flat(plain.parameters())).abs().max()) < 2e-3


def test_scans_are_grouped_by_patient_in_order():
    grouped = PatientScans.grouped([], ["sub-0002", "sub-0001", "sub-0002"])
    assert grouped.by_patient == ((0, 2), (1,))


# --- planted bugs -------------------------------------------------------------------------------


def worst_contribution(entropy, steps=private_steps):
    """Norm of what patient 4, with five scans that agree, adds to a step, in units of C."""
    weight = nn.Parameter(torch.zeros(8))
    made = plan(clip=0.5, patients_per_step=1)
    optimizer = PatientOptimizer(torch.optim.SGD([weight], lr=1.0), made, entropy=entropy)
    list(steps(optimizer, [[3.0] * 5], lambda scan, _: (scan * weight).sum(), made, entropy))
    return float(weight.detach().norm()) / 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_no_clipping_is_seen(seeded_entropy, planted, monkeypatch, seed):
    assert worst_contribution(seeded_entropy(seed)) <= 1 + 1e-4
    planted.plant_no_clipping(monkeypatch, None)
    assert worst_contribution(seeded_entropy(seed)) > 2


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_clipping_of_scans_is_seen(seeded_entropy, planted, seed):
    assert worst_contribution(seeded_entropy(seed), planted.scan_by_scan) > 4


# --- accounting ---------------------------------------------------------------------------------


def test_events_cost_what_other_accountants_say():
    # (sigma, q, steps) -> epsilon at delta 1e-3 by dp-accounting 0.6.0's privacy loss distributions
    known = {(2.0, 0.124, 400): 4.5, (4.0, 0.124, 800): 2.8, (2.0, 0.248, 200): 7.0}
    for event, expected in known.items():
        assert epsilon_of([PrivacyEvent(*event)], 1e-3) == pytest.approx(expected, abs=0.06)


def test_one_step_on_everybody_is_the_gaussian_mechanism():
    """delta(eps) = Phi(1/2s - eps s) - e^eps Phi(-1/2s - eps s) for sensitivity 1, noise s."""
    epsilon = epsilon_of([PrivacyEvent(1.0, 1.0, 1)], 1e-3)

    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    def delta(e):
        return phi(0.5 - e) - math.exp(e) * phi(-0.5 - e)

    assert delta(epsilon) <= 1e-3
    assert delta(epsilon - 0.05) > 1e-3


def test_parts_cost_what_the_whole_costs_and_order_is_nothing():
    whole = epsilon_of([PrivacyEvent(1.5, 0.125, 100), PrivacyEvent(3.0, 0.25, 10)], 1e-3)
    parts = [PrivacyEvent(3.0, 0.25, 10), *[PrivacyEvent(1.5, 0.125, 25)] * 4]
    assert epsilon_of(parts, 1e-3) == whole
    assert epsilon_of([], 1e-3) == 0.0


def test_hopelessly_little_noise_is_bounded_too():
    assert 60 < epsilon_of([PrivacyEvent(0.3, 0.25, 200)], 1e-3) < math.inf


def test_least_noise_fits_the_budget_and_less_does_not():
    noise = noise_multiplier_for(8.0, 1e-3, sample_rate=0.125, steps=100)
    assert epsilon_of([PrivacyEvent(noise, 0.125, 100)], 1e-3) <= 8.0
    assert epsilon_of([PrivacyEvent(noise - 0.01, 0.125, 100)], 1e-3) > 8.0


@pytest.mark.parametrize("values", [(0.0, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 0.1, 0)])
def test_impossible_events_are_refused(values):
    with pytest.raises(ValueError, match="needed"):
        PrivacyEvent(*values)


def test_convolution_that_fails_leaves_the_other_bound(monkeypatch):
    from opacus.accountants import PRVAccountant

    event = PrivacyEvent(2.0, 0.125, 50)
    both = epsilon_of([event], 1e-3)

    def fail(*_, **__):
        raise RuntimeError("discrete mean differs significantly from continuous mean")

    monkeypatch.setattr(PRVAccountant, "get_epsilon", fail)
    assert both < epsilon_of([event], 1e-3) < 1.5 * both

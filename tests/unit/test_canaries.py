"""The audit: silent on what is right, loud on every planted bug, in five seeds of five."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

import client.canaries as canaries
import client.privacy as private
from client.audit_command import AuditError
from client.canaries import audit_noise, epsilon_bound, p_value
from client.cli import main
from client.membership import membership_from
from client.privacy import NoisePlan, patient_gradient
from sites.config import SITE_FILE

SEEDS = range(5)
PLAN = NoisePlan(clip=0.5, noise_multiplier=0.8, sample_rate=0.25, patients_per_step=16, steps=100)


def audited(entropy):
    return audit_noise(PLAN, canaries=300, entropy=entropy)


@pytest.mark.parametrize("seed", SEEDS)
def test_clean_training_is_not_accused(seeded_entropy, seed):
    found = audited(seeded_entropy(seed))
    assert found.violations == ()
    assert found.steps == math.ceil((0.8 / 0.25) ** 2)
    assert found.measured_mu == pytest.approx(found.expected_mu, abs=found.mu_margin)
    assert 0 < found.least_epsilon < found.claimed_epsilon


def keep_whole(self):
    for p in self.params:
        total = p.grad_sample.sum(dim=0)
        p.summed_grad = total if p.summed_grad is None else p.summed_grad + total


def scan_by_scan(optimizer, patients, scan_loss, plan, entropy):
    for _ in range(plan.steps):
        for number in entropy.draw(len(patients), plan.sample_rate):
            for one in patients[number]:
                patient_gradient([one], scan_loss, entropy, number)
                optimizer.add()
        optimizer.step()
        yield 0.0


def plant_no_clipping(patch, entropy):
    patch.setattr(private.DPOptimizer, "clip_and_accumulate", keep_whole)


def plant_clipping_of_scans(patch, entropy):
    patch.setattr(canaries, "private_steps", scan_by_scan)


def plant_no_sampling(patch, entropy):
    draw = entropy.draw
    patch.setattr(entropy, "draw", lambda self, patients, rate: draw(self, patients, 1.0))


def plant_the_same_noise_at_every_step(patch, entropy):
    patch.setattr(entropy, "noise", lambda self, device: torch.Generator().manual_seed(self.seed))


def plant_half_the_noise(patch, entropy):
    import opacus.optimizers.optimizer as module

    whole = module._generate_noise
    patch.setattr(module, "_generate_noise", lambda std, **rest: whole(std=std / 2, **rest))


BUGS = [
    plant_no_clipping,
    plant_clipping_of_scans,
    plant_no_sampling,
    plant_half_the_noise,
    plant_the_same_noise_at_every_step,
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("plant", BUGS)
def test_planted_bug_is_found(seeded_entropy, monkeypatch, plant, seed):
    plant(monkeypatch, seeded_entropy)
    assert audited(seeded_entropy(seed)).violations


def test_p_value_without_delta_is_the_binomial_tail():
    for epsilon, correct in ((0.0, 7), (1.0, 9), (2.0, 10)):
        accuracy = math.exp(epsilon) / (1 + math.exp(epsilon))
        tail = sum(binom.pmf(k, 10, accuracy) for k in range(correct, 11))
        assert p_value(40, 10, correct, epsilon=epsilon, delta=0.0) == pytest.approx(tail)


def test_p_value_with_delta_by_hand():
    """One guess of one canary at epsilon 0: P[right] = 1/2, and P[v - 1 <= X < v] / 1 = 1/2."""
    assert p_value(1, 1, 1, epsilon=0.0, delta=0.1) == pytest.approx(0.5 + 2 * 0.1 * 0.5)
    assert p_value(1, 1, 0, epsilon=0.0, delta=0.1) == 1.0


def test_bound_of_perfect_guesses_is_the_most_there_can_be():
    """0.05 = (e^eps / (1 + e^eps))^100."""
    accuracy = 0.05**0.01
    bound = epsilon_bound(100, 100, 100, delta=0.0, significance=0.05)
    assert bound == pytest.approx(math.log(accuracy / (1 - accuracy)), abs=1e-6)
    assert epsilon_bound(100, 100, 50, delta=0.0, significance=0.05) == 0.0


def test_randomised_response_of_known_epsilon_is_seldom_refuted():
    generator = np.random.default_rng(0)
    refuted = 0
    for _ in range(200):
        correct = int(generator.binomial(200, math.e / (1 + math.e)))
        refuted += epsilon_bound(200, 200, correct, delta=0.0, significance=0.05) > 1.0
    assert refuted <= 20  # 10 expected at most


def test_too_few_canaries_are_refused():
    with pytest.raises(ValueError, match="20"):
        audit_noise(PLAN, canaries=10)


def test_membership_of_losses():
    """Of 4 x 3 pairs, 10 have the member's loss below the other's."""
    attack = membership_from([0.1, 0.2, 0.3, 0.6], [0.4, 0.5, 0.7])
    assert attack.area.value == pytest.approx(10 / 12)
    assert attack.area.low < 10 / 12 < attack.area.high
    assert (attack.members, attack.others) == (4, 3)


def site(tmp_path, privacy):
    text = f'name = "site-a"\nmanifest = "manifest.csv"\n{privacy}'
    (tmp_path / SITE_FILE).write_text(text)
    return tmp_path / SITE_FILE


NOISY = '[privacy]\ntier = "formal"\nnoise_multiplier = 0.8\nsample_rate = 0.25\n'


def test_audit_command_says_what_it_found_and_that_it_is_no_proof(call, tmp_path):
    path = site(tmp_path, NOISY)
    code, out, _ = call(main, "--site", path, "audit", "--canaries", "300", "--json")
    assert code == 0
    found = json.loads(out)["canaries"]
    assert found["least_epsilon"] < found["claimed_epsilon"]
    code, out, _ = call(main, "--site", path, "audit", "--canaries", "300")
    assert (code, "no proof" in out) == (0, True)


def test_audit_command_ends_with_1_if_the_noise_is_too_little(call, tmp_path, monkeypatch):
    plant_half_the_noise(monkeypatch, None)
    code, _, err = call(main, "--site", site(tmp_path, NOISY), "audit", "--canaries", "300")
    assert code == AuditError.exit_code
    assert "refutes the claimed" in err


def test_audit_command_with_nothing_to_audit(call, tmp_path):
    code, _, err = call(main, "--site", site(tmp_path, ""), "audit")
    assert (code, "privacy.tier" in err) == (3, True)
    assert torch.is_grad_enabled()

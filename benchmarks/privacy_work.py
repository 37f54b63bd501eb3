"""One unit of the benchmarks of privacy: a network trained at an epsilon, measured and attacked.

Everything is a phantom on the grid of the ``tiny`` preset, a scan a patient. All settings but the
noise are the same for every epsilon; nothing was tuned to a result. Epsilon ``inf`` is the same
loop over patients without clipping and noise.
"""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from gradient_inversion import MODALITIES, rebuilt
from phantom_hospital import hospital

from client.accounting import noise_multiplier_for
from client.combinations import score_combination, scored_scans
from client.membership import membership_from, patient_losses
from client.privacy import NoisePlan, PatientScans, freeze, train_privately
from iedn.config import PRESETS, TrainingConfig
from iedn.modalities import Modality
from iedn.model import Network, build_network, set_recompute
from iedn.parameters import groups_of_network
from iedn.training import train
from sites.dataset import PreparedCohort

Epsilon = Literal["inf", "100", "10", "8", "3", "0"]
EPSILONS: tuple[Epsilon, ...] = ("inf", "100", "10", "8", "3")
ATTACKED: tuple[Epsilon, ...] = ("inf", "100", "8")
UNTRAINED: Epsilon = "0"
"""Not trained on these patients at all: what a decoder begins with."""
PATIENTS_PER_STEP, CLIP, DELTA, LEARNING_RATE = 8, 0.5, 1e-3, 3e-3
PUBLIC_PATIENTS, BASE_STEPS = 24, 300
FEW_PATIENTS = 12
TRAIN_SHARE = 0.8
MEASURES = {"ssim_percent": "SSIM %", "psnr_db": "PSNR dB", "lesion_error": "lesion rCBV error"}


@dataclass(frozen=True)
class Mode:
    """What is trained.

    Attributes:
        title: as the page names it.
        preset: whose network it is.
        cohort: ``many`` patients, or a ``few`` that a network can learn by heart.
        part: all of the network from nothing, or the decoder of one trained on other phantoms.
    """

    title: str
    preset: Literal["tiny", "demo"]
    cohort: Literal["many", "few"] = "many"
    part: Literal["all", "decoder"] = "all"


MODES = {
    "tiny": Mode("`tiny`, from nothing", "tiny"),
    "demo": Mode("network of `demo`, from nothing", "demo"),
    "decoder": Mode("`tiny`, decoder only", "tiny", part="decoder"),
    "few": Mode(f"`tiny`, from nothing, {FEW_PATIENTS} patients", "tiny", cohort="few"),
}
INVERSION = "inversion"


@dataclass(frozen=True)
class Unit:
    """Trained or attacked once; ``mode`` is a key of ``MODES``, or ``inversion``."""

    mode: str
    epsilon: Epsilon
    seed: int


@dataclass(frozen=True)
class Settings:
    """Of all units.

    Attributes:
        folder: where cohorts and finished units are.
        patients: of the cohort of many, of which 4 in 5 train.
        steps: of every training.
        inversion_steps: of the attack.
    """

    folder: Path
    patients: int
    steps: int
    inversion_steps: int


def run_unit(unit: Unit, settings: Settings) -> dict[str, object]:
    """A record of the unit: its noise, what it reached, and seconds of CPU."""
    started = time.process_time()
    measure = _inversion if unit.mode == INVERSION else _training
    found = measure(unit, settings)
    names = {"mode": unit.mode, "epsilon": unit.epsilon, "seed": unit.seed}
    return {**names, **found, "cpu_s": round(time.process_time() - started, 1)}


def epsilons_of(mode: str) -> tuple[Epsilon, ...]:
    """All of them; for a network that knew something before, not to train it besides.

    What is there only for the attacks is done at three.
    """
    if mode == INVERSION or MODES[mode].cohort == "few":
        return ATTACKED
    return (*EPSILONS, UNTRAINED) if MODES[mode].part == "decoder" else EPSILONS


def cohort_of(mode: Mode, settings: Settings) -> PreparedCohort:
    """The private cohort; made at the first call, then read."""
    if mode.cohort == "few":
        return hospital(settings.folder / "few", patients=2 * FEW_PATIENTS, train=0.5, seed=6)
    folder = settings.folder / f"many-{settings.patients}"
    return hospital(folder, patients=settings.patients, train=TRAIN_SHARE, seed=5)


@cache
def noise_plan(epsilon: Epsilon, patients: int, steps: int) -> NoisePlan:
    """What a site with so many training patients would do at ``epsilon``; the search is slow."""
    rate = PATIENTS_PER_STEP / patients
    noise = 1e-30
    if epsilon != "inf":
        noise = noise_multiplier_for(float(epsilon), DELTA, sample_rate=rate, steps=steps)
    return NoisePlan(
        clip=1e9 if epsilon == "inf" else CLIP,
        noise_multiplier=noise,
        sample_rate=rate,
        patients_per_step=PATIENTS_PER_STEP,
        steps=steps,
    )


def _training(unit: Unit, settings: Settings) -> dict[str, object]:
    mode = MODES[unit.mode]
    cohort = cohort_of(mode, settings)
    model = _untrained(mode, settings, unit.seed)
    if unit.epsilon == UNTRAINED:
        return {"sigma": 0.0, **_measured(model, cohort)}
    scans = PatientScans.grouped(cohort.train, [r.patient_id for r in cohort.train.records])
    plan = noise_plan(unit.epsilon, len(scans.by_patient), settings.steps)
    train_privately(model, scans, (_config(settings.steps), plan))
    return {"sigma": _sigma(plan), **_measured(model, cohort)}


def _untrained(mode: Mode, settings: Settings, seed: int) -> Network:
    network = PRESETS[mode.preset].network
    if mode.part == "decoder":
        model, groups = _public_network(settings), {"decoder"}
    else:
        model, groups = build_network(network, seed=100 + seed), set(groups_of_network(network))
    set_recompute(model, "norms")
    freeze(model, groups, "all")
    return model


def _public_network(settings: Settings) -> Network:
    """Trained without noise on other phantoms; the same at every call."""
    model = build_network(PRESETS["tiny"].network, seed=1)
    kept = settings.folder / "public.pt"
    if kept.exists():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model
    public = hospital(settings.folder / "public", patients=PUBLIC_PATIENTS, train=1.0, seed=77)
    set_recompute(model, "norms")
    train(model, public.train, _config(BASE_STEPS), seed=1)
    torch.save(model.state_dict(), kept)
    return model


def prepare(settings: Settings, modes: Iterable[str]) -> None:
    """Make what several units read, before they run side by side."""
    for mode in (MODES[name] for name in modes if name != INVERSION):
        cohort_of(mode, settings)
        if mode.part == "decoder":
            _public_network(settings)


def _config(steps: int) -> TrainingConfig:
    return TrainingConfig(local_steps=steps, learning_rate=LEARNING_RATE)


def _measured(model: Network, cohort: PreparedCohort) -> dict[str, object]:
    """Quality on held-out patients, and how well losses tell them from training patients."""
    model.eval()
    numbers = scored_scans(cohort.test, [tuple(Modality)])
    scores = score_combination(model, cohort.test, numbers, tuple(Modality))
    inside, outside = patient_losses(model, cohort.train), patient_losses(model, cohort.test)
    return {
        **{name: _mean(getattr(s, name) for s in scores) for name in MEASURES},
        "membership": round(membership_from(inside, outside).area.value, 4),
        "train": len(inside),
        "test": len(outside),
    }


def _inversion(unit: Unit, settings: Settings) -> dict[str, object]:
    """One patient's images rebuilt from one step, at the noise of the training of ``few``."""
    cohort = cohort_of(MODES["few"], settings)
    plan = noise_plan(unit.epsilon, FEW_PATIENTS, settings.steps)
    noise = 0.0 if unit.epsilon == "inf" else plan.noise_multiplier
    found = rebuilt(cohort.train[unit.seed], noise, settings.inversion_steps, clip=CLIP)
    return {"sigma": _sigma(plan), **{m.value: found[m] for m in MODALITIES}}


def _sigma(plan: NoisePlan) -> float:
    return 0.0 if plan.noise_multiplier < 1e-9 else round(plan.noise_multiplier, 3)


def _mean(values: Iterable[float | None]) -> float:
    known = [v for v in values if v is not None]
    return round(statistics.fmean(known), 4) if known else float("nan")

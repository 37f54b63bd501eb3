"""One unit of the benchmark of federated synthesis: a method, trained and tested.

All methods make the same number of optimiser steps on the same scans: each site makes
``rounds x local_steps``, alone or in a federation, and the pooled model as many as all sites
together. Training and aggregation are the product's own functions, without the exchange between.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from federated_units import ASL_SITES, SETTINGS, SIX, SUBSETS, Settings, Unit

from client.combinations import score_combination
from client.training import network_from
from iedn.batching import restrict
from iedn.config import NetworkConfig, TrainingConfig
from iedn.evaluation.combination_table import ScanScore
from iedn.evaluation.combinations import Combination
from iedn.modalities import Modality
from iedn.model import Network, build_network
from iedn.parameters import groups_for, state_by_group
from iedn.sample import IednSample
from iedn.seeding import derive_seed
from iedn.training import train
from server.aggregation import Float32Groups, StreamingSum, Update, apply_step
from server.optimizers import Moments, server_step
from simulation.prepare import prepare_sites
from simulation.scenario import ScenarioConfig, load_scenario
from sites.config import SITE_FILE, PolicyConfig, load_site_config
from sites.dataset import ScanDataset, prepare_cohort
from sites.egress import coarsen

CURVE_PATIENTS = 2
"""Of each site, whose first scans are tested after every round."""


@dataclass(frozen=True)
class Site:
    """A site's scans: those it trains on, as it has them, and those it is tested on."""

    train: tuple[IednSample, ...]
    test: ScanDataset

    @property
    def owned(self) -> tuple[Modality, ...]:
        return tuple(m for m in Modality if any(m in s.images for s in self.train))

    def declared(self, group: str) -> int:
        """Training scans behind a group, rounded as a site rounds them."""
        modality = group.removeprefix("encoder.")
        behind = [s for s in self.train if group == "decoder" or modality in s.images]
        return coarsen(len(behind), PolicyConfig().count_step)


Sites = Mapping[str, Site]


def load_sites(folder: Path, scenario: ScenarioConfig, unit: Unit) -> Sites:
    """The unit's cohorts; generated and prepared at the first call, then read."""
    changed = {
        name: site.model_copy(
            update={"phantom": site.phantom.model_copy(update={"lesions": unit.lesions})}
        )
        for name, site in scenario.sites.items()
    }
    scenario = scenario.model_copy(update={"sites": changed})
    out = folder / unit.lesions
    names = prepare_sites(scenario, out, cohorts=folder / "cohorts", workers=1)
    grid = scenario.federation().effective_preset.grid
    sites: dict[str, Site] = {}
    for number, name in enumerate(names):
        config = load_site_config(out / "sites" / name / SITE_FILE)
        cohort = prepare_cohort(config, grid)
        scans = [cohort.train[i] for i in range(len(cohort.train))]
        if number >= ASL_SITES[unit.asl]:
            scans = [restrict(scan, SUBSETS["without ASL"]) for scan in scans]
        sites[name] = Site(tuple(scans), cohort.test)
    return sites


def run_unit(unit: Unit, folder: Path, scenario_file: Path) -> dict[str, Any]:
    """Train and test one unit; a record without arrays."""
    started, cpu = time.monotonic(), time.process_time()
    scenario = load_scenario(str(scenario_file))
    sites = load_sites(folder, scenario, unit)
    loaded = time.process_time()
    record = (_run_local if unit.method == "local" else _run_shared)(unit, sites, scenario)
    return {
        "unit": asdict(unit),
        **record,
        "loading_cpu_s": round(loaded - cpu, 1),
        "cpu_s": round(time.process_time() - loaded, 1),
        "wall_s": round(time.monotonic() - started, 1),
    }


def _run_shared(unit: Unit, sites: Sites, scenario: ScenarioConfig) -> dict[str, Any]:
    network = scenario.federation().effective_preset.network
    curve = []
    trace = pooled if unit.method == "pooled" else federated
    for number, state in trace(unit, sites, scenario, SETTINGS[unit.method]):
        model = network_from(state, network)
        scores = [s for part in sites.values() for s in _scores(model, part.test, SIX, first=True)]
        curve.append([number, _mean(scores, "psnr_db"), _mean(scores, "ssim_percent")])
    return {
        "curve": curve,
        "rows": [
            row
            for name, site in sites.items()
            for subset, inputs in SUBSETS.items()
            for row in _rows("shared", name, subset, _scores(model, site.test, inputs))
        ],
    }


def _run_local(unit: Unit, sites: Sites, scenario: ScenarioConfig) -> dict[str, Any]:
    """Every site's own model, on its own held-out scans by inputs, and at all other sites."""
    network = scenario.federation().effective_preset.network
    steps = scenario.rounds.count * scenario.training.local_steps
    training = scenario.training.model_copy(update={"local_steps": steps})
    rows = []
    for name, site in sites.items():
        own = network.model_copy(update={"modalities": site.owned})
        model = build_network(own, unit.seed)
        _train_at_once(model, site.train, training, seed=_own_seed(unit, name))
        for other, tested in sites.items():
            for subset, inputs in SUBSETS.items():
                if other == name or subset == "all six":
                    rows += _rows(name, other, subset, _scores(model, tested.test, inputs))
    return {"curve": [], "rows": rows}


def pooled(
    unit: Unit, sites: Sites, scenario: ScenarioConfig, settings: Settings
) -> Iterator[tuple[int, Float32Groups]]:
    """One model on the scans of all sites; its state after as many steps as a round has."""
    scenario = settings.applied(scenario)
    a_round = scenario.training.local_steps * len(sites)
    steps = a_round * scenario.rounds.count
    training = scenario.training.model_copy(update={"local_steps": steps})
    model = build_network(scenario.federation().effective_preset.network, unit.seed)
    scans = [scan for site in sites.values() for scan in site.train]
    states: list[Float32Groups] = []

    def keep(step: int) -> None:
        if step % a_round == 0:
            states.append(state_by_group(model))

    _train_at_once(model, scans, training, seed=_own_seed(unit, "pooled"), keep=keep)
    yield from enumerate(states, start=1)


def federated(
    unit: Unit, sites: Sites, scenario: ScenarioConfig, settings: Settings
) -> Iterator[tuple[int, Float32Groups]]:
    """The global model after every round."""
    scenario = settings.applied(scenario)
    network, training = scenario.federation().effective_preset.network, scenario.training
    state: Float32Groups = state_by_group(build_network(network, unit.seed))
    moments: Moments = {}
    for number in range(1, scenario.rounds.count + 1):
        shapes = {g: {n: a.shape for n, a in t.items()} for g, t in state.items()}
        total = StreamingSum(shapes, settings.aggregation)
        for name, site in sites.items():
            seed = derive_seed(unit.seed, round_number=number, site=name, purpose="training")
            total.add(_update(state, site, network, training, seed))
        step, moments = server_step(total.mean_deltas(), moments, settings.optimizer)
        state = apply_step(state, step)
        yield number, state


def _update(
    state: Float32Groups, site: Site, network: NetworkConfig, training: TrainingConfig, seed: int
) -> Update:
    groups = {g: state[g] for g in groups_for(site.owned)}
    model = network_from(groups, network)
    train(model, site.train, training, seed=seed)
    after = state_by_group(model)
    return Update(
        deltas={g: {n: after[g][n] - a for n, a in t.items()} for g, t in groups.items()},
        weights={g: site.declared(g) for g in groups},
        site_weight=site.declared("decoder"),
    )


def _train_at_once(
    model: Network,
    scans: Sequence[IednSample],
    training: TrainingConfig,
    *,
    seed: int,
    keep: Callable[[int], None] = lambda _: None,
) -> None:
    """A model that is not averaged has no reason to reset its optimiser."""
    train(model, scans, training, seed=seed, progress=lambda step, _: keep(step))


def _own_seed(unit: Unit, name: str) -> int:
    return derive_seed(unit.seed, round_number=0, site=name, purpose="training")


def _scores(
    model: Network, dataset: ScanDataset, inputs: Combination, *, first: bool = False
) -> list[ScanScore]:
    numbers = list(range(len(dataset)))
    if first:
        of_patients: dict[str, int] = {}
        for number, record in enumerate(dataset.records):
            of_patients.setdefault(record.patient_id, number)
        numbers = sorted(of_patients.values())[:CURVE_PATIENTS]
    return score_combination(model, dataset, numbers, inputs)


def _rows(model: str, site: str, subset: str, scores: Sequence[ScanScore]) -> list[dict[str, Any]]:
    return [{"model": model, "site": site, "subset": subset, **asdict(_rounded(s))} for s in scores]


def _rounded(score: ScanScore) -> ScanScore:
    error = score.lesion_error
    return replace(
        score,
        psnr_db=round(score.psnr_db, 5),
        ssim_percent=round(score.ssim_percent, 5),
        lesion_error=None if error is None else round(error, 5),
    )


def _mean(scores: Sequence[ScanScore], metric: str) -> float:
    return round(float(np.mean([getattr(s, metric) for s in scores])), 5)

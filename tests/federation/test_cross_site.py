"""The cross-site matrix: every site's own best model, and the federated one, at every site."""

import json
from pathlib import Path

import pytest
import torch

from client.training import network_from
from iedn.evaluation.metrics import psnr
from iedn.inference import synthesize
from iedn.parameters import flatten, state_hash
from server.config import load_federation
from server.run_folder import RunFolder
from simulation.cross_site import CROSS_SITE, best_local_model, mean_psnr, write_cross_site
from simulation.engine import run_in_process
from simulation.prepare import prepare_run
from simulation.results import cohort_of
from simulation.scenario import load_scenario


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("cross") / "run"
    scenario = load_scenario("smoke")
    config = prepare_run(scenario, out, cohorts=out.parent / "cohorts", seed=None, workers=1)
    run_in_process(out, config, workers=1)
    return out, load_federation(out / "federation.toml")


def test_matrix_of_all_models_at_all_sites(finished):
    out, config = finished
    matrix = write_cross_site(out, config)
    trainers = sorted(n for n, entry in config.sites.items() if entry.role == "train")
    assert list(matrix) == [*trainers, "federated"]
    assert all(list(means) == trainers for means in matrix.values())
    assert json.loads((out / CROSS_SITE).read_text())["models"] == matrix
    # By hand: the federated model on the first site's held-out scans.
    model, _, _ = RunFolder(out, config).load_best()
    network = network_from(model, config.effective_preset.network)
    test = cohort_of(out, config, trainers[0]).test
    values = []
    for number in range(len(test)):
        scan = test[number]
        made = synthesize(network, scan, flip_average=config.flip_average)
        values.append(psnr(scan.cbv[0].numpy(), made.cbv[0].numpy(), scan.brain_mask[0].numpy()))
    assert matrix["federated"][trainers[0]] == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_local_model_is_the_best_of_its_own_validation(finished):
    out, config = finished
    name = sorted(n for n, entry in config.sites.items() if entry.role == "train")[0]
    cohort = cohort_of(out, config, name)
    best = best_local_model(name, cohort, config)
    shorter = config.model_copy(update={"rounds": config.rounds.model_copy(update={"count": 1})})
    first = best_local_model(name, cohort, shorter)
    quality = [mean_psnr(m, cohort.validation, config, task="t") for m in (best, first)]
    assert quality[0] >= quality[1]
    assert set(best.config.modalities) == set(cohort.counts)
    assert all(torch.isfinite(p).all() for p in best.parameters())


def test_the_benchmark_trains_what_the_product_trains(finished, monkeypatch):
    """Its loop without messages and files ends in the very model of the run, bit for bit."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from federated_units import Settings, Unit
    from federated_work import Site, federated

    out, config = finished
    sites = {}
    for name in sorted(n for n, entry in config.sites.items() if entry.role == "train"):
        cohort = cohort_of(out, config, name)
        scans = tuple(cohort.train[i] for i in range(len(cohort.train)))
        sites[name] = Site(scans, cohort.test)
    scenario = load_scenario("smoke")
    unit = Unit("default", "all", "modality-aware", config.seed)
    *_, (number, state) = federated(unit, sites, scenario, Settings())
    commit = RunFolder(out, config).last_commit()
    assert number == commit["round"] == config.rounds.count
    assert state_hash(flatten(state)) == commit["model_hash"]

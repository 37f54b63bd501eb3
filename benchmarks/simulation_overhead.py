"""What the in-process engine costs besides the computing it is there for.

A scenario's training sites run a federation in this process: messages, gates, exact sums, commits,
release logs, everything but the report at the end. In turns with it, the same steps and the same
evaluations are made bare: `train` and `evaluate_scans` called one after the other, on the same
scans with the same seeds, by networks that are already there. One site at a time, one thread.
Prints one JSON object with medians; wall and CPU seconds, paired.

    python benchmarks/simulation_overhead.py --scenario demo --rounds 2 --pairs 5
"""

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from speed_work import compared, machine, paired

import server.app
from client.evaluation import evaluate_scans
from client.training import network_from
from iedn.model import Network
from iedn.parameters import groups_for
from iedn.seeding import derive_seed
from iedn.training import train
from server.config import FederationConfig
from server.run_folder import RunFolder
from simulation.engine import run_in_process
from simulation.prepare import prepare_run
from simulation.results import cohort_of
from simulation.scenario import ScenarioConfig, load_scenario
from sites.dataset import PreparedCohort


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="demo")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of a site and round; default: the scenario's")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cohorts", type=Path, help="phantoms, kept for the next time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(server.app, "write_report"):
        print(json.dumps(_report(Path(folder), arguments), indent=1))


def _report(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    scenario = _scenario(arguments)
    cohorts = arguments.cohorts or folder / "cohorts"
    number = 0

    def prepared() -> tuple[Path, FederationConfig]:
        nonlocal number
        number += 1
        out = folder / f"run-{number}"
        return out, prepare_run(scenario, out, cohorts=cohorts, seed=None, workers=1)

    first, config = prepared()
    run_in_process(first, config, workers=1)  # scans into the cache, and the model to start from
    bare = _bare_work(first, config)

    def engine() -> None:
        out, again = prepared()
        run_in_process(out, again, workers=1)

    def preparing() -> None:
        prepared()

    runs: dict[str, Callable[[], object]] = {
        "bare": bare,
        "engine_with_preparing": engine,
        "preparing": preparing,
    }
    times = paired(runs, arguments.pairs)
    times["engine"] = {
        kind: [
            a - b
            for a, b in zip(
                times["engine_with_preparing"][kind], times["preparing"][kind], strict=True
            )
        ]
        for kind in ("wall_s", "cpu_s")
    }
    found = compared({name: times[name] for name in ("bare", "engine")}, "bare")
    sites = len(config.sites)
    return {
        "machine": machine(),
        "work": f"{scenario.name}: {sites} sites, {config.rounds.count} rounds of "
        f"{config.training.local_steps} steps, batch {config.training.batch_size}",
        "pairs": arguments.pairs,
        "times": found,
    }


def _scenario(arguments: argparse.Namespace) -> ScenarioConfig:
    """Training sites only, all of which have to take part."""
    scenario = load_scenario(arguments.scenario)
    trainers = {name: site for name, site in scenario.sites.items() if site.role == "train"}
    rounds = {"count": arguments.rounds, "quorum": len(trainers)}
    training = {} if arguments.steps is None else {"local_steps": arguments.steps}
    return scenario.model_copy(
        update={
            "sites": trainers,
            "rounds": scenario.rounds.model_copy(update=rounds),
            "training": scenario.training.model_copy(update=training),
        }
    )


def _bare_work(out: Path, config: FederationConfig) -> Callable[[], None]:
    """The steps and evaluations of a whole run, with everything else done beforehand."""
    model, _, _ = RunFolder(out, config).load_best()
    cohorts: dict[str, PreparedCohort] = {s: cohort_of(out, config, s) for s in config.sites}
    network = config.effective_preset.network

    def network_of(site: str) -> Network:
        groups = {g: model[g] for g in groups_for(cohorts[site].counts) if g in model}
        return network_from(groups, network)

    ready = {site: network_of(site) for site in config.sites}

    def evaluate(site: str, split: str) -> None:
        evaluate_scans(
            ready[site],
            getattr(cohorts[site], split),
            task="bare",
            flip_average=config.flip_average,
            device=torch.device("cpu"),
        )

    def work() -> None:
        for number in range(1, config.rounds.count + 1):
            for site in config.sites:
                seed = derive_seed(config.seed, round_number=number, site=site, purpose="training")
                train(copies[number][site], cohorts[site].train, config.training, seed=seed)
            for site in config.sites:
                evaluate(site, "validation")
        for site in config.sites:
            evaluate(site, "test")

    copies = {
        number: {site: copy.deepcopy(ready[site]) for site in config.sites}
        for number in range(1, config.rounds.count + 1)
    }
    return work


if __name__ == "__main__":
    main()

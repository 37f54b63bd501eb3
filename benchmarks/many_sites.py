"""Peak memory and time of one round with many virtual sites in one process.

The scenario `many-sites` (sites that share the scans of a small phantom cohort, tiny volumes) with
the numbers of sites that are asked for, each in a process of its own: joining, one round of
training, validation and test at every site. Prints one JSON object: the peak resident set, the
sessions alive at the end of each message at most, and the seconds.

    python benchmarks/many_sites.py --sites 100 1000 --steps 2
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from server_memory import resident
from speed_work import machine

import client.session
import server.app
from server.run_folder import RunFolder
from simulation.engine import run_in_process
from simulation.prepare import prepare_run
from simulation.scenario import load_scenario


def measure(num_sites: int, steps: int, workers: int, cohorts: Path) -> dict[str, object]:
    """One run in this process."""
    scenario = load_scenario("many-sites")
    assert scenario.virtual is not None
    scenario = scenario.model_copy(
        update={
            "virtual": scenario.virtual.model_copy(update={"count": num_sites}),
            "rounds": scenario.rounds.model_copy(update={"quorum": num_sites}),
            "training": scenario.training.model_copy(update={"local_steps": steps}),
        }
    )
    torch.set_num_threads(1)
    most = 0
    session_for = client.session.Sessions.of

    def watched(sessions: client.session.Sessions, site_file: Path) -> client.session.SiteSession:
        nonlocal most
        session = session_for(sessions, site_file)
        most = max(most, len(sessions))
        return session

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(client.session.Sessions, "of", watched),
        mock.patch.object(server.app, "write_report"),
    ):
        started = time.monotonic()
        out = Path(folder) / "run"
        config = prepare_run(scenario, out, cohorts=cohorts, seed=None, workers=workers)
        prepared, before = time.monotonic(), resident("VmRSS")
        run_in_process(out, config, workers=workers)
        ended = time.monotonic()
        events = RunFolder(out, config).events()
    accepted = [
        sum(s["status"] == "accepted" for s in e["roster"].values())
        for e in events
        if e["event"] in ("commit", "evaluation") and e["round"] > 0
    ]
    return {
        "sites": num_sites,
        "accepted_in_round_validation_test": accepted,
        "before_the_run_mb": round(before, 1),
        "peak_mb": round(resident("VmHWM"), 1),
        "most_sessions": most,
        "preparing_s": round(prepared - started, 1),
        "run_s": round(ended - prepared, 1),
        "model_hash": events[-1]["model_hash"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cohorts", type=Path, help="phantoms, kept for the next time")
    parser.add_argument("--case", type=int, help="measure this process with so many sites")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cohorts = arguments.cohorts or Path(folder)
        if arguments.case:
            found = measure(arguments.case, arguments.steps, arguments.workers, cohorts)
            print(json.dumps(found))
            return
        cases = [_in_fresh_process(arguments, n, cohorts) for n in arguments.sites]
    print(json.dumps({"machine": machine(), "steps": arguments.steps, "cases": cases}, indent=1))


def _in_fresh_process(
    arguments: argparse.Namespace, num_sites: int, cohorts: Path
) -> dict[str, object]:
    words = ["--case", str(num_sites), "--steps", str(arguments.steps)]
    words += ["--workers", str(arguments.workers), "--cohorts", str(cohorts)]
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603  (this script)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()

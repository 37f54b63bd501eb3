"""Federations of real processes behind bad links: seconds a phase, bytes each way.

One training site behind a relay; each case ends with the model of the undisturbed in-process run.
Prints one JSON object a case. Run from the repository's root:

    PYTHONPATH=. python benchmarks/links.py tiny large outage
"""

import argparse
import json
import re
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from server.run_folder import HISTORY
from sites.release_log import verify
from tests.deployment import TIMEOUT_S, Deployment, deployment, scenario, wait_until
from tests.system.throttle import Condition, Relay

SITE = "site-a"
PATIENCE_S = 3 * TIMEOUT_S
LARGE = {
    "grid": {"rows": 32, "columns": 32, "spacing_mm": 6.875},
    "network": {"base_channels": 8, "depth": 4},
}
TRAINED = re.compile(r"round (\d+): mean loss")


@dataclass
class Case:
    """A running federation with a relay before its only site."""

    deployed: Deployment
    relay: Relay

    def trainings(self) -> list[int]:
        """The rounds that the site has trained, as often as it did."""
        return [int(n) for n in TRAINED.findall(self.deployed.log(SITE))]

    def accepted(self) -> int:
        """Updates that the coordinator has taken."""
        return self.deployed.log("server").count("update accepted")

    def releases(self) -> list[str]:
        """What has left the site, one entry each time."""
        path = self.deployed.kit(SITE) / "releases.jsonl"
        return [str(entry["kind"]) for entry in verify(path)] if path.exists() else []

    def node_log(self) -> str:
        """What the site's Flower node has printed."""
        path = self.deployed.kit(SITE) / "node" / "node.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


@contextmanager
def behind_a_link(folder: Path, content: dict[str, object], mbit_per_s: float) -> Iterator[Case]:
    """A federation of one training site that reaches its coordinator through a relay."""
    with deployment(folder, content) as deployed:
        relay = Relay(deployed.port, mbit_per_s)
        relay.start()
        set_coordinator(deployed, address=f"localhost:{relay.port}")
        try:
            yield Case(deployed, relay)
        finally:
            deployed.stop_all()
            relay.close()


def set_coordinator(deployed: Deployment, **changes: object) -> None:
    """Change the site's ``[coordinator]``."""
    path = deployed.kit(SITE) / "site.toml"
    own = tomllib.loads(path.read_text(encoding="utf-8"))
    own["coordinator"] |= changes
    path.write_text(tomli_w.dumps(own), encoding="utf-8")


def one_site(*, rounds: int, **changes: object) -> dict[str, object]:
    """The scenario of these cases: one training site and nobody else."""
    content = scenario(rounds=rounds, trainers=(SITE,))
    sites = content["sites"]
    assert isinstance(sites, dict)
    content["sites"] = {SITE: sites[SITE]}
    if "custom_preset" in changes:
        del content["preset"]
    return content | changes


def tiny_at_4_mbit(folder: Path) -> dict[str, object]:
    """The smallest model over a link of 4 Mbit/s."""
    return undisturbed(folder, one_site(rounds=2), 4.0)


def large_at_30_mbit(folder: Path) -> dict[str, object]:
    """A model of 37 MB over a link of 30 Mbit/s."""
    return undisturbed(folder, one_site(rounds=1, custom_preset=LARGE), 30.0)


def undisturbed(folder: Path, content: dict[str, object], mbit_per_s: float) -> dict[str, object]:
    with behind_a_link(folder, content, mbit_per_s) as case:
        case.deployed.start_server()
        case.deployed.start_site(SITE)
        phases = watch(case)
        return {"mbit_per_s": mbit_per_s, **facts(case), "phases": phases}


def outage_while_training(folder: Path, condition: Condition, seconds: float) -> dict[str, object]:
    """Nothing passes from the arrival of a request until long after the update is ready."""
    with behind_a_link(folder, one_site(rounds=2), 0.0) as case:
        case.deployed.start_server()
        case.deployed.start_site(SITE)
        wait_until(lambda: "train message" in case.node_log(), PATIENCE_S, "a train request")
        wait_until(
            lambda: "Received successfully" in case.node_log().rpartition("train message")[2],
            PATIENCE_S,
            "the request is there",
        )
        case.relay.become(condition)
        begun = time.monotonic()
        wait_until(lambda: case.trainings() == [1], PATIENCE_S, "trained while cut off")
        trained = time.monotonic() - begun
        time.sleep(max(0.0, seconds - trained))
        before = case.accepted()
        case.relay.become("open")
        opened = time.monotonic()
        wait_until(lambda: case.accepted() == 1, PATIENCE_S, "the update arrives")
        delay = time.monotonic() - opened
        case.deployed.wait_for_end(timeout_s=PATIENCE_S)
        return {
            "outage": condition,
            "outage_s": round(opened - begun, 1),
            "accepted_during_the_outage": before,
            "update_accepted_after_s": round(delay, 1),
            **facts(case),
        }


def cut_while_uploading(folder: Path, seconds: float) -> dict[str, object]:
    """The connections end when half of a model of 37 MB has passed."""
    with behind_a_link(folder, one_site(rounds=1, custom_preset=LARGE), 30.0) as case:
        case.deployed.start_server()
        case.deployed.start_site(SITE)
        wait_until(lambda: case.relay.up.passed > 18e6, PATIENCE_S, "half of the upload")
        case.relay.become("cut")
        time.sleep(seconds)
        before = case.accepted()
        case.relay.become("open")
        case.deployed.wait_for_end(timeout_s=PATIENCE_S)
        return {"outage_s": seconds, "accepted_during_the_outage": before, **facts(case)}


def facts(case: Case) -> dict[str, object]:
    """What is the same however bad the link was, and what passed over it."""
    deployed = case.deployed
    code = deployed.wait_for_end(timeout_s=PATIENCE_S)
    assert code == 0, deployed.log("server")
    return {
        "trainings": case.trainings(),
        "updates_accepted": case.accepted(),
        "releases": case.releases(),
        "model_hash": deployed.model_hash(),
        "reference_hash": deployed.reference_hash(),
        "bytes_to_the_site": case.relay.down.passed,
        "bytes_from_the_site": case.relay.up.passed,
    }


def watch(case: Case) -> list[dict[str, object]]:
    """Seconds and bytes from one line of the history to the next, until the run has ended."""
    path = case.deployed.run / HISTORY
    server = case.deployed.processes["server"]
    phases: list[dict[str, object]] = []
    then, up, down = time.monotonic(), 0, 0
    while server.poll() is None or len(phases) < len(lines_of(path)):
        for line in lines_of(path)[len(phases) :]:
            now, passed = time.monotonic(), (case.relay.up.passed, case.relay.down.passed)
            event = json.loads(line)
            phases.append(
                {
                    "until": " ".join(
                        str(event[k]) for k in ("event", "round", "split") if k in event
                    ),
                    "seconds": round(now - then, 1),
                    "bytes_from_the_site": passed[0] - up,
                    "bytes_to_the_site": passed[1] - down,
                }
            )
            then, (up, down) = now, passed
        time.sleep(0.2)
    return phases


def lines_of(path: Path) -> list[str]:
    content = path.read_text(encoding="utf-8") if path.exists() else ""
    return content[: content.rfind("\n") + 1].splitlines()


CASES: dict[str, Callable[[Path], dict[str, object]]] = {
    "tiny": tiny_at_4_mbit,
    "large": large_at_30_mbit,
    "upload": lambda folder: cut_while_uploading(folder, 20.0),
    "silent": lambda folder: outage_while_training(folder, "silent", 100.0),
    "outage": lambda folder: outage_while_training(folder, "cut", 100.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=list(CASES), default=list(CASES))
    for name in parser.parse_args().cases:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"case": name, **CASES[name](Path(folder))}, indent=1), flush=True)


if __name__ == "__main__":
    main()

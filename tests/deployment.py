"""A federation of real processes on the loopback interface, for tests.

Phantom cohorts and settings are those of a scenario; certificates, kits and keys come from the
commands that a coordinator and its sites use.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from server.run_folder import HISTORY
from simulation.engine import run_in_process
from simulation.prepare import prepare_run
from simulation.scenario import load_scenario

BIN = Path(sys.executable).parent
TIMEOUT_S = 420.0

PROTOCOL = {
    "rows": 32,
    "columns": 32,
    "slices": 8,
    "spacing_mm": 6.875,
    "slice_spacing_mm": 16.0,
}
STRUCTURAL = ["T1WI", "T2WI", "FLAIR", "ADC", "T1_C"]
TRAINERS, EVALUATOR = ("site-a", "site-b", "site-c"), "qilu"


def scenario(*, rounds: int = 2, trainers: Sequence[str] = TRAINERS) -> dict[str, object]:
    """Three training sites, one of them with ASL, and an external one; tiny volumes."""

    def phantom(patients: int, **protocol: object) -> dict[str, object]:
        visits = {"min_visits": 1, "max_visits": 1}
        return {"patients": patients, **visits, "protocol": {**PROTOCOL, **protocol}}

    split = {"train": 0.5, "validation": 0.25, "test": 0.25}
    sites: dict[str, object] = {
        name: {
            "role": "train",
            "split": split,
            "phantom": phantom(4) if index == 0 else phantom(4, modalities=STRUCTURAL),
        }
        for index, name in enumerate(trainers)
    }
    sites[EVALUATOR] = {"role": "evaluate", "phantom": phantom(6, has_cbv=False)}
    return {
        "name": "loopback",
        "description": "real processes on the loopback interface",
        "seed": 1,
        "cohort_seed": 31,
        "preset": "tiny",
        "training": {"local_steps": 3, "batch_size": 2, "threads": 1},
        "rounds": {"count": rounds, "quorum": len(trainers), "poll_interval_s": 0.2},
        "sites": sites,
    }


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_command(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands to its end."""
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def environment() -> dict[str, str]:
    """What processes get: one thread, no terminal, this checkout's packages."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **own}


class Deployment:
    """A coordinator's folder with admitted sites, and the processes that were started.

    Args:
        folder: holds everything, the in-process reference too.
        content: of the scenario.
        host: name under which sites reach the coordinator.
    """

    def __init__(
        self, folder: Path, content: dict[str, object], *, host: str = "localhost"
    ) -> None:
        self.folder, self.host = folder, host
        self.simulated, self.run = folder / "simulated", folder / "run"
        path = folder / "scenario.toml"
        path.write_text(tomli_w.dumps(content), encoding="utf-8")
        self.scenario = load_scenario(str(path))
        cohorts = Path(os.environ.get("IEDN_TEST_COHORTS", str(folder / "cohorts")))
        self.config = prepare_run(
            self.scenario, self.simulated, cohorts=cohorts, seed=None, workers=1
        )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port, self.private_port, self.health_port = free_port(), free_port(), free_port()
        self._provision()

    @property
    def sites(self) -> list[str]:
        """All sites by name."""
        return sorted(self.config.sites)

    def kit(self, site: str) -> Path:
        """A site's folder."""
        return self.run / "kits" / site

    def reference_hash(self) -> str:
        """Hash of the model that the same scenario reaches in one process."""
        run_in_process(self.simulated, self.config, workers=1)
        return commits(self.simulated)[-1]["model_hash"]

    def start_server(self, *prefix: str) -> subprocess.Popen[bytes]:
        """Start ``iedn-server start``, or a launcher before it."""
        command = [*prefix, str(BIN / "iedn-server"), "start", str(self.run)]
        return self._start("server", command)

    def start_site(self, site: str, *prefix: str, **more: str) -> subprocess.Popen[bytes]:
        """Start ``iedn-client --site``; ``more`` are environment variables."""
        command = [*prefix, str(BIN / "iedn-client"), "--site", str(self.kit(site))]
        return self._start(site, command, **more)

    def start_all(self) -> None:
        """Start the coordinator and every site."""
        self.start_server()
        for site in self.sites:
            self.start_site(site)

    def log(self, name: str) -> str:
        """What a process has printed so far."""
        path = self.folder / f"{name}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def wait_for_end(self, name: str = "server", timeout_s: float = TIMEOUT_S) -> int:
        """Exit code of a process that ends by itself."""
        try:
            return self.processes[name].wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} did not end:\n{self.log(name)[-3000:]}") from None

    def kill(self, name: str) -> None:
        """SIGKILL one process; its children are its own business."""
        process = self.processes[name]
        process.kill()
        process.wait()

    def stop(self, *names: str) -> None:
        """Ask processes to end, all at once."""
        alive = [self.processes[n] for n in names if self.processes[n].poll() is None]
        for process in alive:
            process.send_signal(signal.SIGINT)
        for process in alive:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop_all(self) -> None:
        """End everything that was started."""
        self.stop(*self.processes)

    def model_hash(self) -> str:
        """Hash of the last committed model."""
        return commits(self.run)[-1]["model_hash"]

    def _start(self, name: str, command: list[str], **more: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**environment(), **more},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.processes[name] = process
        return process

    def _provision(self) -> None:
        trainers = [s for s, e in sorted(self.config.sites.items()) if e.role == "train"]
        others = [s for s in self.sites if s not in trainers]
        arguments = ["--sites", ",".join(trainers), "--host", self.host, "--simulation"]
        arguments += ["--evaluate", ",".join(others)] if others else []
        name = ["--name", self.config.run, "--port", str(self.port)]
        self._command("iedn-server", "init", str(self.run), *arguments, *name)
        self._configure_server()
        for site in self.sites:
            self._configure_site(site)
            self._command("iedn-client", "--site", str(self.kit(site)), "init")
            key = str(self.kit(site) / "tls" / "site.pub")
            self._command("iedn-server", "admit", site, key, "--dir", str(self.run))
        if self.config.secure_aggregation == "on":
            self._accept_peers(trainers)

    def _accept_peers(self, trainers: list[str]) -> None:
        self._command("iedn-server", "roster", str(self.run))
        roster = str(self.run / "roster.json")
        for site in trainers:
            self._command("iedn-client", "--site", str(self.kit(site)), "peers", "accept", roster)

    def _command(self, *command: str) -> None:
        done = run_command(*command, cwd=self.folder)
        assert done.returncode == 0, done.stderr

    def _configure_server(self) -> None:
        path = self.run / "federation.toml"
        listen = tomllib.loads(path.read_text(encoding="utf-8"))["listen"]
        listen |= {"port": self.port, "private_port": self.private_port}
        listen["health_port"] = self.health_port
        content = self.config.model_dump(mode="json", exclude_none=True) | {"listen": listen}
        content["rounds"] |= {"offline_grace_s": 300.0, "join_timeout_s": 300.0}
        path.write_text(tomli_w.dumps(content), encoding="utf-8")

    def _configure_site(self, site: str) -> None:
        path = self.kit(site) / "site.toml"
        own = tomllib.loads(path.read_text(encoding="utf-8"))
        simulated = tomllib.loads(
            (self.simulated / "sites" / site / "site.toml").read_text(encoding="utf-8")
        )
        taken = {k: simulated[k] for k in ("manifest", "cache", "policy", "split")}
        own["coordinator"] |= {"node_port": free_port(), "heartbeat_s": 10}
        path.write_text(tomli_w.dumps(own | taken), encoding="utf-8")


def commits(run: Path) -> list[dict[str, str]]:
    """The commit lines of a run's history."""
    path = run / HISTORY
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [e for e in map(json.loads, lines) if e["event"] == "commit"]


def wait_until(condition: object, timeout_s: float = TIMEOUT_S, what: str = "") -> None:
    """Wait until a function gives something true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.1)
    raise AssertionError(f"did not happen within {timeout_s:.0f} s: {what}")


@contextmanager
def deployment(
    folder: Path, content: dict[str, object], *, host: str = "localhost"
) -> Iterator[Deployment]:
    """A deployment whose processes end with the block."""
    deployed = Deployment(folder, content, host=host)
    try:
        yield deployed
    finally:
        deployed.stop_all()

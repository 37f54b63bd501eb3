"""A deployment whose processes are killed, cell after cell, without setting it up anew.

Certificates, admitted keys, SuperLink's database and the warm sites stay; of a cell's run nothing
does. Each cell is a run with a name of its own, so that no reply kept from another one fits.
"""

import json
import os
import signal
import socket
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import tomli_w

from server.run_folder import HISTORY, LOCK
from sites.release_log import verify
from tests.deployment import Deployment, commits, wait_until
from tests.system.processes import working_in

LAUNCHER = Path(__file__).with_name("doomed.py")
SERVER_NAME = "server"
ENDING_S = 30.0


class Ward(Deployment):
    """A deployment that outlives its cells.

    Args:
        folder: holds everything.
        content: of the scenario.
        runs: names of the cells' runs; the sites take part in these.
    """

    def __init__(self, folder: Path, content: dict[str, object], runs: Iterable[str]) -> None:
        super().__init__(folder, content)
        self.markers = folder / "markers"
        self.markers.mkdir()
        self._doomed: set[str] = set()
        for site in self.sites:
            path = self.kit(site) / "site.toml"
            own = tomllib.loads(path.read_text(encoding="utf-8"))
            own["coordinator"]["federations"] = sorted(runs)
            path.write_text(tomli_w.dumps(own), encoding="utf-8")
        self.reference = self.reference_hash()

    def begin(self, run: str, *apart: str) -> None:
        """Make the run's folder as new, and each site's process a plain one that lives.

        Args:
            run: name of the cell's run.
            apart: sites that are left stopped, because the cell starts them itself.
        """
        if SERVER_NAME in self.processes:
            self.stop(SERVER_NAME)
        for path in (*self.run.glob("*.safetensors"), *self.run.glob(".*.safetensors.*")):
            path.unlink()
        for name in (HISTORY, LOCK):
            (self.run / name).unlink(missing_ok=True)
        path = self.run / "federation.toml"
        content = tomllib.loads(path.read_text(encoding="utf-8")) | {"run": run}
        path.write_text(tomli_w.dumps(content), encoding="utf-8")
        self.stop(*((self._doomed | set(apart)) & set(self.processes)))
        self._doomed.clear()
        for site in sorted(set(self.sites) - set(apart)):
            if site not in self.processes or self.processes[site].poll() is not None:
                self.start_site(site)

    def doom(self, name: str, point: str) -> Path:
        """Start the coordinator or a site so that it is struck at a point; returns the marker."""
        marker = self.markers / f"{self.run_name()}-{name}"
        prefix = [sys.executable, str(LAUNCHER), point, str(marker), "--"]
        if name == SERVER_NAME:
            self.start_server(*prefix)
        else:
            self.start_site(name, *prefix)
            self._doomed.add(name)
        return marker

    def start_again(self, name: str) -> None:
        """The same command again."""
        if name == SERVER_NAME:
            self.start_server()
        else:
            self.start_site(name)

    def run_name(self) -> str:
        """The cell's run."""
        content = tomllib.loads((self.run / "federation.toml").read_text(encoding="utf-8"))
        return str(content["run"])

    def alive(self) -> dict[int, str]:
        """Everything that works in this deployment's folder, by pid."""
        return working_in(self.folder)

    def kill_everything(self) -> None:
        """SIGKILL all of it at once."""
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)
        for process in self.processes.values():
            process.wait()

    def trained(self, site: str) -> list[int]:
        """Rounds of the cell's run for which the site has logged an update that is no repeat."""
        entries = verify(self.kit(site) / "releases.jsonl")  # the whole chain
        updates = [e for e in entries if e["kind"] == "train-reply" and not e.get("repeat")]
        run = self.run_name()
        return [e["message"]["round"] for e in updates if e["message"]["run"] == run]

    def wait_until_nothing_is_left(self, *names: str) -> None:
        """Wait until nothing but the named sites' processes and one child of each is alive."""
        wait_until(
            lambda: len(self.alive()) == 2 * len(names),
            ENDING_S,
            f"only {names} and their nodes alive: {self.alive()}",
        )

    def held_ports(self) -> list[int]:
        """Ports of the coordinator that somebody answers on."""
        return [p for p in (self.port, self.private_port) if _answers(p)]

    def history(self) -> list[dict[str, object]]:
        """All lines of the run's history."""
        lines = (self.run / HISTORY).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def rounds(self) -> list[tuple[int, list[str]]]:
        """Committed rounds, with the sites whose updates are in each."""
        return [
            (
                int(c["round"]),
                [s for s, e in sorted(c.get("roster", {}).items()) if e["status"] == "accepted"],
            )
            for c in commits(self.run)
        ]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

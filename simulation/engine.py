"""The two engines that run a prepared run folder: in this process, or Flower's on Ray.

Both run the same ServerApp and ClientApp on the same files and, with one thread a site, reach the
same model bit for bit.
"""

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import tomli_w
import torch
from flwr.app import Context, RecordDict

from client.app import app as client_app
from client.session import forget_sessions
from iedn import progress
from iedn.bundle import write_bundle
from iedn.errors import IednError, UnreachableError
from iedn.files import atomic_write_bytes
from iedn.process import flower_environment, stop_child
from server.app import app as server_app
from server.config import FederationConfig
from server.run_folder import RunFolder
from sites.config import SITE_FILE

from .grid import LocalGrid

_log = logging.getLogger(__name__)

_STARTUP_S = 90.0
_LOOK_S = 2.0


def run_in_process(out: Path, config: FederationConfig, *, workers: int) -> None:
    """Run a prepared folder in this process.

    Args:
        out: the run folder.
        config: its federation.
        workers: sites that work at the same time, one thread group each.
    """
    nodes = {
        name: {"site": str(out.absolute() / "sites" / name / SITE_FILE)}
        for name in sorted(config.sites)
    }
    run_config: dict[str, bool | float | int | str] = {
        "run-dir": str(out.absolute()),
        "registry": "names",
    }
    torch.set_num_threads(config.training.threads)
    grid = LocalGrid(client_app, nodes, run_config, workers=workers)
    try:
        server_app(grid, Context(1, 1, {}, RecordDict(), run_config))
    finally:
        grid.close()
        forget_sessions()


def run_on_flower(out: Path, config: FederationConfig) -> None:
    """Run a prepared folder on Flower's simulation (Ray), as ``flwr run . local`` does.

    A SuperLink of our own is started on a free loopback port and ended afterwards; nothing is
    left running. The log is kept as ``flower.log`` in the run folder.

    Raises:
        UnreachableError: the SuperLink does not come up.
        IednError: Flower ended the run.
    """
    home = Path(tempfile.mkdtemp(prefix="iedn-flower-"))
    scripts = str(Path(sys.executable).parent)  # Flower starts its helpers by name
    environment = {
        **flower_environment(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Without it Ray waits for ever for a cluster that once ran here and left its address.
        "RAY_ADDRESS": os.environ.get("RAY_ADDRESS", "local"),
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
    }
    try:
        with (out / "flower.log").open("ab") as log, _superlink(home, environment, log) as port:
            _configure(home, port)
            command = [
                "flwr",
                "run",
                str(write_bundle(home / "bundle" / "iedn")),
                "simulation",
                "--stream",
                "--federation-config",
                f"num-supernodes={len(config.sites)} client-resources-num-cpus=1",
                "--run-config",
                f'run-dir="{out.absolute()}" registry="partitions"',
            ]
            code = _watched(command, out, config, cwd=home, env=environment, stdout=log, stderr=log)
        if code:
            raise IednError(f"flwr run ended with {code}; see {out / 'flower.log'}")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _watched(command: list[str], out: Path, config: FederationConfig, **options: Any) -> int:
    """Run a command to its end, reporting the rounds its history has; its exit code."""
    folder, reported = RunFolder(out, config), -1
    progress.report("rounds", 0, config.rounds.count)  # Ray takes a while to start
    with subprocess.Popen(command, **options) as process:  # noqa: S603  (our own arguments)
        while True:
            commit = folder.last_commit()
            if commit and commit["round"] != reported:
                reported = commit["round"]
                progress.report("rounds", reported, config.rounds.count)
            try:
                return process.wait(timeout=_LOOK_S)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def _superlink(home: Path, environment: dict[str, str], log: BinaryIO) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1"]
    process = subprocess.Popen(  # noqa: S603  (our own arguments)
        [*command, "--port", str(port), "--disable-runtime-dependency-installation"],
        cwd=home,
        env=environment,
        stdout=log,
        stderr=log,
    )
    try:
        _wait_for_port(port, process)
        yield port
    finally:
        stop_child(process, patience_s=20.0)


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _STARTUP_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UnreachableError(f"flower-superlink ended with code {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise UnreachableError(f"flower-superlink did not listen within {_STARTUP_S:.0f} s")


def _configure(home: Path, port: int) -> None:
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    content = {"superlink": {"default": "simulation", "simulation": connection}}
    atomic_write_bytes(home / "config.toml", tomli_w.dumps(content).encode())

"""The trial on one machine, as the coordinators' how-to has it, word for word."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "run-a-consortium.md"
SITES = ("site-a", "site-b", "site-x")
PATIENCE_S = 600.0


def blocks():
    """The shell blocks of the page's first part."""
    part = PAGE.read_text().partition("## First on one machine")[2].partition("## For real")[0]
    return re.findall(r"```sh\n(.*?)```", part, re.DOTALL)


def free_ports():
    """A port with three free ones behind it for the coordinator, and three for the sites."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(probe.getsockname()[1], 65000)


@pytest.fixture
def shell(tmp_path):
    """Runs the page's lines with the installed commands, and ends what it has started."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    started = []

    def run(text, folder):
        return subprocess.run(
            ["bash", "-e", "-c", text],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def start(line, folder):
        with (tmp_path / f"{len(started)}.log").open("wb") as log:
            process = subprocess.Popen(
                shlex.split(line), cwd=folder, env=environment, stdout=log, stderr=log
            )
        started.append(process)
        return process

    run.start = start
    yield run
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in started:
        process.wait(timeout=60)


def test_trial_on_one_machine(shell, tmp_path):
    setting_up, starting, looking, finishing = blocks()
    port = f"--host localhost --port {free_ports()}"
    done = shell(setting_up.replace("--host localhost", port), tmp_path)
    assert done.returncode == 0, done.stderr
    trial = tmp_path / "trial"
    began = time.monotonic()
    lines = [line for line in starting.splitlines() if line]
    assert lines == ["iedn-server start .", *(f"iedn-client --site {s}" for s in SITES)]
    server, *clients = [shell.start(line, trial) for line in lines]
    history = trial / "history.jsonl"
    while not history.exists() or '"round": 1,' not in history.read_text():
        assert server.poll() is None, (tmp_path / "0.log").read_text()
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.5)
    done = shell(looking, trial)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    assert "chain whole" in done.stdout
    assert server.wait(timeout=PATIENCE_S) == 0
    assert all(client.poll() is None for client in clients)
    done = shell(finishing, trial)
    assert done.returncode == 0, done.stderr
    assert (trial / "report.html").stat().st_size > 0
    for site in SITES:
        (card,) = (trial / "kits" / site / "models").glob("trial-*.card.json")
        assert json.loads(card.read_text())["trained_on"] == "phantom (simulation)"

"""How the commands end when they are stopped from outside."""

import signal
import subprocess
import sys
import time

import pytest

COMMAND = """
import sys, time
from pathlib import Path
from iedn.console import new_app, run_command

app = new_app()

@app.command()
def wait(folder: Path) -> None:
    try:
        (folder / "begun").touch()
        time.sleep(120)
    finally:
        (folder / "cleaned-up").touch()

run_command(app)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_command_cleans_up_and_ends_without_a_traceback(tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path)], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in printed
    assert (tmp_path / "cleaned-up").exists()

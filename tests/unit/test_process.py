"""A child never outlives its parent, and reads its secrets from its standard input."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from iedn.process import (
    bypass_proxies_on_loopback,
    flower_environment,
    start_module,
    stop_child,
)

ROOT = Path(__file__).parents[2]
CHILD = """
import signal, sys, time
from pathlib import Path
from iedn.process import end_with_parent

def sign_off(number, frame):
    Path(sys.argv[0]).with_name("signed-off").touch()

signal.signal(signal.SIGTERM, sign_off)
end_with_parent(grace_s=GRACE_S)
"""
LASTS = """
Path(sys.argv[0]).with_name("told").write_bytes(sys.stdin.buffer.read())
deadline = time.monotonic() + 120
while time.monotonic() < deadline:
    time.sleep(0.1)
"""
PARENT = """
import os, sys, time
from pathlib import Path
from iedn.process import start_module
here = Path(sys.argv[1])
child = start_module("lasting", b"secret", environment=os.environ, log=here / "log")
(here / "pid").write_text(str(child.pid))
time.sleep(120)
"""


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text().split()[2]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status != "Z"


@pytest.mark.parametrize("grace_s", [0.0, 1.0])
def test_child_ends_when_its_parent_is_killed(tmp_path, monkeypatch, grace_s):
    (tmp_path / "lasting.py").write_text(CHILD.replace("GRACE_S", str(grace_s)) + LASTS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    assert wait_for((tmp_path / "told").exists)
    pid = int((tmp_path / "pid").read_text())
    assert is_alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_for(lambda: not is_alive(pid), 10.0)
    assert (tmp_path / "signed-off").exists() == (grace_s > 0)


def test_settings_come_by_standard_input_and_the_log_is_private(tmp_path, monkeypatch):
    (tmp_path / "lasting.py").write_text("import sys, time\nfrom pathlib import Path\n" + LASTS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    child = start_module("lasting", b"secret", environment=os.environ, log=tmp_path / "log")
    try:
        assert wait_for(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_bytes())
        assert (tmp_path / "told").read_bytes() == b"secret"
        assert (tmp_path / "log").stat().st_mode & 0o077 == 0
    finally:
        stop_child(child)
    assert child.returncode == -signal.SIGTERM


def test_hosts_that_are_bypassed_in_small_letters_stay_bypassed(monkeypatch, tmp_path):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "pacs.example.org, localhost")
    environment = flower_environment(tmp_path)
    assert environment["NO_PROXY"] == "pacs.example.org,localhost,127.0.0.1"
    assert environment["no_proxy"] == environment["NO_PROXY"]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_this_machines_own_ports_are_never_asked_of_a_proxy(monkeypatch, variable):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv(variable, "http://proxy.example.org:3128")
    bypass_proxies_on_loopback()
    assert urllib.request.proxy_bypass("127.0.0.1")
    assert not urllib.request.proxy_bypass("coordinator.example.org")


def test_loopback_never_goes_through_a_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "internal.example.org")
    environment = flower_environment(tmp_path)
    assert environment["NO_PROXY"] == "internal.example.org,127.0.0.1,localhost"
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_HOME"] == str(tmp_path)


def test_child_that_is_gone_before_it_reads_its_settings_is_only_gone(tmp_path):
    more_than_a_pipe_holds = b"x" * 1_000_000
    child = start_module(
        "no_such_module", more_than_a_pipe_holds, environment=os.environ, log=tmp_path / "log"
    )
    assert child.wait(timeout=60) == 1

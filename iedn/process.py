"""Child processes that never outlive their parent, and what Flower needs in its environment."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

FLOWER_ENVIRONMENT: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Nothing is reported to Flower's makers, looked up there or installed at run time."""

_LOOK_S = 0.2
_LOOPBACK = "127.0.0.1,localhost"


def bypass_proxies_on_loopback() -> None:
    """Take the loopback interface out of any proxy's reach, for this process and its children.

    ``HTTP_PROXY`` and ``ALL_PROXY`` would otherwise be asked for this machine's own ports.
    """
    os.environ |= _bypass()


def flower_environment(home: Path) -> dict[str, str]:
    """This process's environment for a Flower process that keeps its files in ``home``.

    The loopback interface is taken out of any proxy's reach.
    """
    return {**os.environ, **FLOWER_ENVIRONMENT, "FLWR_HOME": str(home), **_bypass()}


def _bypass() -> dict[str, str]:
    """What is bypassed already, in either spelling, and the loopback interface."""
    found = [os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")]
    hosts = ",".join([*found, _LOOPBACK]).split(",")
    bypass = ",".join(dict.fromkeys(h.strip() for h in hosts if h.strip()))
    return {"NO_PROXY": bypass, "no_proxy": bypass}


def start_module(
    module: str,
    settings: bytes,
    *,
    environment: Mapping[str, str],
    log: Path,
    inherited: Collection[int] = (),
) -> subprocess.Popen[bytes]:
    """Start ``python -m module`` as a child; it reads ``settings`` from its standard input.

    Secrets come that way because arguments and environment are visible to others on the machine.

    Args:
        module: an installed module that calls ``end_with_parent`` first.
        settings: what the module's main reads to the end of its input.
        environment: the child's environment.
        log: the child's output is appended to this file (mode 0600).
        inherited: open files of this process that are the child's too.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as stream:
        child = subprocess.Popen(  # noqa: S603  (our own module)
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            env=dict(environment),
            pass_fds=tuple(inherited),
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
    if child.stdin is not None:
        # One that was killed at once has nobody to read them; that it has ended is seen by `poll`.
        with suppress(BrokenPipeError), child.stdin as pipe:
            pipe.write(settings)
    return child


def stop_child(child: subprocess.Popen[bytes], *, patience_s: float = 10.0) -> None:
    """Ask a child to end, and make it if it does not."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            child.kill()
    child.wait()


def end_with_parent(*, grace_s: float = 0.0) -> None:
    """End this process, within a moment, once the process that started it is gone.

    Even SIGKILL of the parent leaves nothing behind: no process, no port that is held.

    Args:
        grace_s: seconds to end by itself, asked by SIGTERM, before it is killed.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        if grace_s > 0.0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()

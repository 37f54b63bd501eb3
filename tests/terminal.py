"""A shell that is typed into, block after block, as a reader of the documents does.

Folder, variables and background jobs last from block to block. A command that fails ends it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 600.0
END = "\0"


class Terminal:
    """One shell in a folder, with the installed commands in its path.

    Args:
        folder: where it starts.
        screen: file that takes all that is printed.
    """

    def __init__(self, folder: Path, screen: Path) -> None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        self._screen, self._typed = screen, 0
        with screen.open("wb") as output:
            self._shell = subprocess.Popen(
                ["bash", "--norc", "--noprofile", "-e"],
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )

    def run(self, text: str, *, patience_s: float = PATIENCE_S) -> str:
        """Type a block, wait until it is done; what it has printed."""
        before = len(self._read())
        self.begin(text)
        began = time.monotonic()
        while not (screen := self._read())[before:].endswith(END):
            if self._shell.poll() is not None:
                code = self._shell.returncode
                raise AssertionError(f"ended with {code}:\n{text}\n{self._read()[before:]}")
            if time.monotonic() - began > patience_s:
                raise AssertionError(f"not done after {patience_s} s:\n{text}\n{screen[before:]}")
            time.sleep(0.05)
        return screen[before:].removesuffix(END)

    def begin(self, text: str) -> None:
        """Type a block, and do not wait."""
        self._typed += 1
        block = self._screen.with_name(f"{self._screen.name}-{self._typed}.sh")
        block.write_text(text, encoding="utf-8")
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"source {block} </dev/null; printf '\\0'\n")
        self._shell.stdin.flush()

    def interrupt(self) -> None:
        """Ctrl-C, and the shell's end with it."""
        self._end(signal.SIGINT)

    def close(self) -> None:
        """End the shell and all that it has started."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._shell.stdin is not None and not self._shell.stdin.closed:
            self._shell.stdin.close()
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self._shell.pid, number)
        self._shell.wait(timeout=60)
        deadline = time.monotonic() + 60
        while _is_alive(self._shell.pid) and time.monotonic() < deadline:
            time.sleep(0.1)

    def _read(self) -> str:
        return self._screen.read_text(encoding="utf-8", errors="replace")


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def differences(said: str, printed: str) -> list[str]:
    """Lines that a document says are printed, and that are not, in this order.

    Numbers, hashes, times and folders differ from run to run and are not compared. A line ``…``
    in the document stands for any lines.
    """
    rest = [_comparable(line) for line in printed.splitlines()]
    missing = []
    for line in said.splitlines():
        wanted = _comparable(line)
        if not wanted or wanted == "…":
            continue
        if wanted in rest:
            rest = rest[rest.index(wanted) + 1 :]
        else:
            missing.append(line)
    return missing


def _comparable(line: str) -> str:
    line = re.sub(r"\b[0-9a-f]{12,}\b|SHA256:[A-Za-z0-9+/]{43}", "#", line)
    line = re.sub(r"(?:/[^\s/]+)+/(runs/tutorial/)", r"\1", line)
    line = re.sub(r"[-+]?\d+(?:[.,:]\d+)*", "#", line)
    return " ".join(re.sub(r"[─━]+", "─", line).split())

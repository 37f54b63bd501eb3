"""Seconds until ``--help`` has answered, and as a multiple of ``python -c pass``. Prints JSON.

All commands take turns within a round, so that other work on the machine is shared fairly; the
median of the rounds counts. What is slow to import must not be imported by then: it is listed.

    python benchmarks/start_up.py --rounds 15
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

BIN = Path(sys.executable).parent
BARE = "python -c pass"
COMMANDS = {"iedn-client": "client", "iedn-server": "server", "iedn-simulate": "simulation"}
SLOW = ("torch", "flwr", "ray", "opacus", "nibabel", "SimpleITK", "matplotlib", "scipy", "numpy")


def seconds_of(words: list[str]) -> float:
    """Wall time of one call, which must succeed."""
    began = time.perf_counter()
    quiet = subprocess.DEVNULL
    subprocess.run(words, check=True, stdout=quiet, stderr=quiet)  # noqa: S603  (our own commands)
    return time.perf_counter() - began


def slow_imports(package: str) -> list[str]:
    """Which of the slow packages a command has imported once its help is printed."""
    script = (
        "import json, sys\n"
        f"from {package}.cli import main\n"
        "sys.argv = ['command', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        f"sys.stderr.write(json.dumps([m for m in {SLOW!r} if m in sys.modules]))\n"
    )
    done = subprocess.run(  # noqa: S603  (our own script)
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    found: list[str] = json.loads(done.stderr.splitlines()[-1])
    return found


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each command, a round after the other."""
    calls = {BARE: [sys.executable, "-c", "pass"]}
    calls |= {name: [str(BIN / name), "--help"] for name in COMMANDS}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for words in calls.values():
        seconds_of(words)  # the files are in memory from here on
    for _ in range(rounds):
        for name, words in calls.items():
            taken[name].append(seconds_of(words))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    taken = measure(rounds)
    bare = median(taken[BARE])
    rows: dict[str, dict[str, float | list[str]]] = {
        name: {
            "median_s": round(median(seconds), 3),
            "low_s": round(min(seconds), 3),
            "high_s": round(max(seconds), 3),
            "ratio": round(median(s / b for s, b in zip(seconds, taken[BARE], strict=True)), 1),
        }
        for name, seconds in taken.items()
    }
    for name, package in COMMANDS.items():
        rows[name]["slow_imports"] = slow_imports(package)
    facts = {"python": platform.python_version(), "cores": os.cpu_count(), "rounds": rounds}
    print(json.dumps({**facts, "bare_s": round(bare, 3), "commands": rows}, indent=1))


if __name__ == "__main__":
    main()

"""What is alive, as ``/proc`` tells it."""

from pathlib import Path

PROC = Path("/proc")


def working_in(folder: Path) -> dict[int, str]:
    """Command lines of the processes whose working directory is a folder, by pid.

    Children inherit the working directory, so this finds what a killed parent has left.
    """
    found = {}
    for pid in _pids():
        try:
            if (PROC / str(pid) / "cwd").resolve() != folder.resolve():
                continue
            line = (PROC / str(pid) / "cmdline").read_bytes()
        except OSError:  # ended meanwhile, or somebody else's
            continue
        if line:  # a zombie has none
            found[pid] = line.replace(b"\0", b" ").decode().strip()
    return found


def _pids() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]

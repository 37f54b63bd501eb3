"""Follows ``docs/tutorial.md`` word for word in an empty folder: seconds a step, as JSON.

Every box is typed into one shell, and what it prints is compared with what the page says. With
``--install`` a clone is made and installed first, which downloads PyTorch. Run from the
repository's root:

    PYTHONPATH=. python benchmarks/tutorial.py --port 19092
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from iedn.files import atomic_write_bytes
from tests.documents import ROOT, Block, blocks_of, blocks_run_by
from tests.terminal import Terminal, differences

PAGE = ROOT / "docs" / "tutorial.md"
TEST = "tests/system/test_tutorial.py::test_tutorial_word_for_word"
TABLE = re.compile(r"(<!-- seconds: begin -->\n).*?(<!-- seconds: end -->)", re.DOTALL)
INSTALL_PATIENCE_S = 3600.0


@dataclass(frozen=True)
class Step:
    """One step of the tutorial.

    Attributes:
        title: its heading.
        seconds: from the first box typed to the last one done.
        missing: lines that the page says are printed, and that were not.
    """

    title: str
    seconds: float
    missing: tuple[str, ...]


def follow(folder: Path, *, port: int | None = None, install: bool = False) -> Iterator[Step]:
    """Type the page into a shell in ``folder``, which is empty; a step at a time.

    Args:
        folder: where it is done.
        port: the coordinator's, where the usual one may be taken; the only word that is changed.
        install: begin with cloning and installing.
    """
    screen = folder.with_name(f"{folder.name}.screen")
    with closing(Terminal(folder, screen)) as terminal:
        if install:
            yield _installed(terminal)
        for title, blocks in _steps().items():
            began, missing, printed = time.monotonic(), [], ""
            for block in blocks:
                if block.mark == "printed":
                    missing += differences(block.text, printed)
                else:
                    printed = terminal.run(_with_port(block.text, port))
            yield Step(title, round(time.monotonic() - began, 1), tuple(missing))


def table(steps: list[Step]) -> str:
    """The steps as Markdown."""
    rows = [f"| {s.title} | {s.seconds:.0f} |" for s in steps]
    total = sum(s.seconds for s in steps)
    return "\n".join(["| step | seconds |", "|---|---|", *rows, f"| together | {total:.0f} |", ""])


def _steps() -> dict[str, list[Block]]:
    steps: dict[str, list[Block]] = {}
    for block in blocks_run_by(TEST):
        steps.setdefault(block.heading, []).append(block)
    return steps


def _installed(terminal: Terminal) -> Step:
    (block,) = [b for b in blocks_of(PAGE) if b.mark == "apart"]
    began = time.monotonic()
    terminal.run(block.text.replace("REPOSITORY", str(ROOT)), patience_s=INSTALL_PATIENCE_S)
    return Step("1. Install: clone and packages", round(time.monotonic() - began, 1), ())


def _with_port(text: str, port: int | None) -> str:
    there = "--host localhost"
    return text if port is None else text.replace(there, f"{there} --port {port}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, help="of the coordinator; default: the page's")
    parser.add_argument("--install", action="store_true", help="clone and install first")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "reader"
        folder.mkdir()
        steps = []
        for step in follow(folder, port=given.port, install=given.install):
            print(json.dumps(asdict(step), ensure_ascii=False), flush=True)
            steps.append(step)
    if given.write:
        text = given.write.read_text(encoding="utf-8")
        made = TABLE.sub(lambda found: found[1] + table(steps) + found[2], text)
        atomic_write_bytes(given.write, made.encode())


if __name__ == "__main__":
    main()

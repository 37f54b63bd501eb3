"""The code blocks of the documents, and what each says becomes of it in the tests.

The line above a block says it. Three marks are comments, which no reader sees:

    <!-- run by tests/system/test_how_to.py::test_bids -->   the named test runs the block
    <!-- printed -->                                         and compares what it prints with this
    <!-- checked as site.toml -->                            read as a file of this kind

The fourth is for readers too, in italics: ``*Not run by the tests: why.*`` Diagrams (``mermaid``,
or no language) need none.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
PICTURES = ("", "mermaid")

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[a-z]*)\n(?P<text>.*?)^ *```$", re.M | re.S)
_RUN = re.compile(r"<!-- run by (?P<what>\S+::\S+) -->$")
_CHECKED = re.compile(r"<!-- checked as (?P<what>\S+) -->$")
_PRINTED = re.compile(r"<!-- (?P<what>printed) -->$")
_APART = re.compile(r"\*Not run by the tests: (?P<what>[^*]+)\*$")
_MARKS = {"run": _RUN, "checked": _CHECKED, "printed": _PRINTED, "apart": _APART}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its file.
        line: of the opening fence.
        language: after the fence.
        text: between the fences, without the indentation of a list.
        mark: ``run``, ``printed``, ``checked``, ``apart``, ``picture``, or nothing.
        what: the test, the kind of file, or the reason.
        heading: the last one of the second level above it.
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str
    what: str
    heading: str

    @property
    def place(self) -> str:
        """Where it is, for a message."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [_block(page, text, found) for found in _FENCE.finditer(text)]


def blocks_run_by(test: str) -> list[Block]:
    """The blocks that a test runs, and those whose text is compared with what is printed.

    Args:
        test: ``tests/system/test_how_to.py::test_bids``.
    """
    chosen: list[Block] = []
    for page in PAGES:
        runner = ""
        for block in blocks_of(page):
            runner = block.what if block.mark == "run" else runner
            if block.mark in ("run", "printed") and runner == test:
                chosen.append(block)
    return chosen


def _block(page: Path, text: str, found: re.Match[str]) -> Block:
    before = text[: found.start()]
    mark, what = _mark(before)
    if not mark and found["language"] in PICTURES:
        mark = "picture"
    headings = re.findall(r"^## (.*)$", before, re.M)
    lines = found["text"].splitlines(keepends=True)
    return Block(
        page=page,
        line=before.count("\n") + 1,
        language=found["language"],
        text="".join(line.removeprefix(found["indent"]) for line in lines),
        mark=mark,
        what=what,
        heading=headings[-1] if headings else "",
    )


def _mark(before: str) -> tuple[str, str]:
    paragraph = re.split(r"\n\s*\n", before.rstrip())[-1]
    last = " ".join(line.strip() for line in paragraph.splitlines())
    for mark, pattern in _MARKS.items():
        if found := pattern.search(last):
            return mark, found["what"]
    return "", ""

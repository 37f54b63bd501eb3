"""The documents say what the code does."""

import itertools
import re
import shlex
import tomllib

import pytest
from click.testing import CliRunner
from typer.main import get_command

import client.cli
import server.cli
import simulation.cli
from iedn import __version__
from iedn.bundle import FLOWER_TABLE
from iedn.protocol.messages import MESSAGES, OUTGOING
from tests.documents import PAGES, ROOT, blocks_of

APPS = {
    "iedn-client": client.cli.app,
    "iedn-server": server.cli.app,
    "iedn-simulate": simulation.cli.app,
}


def test_table_of_the_wall_is_the_messages():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| ([a-z-]+) \| (in|out) \| ([a-z_]+) \|", text, re.MULTILINE)
    said = {(kind, direction, field) for kind, direction, field in rows}
    meant = {
        (m.kind, "out" if m in OUTGOING else "in", field)
        for m in MESSAGES
        for field in m.model_fields
    }
    assert said == meant
    assert len(rows) == len(said), "a field stands twice"


def test_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert project["version"] == __version__
    assert f"version: {__version__}\n" in citation
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_flower_table_of_the_repository_is_the_bundles():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"] == FLOWER_TABLE


def commands():
    for block in (block for page in PAGES for block in blocks_of(page)):
        if block.mark in ("run", "apart"):
            for line in block.text.replace("\\\n", " ").splitlines():
                words = command_words(line)
                if words:
                    name = " ".join(words[:4])
                    yield pytest.param(words, id=f"{block.page.name}: {name}")


def command_words(line):
    """The words of a line that calls one of our commands, without redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="<>&|;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words = list(itertools.takewhile(lambda word: word[:1] not in set("<>&|;"), lexer))
    return words if words and words[0] in APPS else []


def without_site(words, folder):
    """``--site NAME`` before the command as a site that exists, and the other words."""
    if words[:1] != ["--site"]:
        return [], words
    (folder / "site.toml").write_text('name = "site-x"\nmanifest = "manifest.csv"\n')
    return ["--site", str(folder)], words[2:]


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_in_the_documents_parses(words, tmp_path):
    """Run with --help appended: unknown commands and options are usage errors (exit code 2)."""
    app = get_command(APPS[words[0]])
    site, rest = without_site(words[1:], tmp_path)
    known = CliRunner().invoke(app, [*site, *rest, "--help"])
    assert known.exit_code == 0, known.output
    for word in rest:
        if word.startswith("--"):
            assert word in known.output, f"{word} is not an option of {' '.join(words[:2])}"


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        assert set(re.findall(r"\bmake ([a-z-]+)", document.read_text())) <= targets


def anchors(page):
    """The fragments that lead to headings of a page, as GitHub and MkDocs make them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = []
    for heading in re.findall(r"^#+ +(.*)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        found.append(re.sub(r"\s", "-", plain.strip()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(\s*([^)\s]+)\)", text):
        if link.startswith(("http:", "https:")):
            continue
        target, _, fragment = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {link}"
        assert not fragment or fragment in anchors(path), f"{page.name}: {link}"


def test_every_test_that_the_threat_model_names_exists():
    text = (ROOT / "docs" / "explanation" / "threat-model.md").read_text()
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`", text)
    assert named
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"

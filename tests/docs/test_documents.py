"""The documents say what the code does."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from typer.main import get_command

import client.cli
import server.cli
import simulation.cli
from iedn import __version__
from iedn.bundle import FLOWER_TABLE
from iedn.protocol.messages import MESSAGES, OUTGOING

ROOT = Path(__file__).parents[2]
APPS = {
    "iedn-client": client.cli.app,
    "iedn-server": server.cli.app,
    "iedn-simulate": simulation.cli.app,
}
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


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
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:sh|text)\n(.*?)```", document.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in APPS:
                    yield pytest.param(words, id=f"{document.name}: {' '.join(words[:4])}")


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_every_test_that_the_threat_model_names_exists():
    text = (ROOT / "docs" / "explanation" / "threat-model.md").read_text()
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`", text)
    assert named
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"

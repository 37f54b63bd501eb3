"""The site that MkDocs makes of the documents: whole, and with nothing from outside."""

import importlib.util
import re
import subprocess
import sys

import pytest
import yaml

from tests.documents import ROOT


@pytest.fixture(scope="module")
def site():
    """The configuration."""
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def files_in(nav):
    for entry in nav:
        for value in entry.values():
            yield from files_in(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation_once(site):
    folder = ROOT / "docs"
    assert sorted(files_in(site["nav"])) == sorted(
        str(page.relative_to(folder)) for page in folder.rglob("*.md")
    )


def test_nothing_is_fetched_when_a_page_is_read(site):
    """Material asks others for fonts unless told not to, and for diagrams if it draws them."""
    assert site["theme"]["font"] is False
    assert "pymdownx.superfences" in site["markdown_extensions"], "without custom fences"
    assert not {"extra_javascript", "extra_css"} & site.keys()


def test_index_leads_to_every_page():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = str(page.relative_to(ROOT / "docs"))
        assert name == "index.md" or f"({name})" in text, name


@pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason="needs the extra docs (mkdocs-material)"
)
def test_site_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "tutorial.html").read_text(encoding="utf-8")
    assert not re.findall(r"<(?:script|link|img)[^>]* (?:src|href)=\"https?://", page)

"""The tutorial as its reader types it; prints the seconds of each step."""

import importlib.util
import json
import re
import sys
from dataclasses import asdict

import pytest

from tests.deployment import free_port
from tests.documents import ROOT

pytestmark = [pytest.mark.system, pytest.mark.slow]

PAGE = ROOT / "docs" / "tutorial.md"


@pytest.fixture(scope="module")
def tutorial():
    """The script that follows the page."""
    path = ROOT / "benchmarks" / "tutorial.py"
    spec = importlib.util.spec_from_file_location("_tutorial", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tutorial_word_for_word(tutorial, tmp_path, capsys):
    folder = tmp_path / "reader"
    folder.mkdir()
    steps = []
    for step in tutorial.follow(folder, port=min(free_port(), 65000)):
        with capsys.disabled():
            sys.stdout.write(json.dumps(asdict(step), ensure_ascii=False) + "\n")
        assert step.missing == (), (tmp_path / "reader.screen").read_text()
        steps.append(step.title)
    headings = re.findall(r"^## (\d+\. .*)$", PAGE.read_text(), re.MULTILINE)
    assert steps == headings


def test_table_has_every_step(tutorial):
    rows = re.findall(r"^\| (\d+\. [^|]*) \| \d+ \|$", PAGE.read_text(), re.MULTILINE)
    headings = re.findall(r"^## (\d+\. .*)$", PAGE.read_text(), re.MULTILINE)
    assert [row for row in rows if row in headings] == headings

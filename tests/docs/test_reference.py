"""The reference is what the code writes, and the code's own words are all in it."""

import re

import pytest

from iedn.errors import IednError
from tests.documents import ROOT
from tools.reference.docstrings import attributes_of
from tools.reference.pages import pages
from tools.reference.refusals import REFUSALS
from tools.reference.values import allowed

FOLDER = ROOT / "docs" / "reference"
PACKAGES = ("iedn", "sites", "client", "server", "simulation")


@pytest.mark.parametrize("name", sorted(p.name for p in FOLDER.glob("*.md")))
def test_page_is_what_the_code_writes(name):
    """After a change: ``python -m tools.reference``."""
    assert (FOLDER / name).read_text(encoding="utf-8") == pages()[name]


def test_every_page_is_there():
    assert {p.name for p in FOLDER.glob("*.md")} == set(pages())


def test_every_code_of_a_refusal_in_the_sources_is_explained_and_the_other_way_round():
    sources = (p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
    text = "\n".join(p.read_text(encoding="utf-8") for p in sources)
    found = set(re.findall(r'(?:RefusedError|ProtocolError)\(\s*"([a-z-]+)"', text))
    assert found == set(REFUSALS)


def test_every_exit_code_has_a_line():
    codes = {kind.exit_code for kind in IednError.__subclasses__()} | {IednError.exit_code}
    text = (FOLDER / "exit-codes.md").read_text(encoding="utf-8")
    assert {int(c) for c in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} >= codes


class Head:
    """A head.

    Attributes:
        nose: ``one`` of a
            few | kinds.
        ears: two.

    And more.
    """


class Bald(Head):
    """Without hair.

    Attributes:
        ears: still two.
    """


def test_attributes_of_a_class_and_its_base():
    assert attributes_of(Bald) == {"nose": "`one` of a few \\| kinds.", "ears": "Still two."}


def test_a_type_without_limits_and_one_that_may_be_absent():
    assert allowed(int | None, ()) == "integer"
    assert allowed(tuple[bool, ...], ()) == "list of `true`, `false`"

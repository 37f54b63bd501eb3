"""The registry holds every code the product gives, and the reference page is its print."""

import re
from pathlib import Path

import pytest

from sites.codes import CODES, reference_page, severity

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "codes.md"


def test_every_code_in_the_sources_is_registered_and_the_other_way_round():
    sources = [p for p in (ROOT / "sites").rglob("*.py") if p.name != "codes.py"]
    text = "\n".join(p.read_text() for p in sources)
    assert set(re.findall(r"[\"`]([EWI][1-9]\d\d)\b", text)) == set(CODES)


def test_severity_is_the_first_letter_and_an_unknown_code_is_an_error():
    assert [severity(c) for c in ("E101", "W103", "I107")] == ["error", "warning", "info"]
    with pytest.raises(ValueError, match="E999"):
        severity("E999")


def test_each_code_says_what_was_found_and_what_to_do_in_one_line():
    for code, entry in CODES.items():
        assert entry.meaning.endswith("."), code
        assert entry.action.endswith("."), code
        assert "\n" not in entry.meaning + entry.action
        assert "|" not in entry.meaning + entry.action


def test_reference_page_is_current():
    """After a change: PAGE.write_text(reference_page())."""
    assert PAGE.read_text(encoding="utf-8") == reference_page()

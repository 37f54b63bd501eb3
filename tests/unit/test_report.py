"""A report, and what the commands say, is about how the run stands now."""

import pytest

from server.config import FederationConfig
from server.report import finished, incomplete, render

FINISHED = {"event": "finished", "best_round": 2}
INCOMPLETE = {
    "event": "incomplete",
    "reason": "round 3: 1 of 2 needed sites (site-b: <late>)",
    "roster": {"site-b": {"status": "late"}},
}
COMMIT = {"event": "commit", "round": 0}
CONFIG = FederationConfig.model_validate(
    {
        "run": "run-1",
        "seed": 1,
        "preset": "tiny",
        "rounds": {"count": 3, "quorum": 2},
        "sites": {"site-a": {}, "site-b": {}},
    }
)


@pytest.mark.parametrize(
    ("events", "is_finished", "is_incomplete"),
    [
        ([], False, False),
        ([COMMIT], False, False),
        ([COMMIT, FINISHED], True, False),
        ([COMMIT, INCOMPLETE], False, True),
        ([COMMIT, INCOMPLETE, COMMIT, FINISHED], True, False),
        ([COMMIT, FINISHED, {"event": "join"}, INCOMPLETE], False, True),
        ([COMMIT, FINISHED, {"event": "join"}, COMMIT], False, False),
    ],
)
def test_how_the_run_stands(events, is_finished, is_incomplete):
    assert (bool(finished(events)), bool(incomplete(events))) == (is_finished, is_incomplete)


def test_report_of_an_incomplete_run_says_so_and_why():
    page = render([COMMIT, INCOMPLETE], CONFIG, {"versions": {"iedn": "0.1.0"}})
    assert "Incomplete." in page
    assert "1 of 2 needed sites (site-b: &lt;late&gt;)" in page
    assert "not finished" in page
    assert "Incomplete." not in render([COMMIT], CONFIG, {"versions": {"iedn": "0.1.0"}})

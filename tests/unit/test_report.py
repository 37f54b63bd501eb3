"""A report, and what the commands say, is about how the run stands now."""

import re

import pytest

from server.config import FederationConfig
from server.evaluation import over_sites
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


def commit(number, **roster):
    return {
        "event": "commit",
        "round": number,
        "model_hash": "a" * 64,
        "roster": {s.replace("_", "-"): entry for s, entry in roster.items()},
        "contributions": {"decoder": {"sites": 1, "scans": 10}},
    }


def evaluation(split, number):
    metrics = {
        "psnr_db_mean": 20.0 + number,
        "ssim_percent_mean": 60.0,
        "bias_mean": 0.01,
        "bias_sd": 0.02,
        "with_asl_ssim_percent_mean": 70.0,
        "without_asl_ssim_percent_mean": 50.0,
    }
    sites = {
        "site-a": {"metrics": metrics, "num_scans": 10},
        "site-b": {"metrics": {"psnr_db_mean": 19.0, "ssim_percent_mean": 50.0}, "num_scans": 5},
    }
    return {
        "event": "evaluation",
        "evaluation": "metrics",
        "split": split,
        "round": number,
        "model_hash": "a" * 64,
        "sites": sites,
        "roster": {"site-a": {"status": "accepted"}, "site-b": {"status": "accepted"}},
        "over_sites": over_sites(sites),
    }


def test_report_of_a_finished_run_is_one_file_of_aggregates():
    accepted = {"status": "accepted"}
    events = [
        COMMIT,
        commit(1, site_a=accepted, site_b={"status": "refused", "code": "norm"}),
        evaluation("validation", 1),
        commit(2, site_a=accepted, site_b=accepted),
        evaluation("validation", 2),
        evaluation("test", 2),
        {"event": "finished", "best_round": 2, "best_hash": "a" * 64},
    ]
    page = render(events, CONFIG, {"versions": {"iedn": "0.1.0"}})
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(a.startswith(("data:image/svg+xml;base64,", "#")) for a in addresses)
    assert page.count("data:image/svg") == 3  # curves, by ASL, limits of agreement
    assert "data:image/png" not in page  # no picture of a scan
    assert not re.search(r"<script|@import|url\(|<link", page)
    # Test PSNR: sites 22 and 19, mean 20.5, worst 19, SD 3 / sqrt(2) = 2.12.
    for text in ("20.50", "19.00", "2.12", "1 of 2", "2 of 2", "norm", "site-b"):
        assert text in page
    assert "Research use only" in page


def test_a_history_without_means_over_sites_is_shown_all_the_same():
    old = evaluation("test", 1)
    del old["over_sites"]
    page = render([COMMIT, old], CONFIG, {"versions": {"iedn": "0.1.0"}})
    assert "20.00" in page  # mean of 21 and 19

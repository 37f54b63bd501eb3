"""The coordinator's part: areas stratified by site from seven numbers, and where they are shown."""

import numpy as np
import pytest

from iedn.errors import RefusedError
from iedn.evaluation.statistics import site_areas
from iedn.protocol.messages import PairedAreas
from server.config import load_federation
from server.report import render
from server.stratified import checked_areas, stratified

SIZES = {"site-x": (12, 20), "site-y": (30, 15)}


def site(seed, sizes):
    """Labels and two scores; the scanner's offset differs between sites."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([True, False], sizes)
    return labels, *(
        10 * seed + rng.normal(size=(2, labels.size)) + np.array([[1.0], [0.5]]) * labels
    )


def sent(name, seed):
    found = site_areas(*site(seed, SIZES[name]))
    return {"roi": PairedAreas(**vars(found))}


def test_seven_numbers_give_what_the_joined_scores_give_with_strata():
    event = stratified({n: checked_areas(sent(n, i)) for i, n in enumerate(SIZES)})["roi"]
    # By hand on the joined scores: pairs of (recurrence, response) within a site only.
    wins, pairs = np.zeros(2), 0
    for number, name in enumerate(SIZES):
        labels, *scores = site(number, SIZES[name])
        for k, values in enumerate(scores):
            wins[k] += (values[labels][:, None] > values[~labels][None, :]).sum()
        pairs += int(labels.sum() * (~labels).sum())
    expected = wins / pairs
    assert event["synthetic_cbv"]["value"] == pytest.approx(expected[0], abs=1e-12)
    assert event["asl"]["value"] == pytest.approx(expected[1], abs=1e-12)
    assert event["difference"] == pytest.approx(expected[0] - expected[1], abs=1e-12)
    assert (event["num_recurrence"], event["num_treatment_response"]) == (42, 35)
    assert event["sites"] == ["site-x", "site-y"]


def test_a_comparison_is_of_the_sites_that_sent_it():
    one, other = (checked_areas(sent(n, i)) for i, n in enumerate(SIZES))
    found = stratified({"site-x": {**one, "models": one["roi"]}, "site-y": other})
    assert (found["models"]["sites"], found["roi"]["sites"]) == (["site-x"], ["site-x", "site-y"])
    assert found["models"]["p_value"] == stratified({"site-x": one})["roi"]["p_value"]
    assert stratified({}) == {}


def test_numbers_that_no_scores_have_are_refused():
    wrong = {"roi": sent("site-x", 0)["roi"].model_copy(update={"covariance": 0.5})}
    with pytest.raises(RefusedError, match="wrong-areas"):
        checked_areas(wrong)


FEDERATION = """
run = "r"
preset = "tiny"
seed = 1
[rounds]
count = 1
quorum = 1
[sites.site-a]
[sites.site-x]
role = "evaluate"
[sites.site-y]
role = "evaluate"
"""


def test_the_report_shows_each_site_and_all_together(tmp_path):
    path = tmp_path / "federation.toml"
    path.write_text(FEDERATION)
    areas = {n: checked_areas(sent(n, i)) for i, n in enumerate(SIZES)}
    sites = {
        name: {"metrics": {}, "num_scans": 30, "areas": stratified({name: found})}
        for name, found in areas.items()
    }
    event = {
        "event": "evaluation",
        "round": 1,
        "split": "test",
        "evaluation": "diagnostic",
        "sites": sites,
        "roster": {"site-x": {"status": "accepted"}, "site-y": {"status": "accepted"}},
        "stratified": stratified(areas),
    }
    lock = {"versions": {"iedn": "0.1.0"}}
    page = render([event], load_federation(path), lock)
    whole = event["stratified"]["roi"]
    assert f"{whole['synthetic_cbv']['value']:.3f}" in page
    assert "all, stratified by site" in page
    assert "42 / 35" in page
    assert "12 / 20" in page
    assert page.count("ROI values") == 3
    event["roster"]["site-z"] = {"status": "refused", "code": "policy"}
    assert "site-z: policy" in render([event], load_federation(path), lock)

"""How a run stands, from histories written by hand."""

import pytest

from server import standing
from server.config import FederationConfig
from server.site_states import pasts_of, site_states
from tests.told import accepted, commit, federation, joined, snapshot, troubled, validation

CONFIG = FederationConfig.model_validate(federation())


def states(events, now, *, is_running=True):
    found = site_states(CONFIG, pasts_of(CONFIG, events), now, is_running=is_running)
    return {site: (facts["state"], facts["why"]) for site, facts in found.items()}


def test_costs_of_a_round_count_what_came():
    # Three updates of 3, 2 and 3 kB, one of them late: 3 + 2.
    assert standing.costs(troubled()[-2]) == {
        "round": 3,
        "time": "2026-03-02T09:03:00Z",
        "seconds": 31.5,
        "slowest_site": "site-a",
        "bytes": 5000,
        "bytes_down": None,
        "accepted": 2,
        "sites": 3,
    }
    sent = commit(1, {s: accepted(3, 1, bytes_down=7) for s in ("site-a", "site-b")})
    assert standing.costs(sent)["bytes_down"] == 14
    nobody = standing.costs(commit(1, {"site-a": {"status": "late"}}))
    assert (nobody["bytes"], nobody["slowest_site"], nobody["accepted"]) == (None, None, 0)


def test_a_round_that_was_said_twice_counts_once():
    events = [commit(1, {"site-a": accepted(3, 1)}), commit(1, {"site-a": accepted(3, 2)})]
    assert [c["roster"]["site-a"]["duration_s"] for c in standing.rounds(events)] == [2]


def test_curves_go_by_site_and_the_worst_is_that_of_the_last_round():
    events = [
        validation(1, site_a=20.0, site_b=19.0, site_c=10.0),
        validation(2, site_a=21.0, site_b=20.5),
    ]
    assert standing.curves(events)["psnr_db"] == {
        "site-a": [(1, 20.0), (2, 21.0)],
        "site-b": [(1, 19.0), (2, 20.5)],
        "site-c": [(1, 10.0)],
    }
    worst = standing.worst_now(events)
    assert worst["psnr_db"] == {"round": 2, "site": "site-b", "value": 20.5}
    assert worst["ssim_percent"]["value"] == 61.5


@pytest.mark.parametrize(
    "events", [[], [validation(1, site_a=20.0)], [validation(1, a=2.0, b=2.0)]]
)
def test_of_none_one_or_equal_sites_none_is_the_worst(events):
    assert standing.worst_now(events) == {}


def test_contributions_say_who_moved_a_group_who_held_it_and_how_often():
    found = standing.group_contributions(standing.rounds(troubled(2)))
    # Round 2: site-b refused, site-c late; only site-a is left. Round 1 had all three.
    assert found["round"] == 2
    asl = {
        "sites": 1,
        "scans": 10,
        "by_site": {"site-a": 10},
        "held": [],
        "void": "site-b: norm",
        "rounds": 2,
    }
    assert found["groups"]["encoder.ASL"] == asl
    held = standing.group_contributions(standing.rounds(troubled(1)))["groups"]["encoder.ASL"]
    assert (held["held"], held["by_site"]) == (["site-b"], {"site-a": 10})
    assert standing.group_contributions([]) == {}


def test_privacy_is_the_last_that_each_site_has_said():
    assert standing.privacy_reported(troubled(3)) == {"site-a": {"epsilon": 1.5, "round": 3}}


def test_log_holds_every_refusal_and_absence_with_place_and_reason():
    log = [
        (e["place"], e["site"], e["status"], e["why"]) for e in standing.not_accepted(troubled())
    ]
    assert log == [
        ("join after round 0", "site-d", "offline", "offline: no sign of life"),
        ("round 2", "site-b", "refused", "norm: norm 12 <above> 10"),
        ("round 3", "site-c", "late", "no reply before the deadline"),
    ]
    lost = validation(3, site_a=1.0) | {"roster": {"site-a": {"status": "transport-5"}}}
    (entry,) = standing.not_accepted([lost])
    assert entry["place"] == "round 3, validation evaluation"
    assert entry["why"] == "its message was lost (transport-5)"


def test_sites_of_a_run_that_goes_on():
    now = snapshot(site_a="working", site_b="replied", site_c="offline", site_d="offline")
    found = states(troubled(), now)
    assert found == {
        "site-a": ("working", "round 4: asked, at work"),
        "site-b": ("replied", "round 4: has replied"),
        "site-c": (
            "missing",
            "round 4: offline: no sign of life; waited for until the deadline at most",
        ),
        "site-d": (
            "never seen",
            "has not joined yet: is it admitted, and its client started?",
        ),
        "site-x": ("idle", "joined; not asked now"),
    }


def test_a_site_that_will_not_reply_is_missing_with_the_reason():
    now = snapshot(site_b="missing") | {"reasons": {"site-b": "revoked"}}
    assert states(troubled(), now)["site-b"] == ("missing", "round 4: its admission was revoked")


def test_a_site_that_is_not_asked_is_known_by_whether_it_is_online():
    now = snapshot("round 3: validation evaluation", site_a="working")
    found = states(troubled(), now | {"online": ["site-a", "site-c"]})
    assert found["site-c"] == ("waiting", "online; asked at the next round")
    assert found["site-x"] == ("missing", "offline: no sign of life; not asked now")
    gone = states(troubled(), now | {"online": ["site-a"]})
    assert gone["site-c"] == ("missing", "round 3: no reply before the deadline")


def test_sites_of_a_run_that_stands_still_are_those_of_the_last_look():
    found = states(troubled(), {}, is_running=False)
    assert found["site-a"] == ("took part", "round 3, validation evaluation: accepted")
    assert found["site-c"] == ("missing", "round 3: no reply before the deadline")
    assert found["site-d"] == ("missing", "join after round 0: offline: no sign of life")
    assert states([], {}, is_running=False)["site-a"][0] == "never seen"
    refused = [joined(site_a={"status": "refused", "code": "wrong-role", "reason": "is 'train'"})]
    for is_running in (True, False):
        found = states(refused, {}, is_running=is_running)["site-a"]
        assert found == ("refused", "join after round 0: wrong-role: is 'train'")


def test_share_of_a_site_in_the_rounds():
    found = site_states(CONFIG, pasts_of(CONFIG, troubled()), {}, is_running=False)
    shares = {s: (f["rounds"], f["last_round"], f["required"]) for s, f in found.items()}
    assert shares["site-a"] == (3, 3, True)
    assert shares["site-b"] == (2, 3, False)
    assert shares["site-c"] == (2, 2, False)
    assert shares["site-x"] == (0, None, False)

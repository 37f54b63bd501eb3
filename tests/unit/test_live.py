"""What a coordinator does now, as others see it."""

from rich.console import Console

from server import live
from server.status import tables


def snapshot(**sites):
    return live.Snapshot("round 3", 12.0, 60.0, {k.replace("_", "-"): v for k, v in sites.items()})


def test_last_snapshot_is_kept_and_goes_with_the_run(tmp_path):
    with live.kept_in(tmp_path):
        live.report(snapshot(site_a="working", site_b="offline"))
        assert live.read(tmp_path)["sites"] == {"site-a": "working", "site-b": "offline"}
        live.report(snapshot(site_a="replied", site_b="offline"))
        assert live.read(tmp_path)["sites"]["site-a"] == "replied"
        assert live.read(tmp_path)["label"] == "round 3"
    assert live.read(tmp_path) == {}
    live.report(snapshot(site_a="working"))
    assert live.read(tmp_path) == {}


def test_terminal_shows_who_works_and_what_became_of_each_round(tmp_path):
    with live.kept_in(tmp_path):
        live.report(snapshot(site_a="working", site_b="offline"))
        now = live.read(tmp_path)
    facts = {
        "run": "glioma",
        "sites": ["site-a", "site-b"],
        "rounds_committed": 1,
        "rounds_planned": 4,
        "finished": {},
        "incomplete": {},
        "void": {1: {"encoder.ASL": "site-b: wrong-key"}},
        "rosters": {
            1: {
                "site-a": {"status": "accepted"},
                "site-b": {"status": "refused", "code": "wrong-key"},
            }
        },
        "now": now,
    }
    console = Console(width=90, record=True, file=None, force_terminal=False)
    with console.capture() as shown:
        console.print(tables(facts))
    text = shown.get()
    assert "round 3: 12 s, deadline in 48 s" in text
    assert "1 of 4 rounds committed" in text
    assert "round 1 left as they were: encoder.ASL (site-b: wrong-key)" in text
    for word in ("working", "offline", "accepted", "refused wrong-key"):
        assert word in text

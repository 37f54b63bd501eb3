"""A hospital with one of each bad file: training goes on, its report says why, nobody else learns.

The builders are those of ``tests/unit/test_bad_inputs.py``, one for every code that does not
refuse the manifest as a whole.
"""

import json
from pathlib import Path

import pytest
import tomli_w

import client.cli
from iedn.config import TrainingConfig
from server.config import FederationConfig, RoundsConfig, SiteEntry
from simulation.engine import run_in_process

SITE = """name = "{name}"
manifest = "manifest.csv"
workers = 1
[policy]
min_patients = 1
min_group_sites = 1
[split]
train = 0.6
validation = 0.2
test = 0.2
"""


def spoiled_site(bad, folder):
    """Writes the site; returns the expected code by the scan's key before it was spoiled."""
    first_cases = {code: case for case in reversed(bad.CASES.values()) for code in case[:1]}
    cases = [case for case in first_cases.values() if case[2] != bad.COHORT]
    site, expected, done = bad.Site(folder, patients=len(cases) + 7), {}, []
    for case in cases:
        case[3](site)
        row = site.rows[0]
        expected[f"{row['patient_id']}/{row['scan_id']}"] = case
        # A copied image spoils the next patient too, who is not used for another case.
        used = 2 if case[0] == "E301" else 1
        done += site.rows[:used]
        site.rows = site.rows[used:]
    site.rows = done + site.rows
    site.write()
    (folder / "site.toml").write_text(SITE.format(name="spoiled"))
    return expected


@pytest.fixture(scope="module")
def trained(bad, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    expected = spoiled_site(bad, out / "sites" / "spoiled")
    bad.Site(out / "sites" / "good", patients=6).write()
    (out / "sites" / "good" / "site.toml").write_text(SITE.format(name="good"))
    config = FederationConfig(
        run="bad-files",
        seed=1,
        preset="tiny",
        training=TrainingConfig(local_steps=2, batch_size=2, threads=1),
        rounds=RoundsConfig(count=2, quorum=2, poll_interval_s=0.02),
        sites={"spoiled": SiteEntry(required=True), "good": SiteEntry(required=True)},
        simulation=True,
    )
    content = config.model_dump(mode="json", exclude_none=True)
    (out / "federation.toml").write_text(tomli_w.dumps(content))
    run_in_process(out, config, workers=1)
    return out, expected


def test_training_comes_to_its_end_with_both_sites(trained):
    out, _ = trained
    events = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    commits = [e for e in events if e["event"] == "commit" and e["round"]]
    assert len(commits) == 2
    for commit in commits:
        assert set(commit["roster"]) == {"spoiled", "good"}
        assert commit["contributions"]["decoder"]["sites"] == 2
    assert events[-1]["event"] == "finished"


def test_the_sites_report_says_what_was_left_out_and_why(bad, trained, call):
    out, expected = trained
    site = out / "sites" / "spoiled" / "site.toml"
    words = ["--site", site, "check", "--preset", "tiny", "--overlays", "1", "--json"]
    code, printed, _ = call(client.cli.main, *words)
    assert code == 0
    report = json.loads(printed)
    found = {(f["scan"].split("/")[0], f["code"]) for f in report["findings"]}
    assert {(scan.split("/")[0], case[0]) for scan, case in expected.items()} <= found
    # Scans out: one a case that leaves its scan out, and E301's second.
    lost = sum(case[2] == bad.SCAN for case in expected.values()) + 1
    assert sum(report["flow"]["quarantined"].values()) == lost
    assert report["flow"]["usable"] == report["flow"]["listed"] - lost
    assert all(f["action"] for f in report["findings"])
    (picture,) = report["overlays"]
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert (out / "sites" / "spoiled" / "check") in Path(picture).parents


def test_nothing_of_it_reaches_the_coordinator(trained):
    out, _ = trained
    for name in ("history.jsonl", "federation.lock.json", "report.html"):
        path = out / name
        text = path.read_text() if path.exists() else ""
        for word in ("sub-0", "visit-", "SURNAME", "SECRET", ".nii", str(out), "quarantin"):
            assert word not in text, (name, word)
    assert (out / "history.jsonl").stat().st_size > 0

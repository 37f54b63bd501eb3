"""One scenario, every way of running it: the same model, bit for bit.

Real processes, real files: phantom, NIfTI, cache, training, gates, aggregation, report.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.session import RELEASES
from sites.release_log import verify

COMMAND = [str(Path(sys.executable).parent / "iedn-simulate"), "run", "smoke", "--json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def command(folder, name, *options):
    return [*COMMAND, "--out", str(folder / name), "--cohorts", str(folder / "cohorts"), *options]


def simulate(folder, name, *options):
    done = subprocess.run(
        command(folder, name, *options), capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def history(folder, name):
    path = folder / name / "history.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture(scope="module")
def reference(folder):
    return simulate(folder, "reference", "--workers", "2")


def test_run_leaves_what_it_promises(folder, reference):
    out = folder / "reference"
    assert {site["site"] for site in reference["sites"]} == {"site-a", "site-b"}
    assert "phantom" in reference["label"]
    for name in ("report.html", "curves.png", "montage.png", "summary.json", "best.safetensors"):
        assert (out / name).stat().st_size > 0, name
    maps = sorted((out / "sites" / "site-x" / "synthetic").rglob("*.nii.gz"))
    assert len(maps) == 6
    assert all(path.with_name(path.name[:-7] + ".json").exists() for path in maps)
    area = reference["external"]["site-x"]["roi"]["synthetic_cbv"]
    assert 0.0 <= area["low"] <= area["value"] <= area["high"] <= 1.0


def test_site_without_asl_never_gets_or_sends_its_encoder(folder, reference):
    commits = [e for e in history(folder, "reference") if e["event"] == "commit" and e["round"]]
    for commit in commits:
        assert "encoder.ASL" not in commit["roster"]["site-b"]["weights"]
        assert "encoder.ASL" in commit["roster"]["site-a"]["weights"]
        assert commit["contributions"]["encoder.ASL"]["sites"] == 1


def test_nothing_of_a_patient_reaches_the_coordinator(folder, reference):
    out = folder / "reference"
    for name in ("history.jsonl", "federation.lock.json", "report.html"):
        text = (out / name).read_text()
        assert "sub-0" not in text, name
        assert "visit-" not in text, name


def test_second_run_reaches_the_same_model(folder, reference):
    again = simulate(folder, "again", "--workers", "1")
    assert again["model_hash"] == reference["model_hash"]
    assert again["sites"] == reference["sites"]


def test_other_seed_reaches_another_model(folder, reference):
    assert simulate(folder, "seed", "--seed", "2")["model_hash"] != reference["model_hash"]


def test_killed_after_round_2_and_started_again_reaches_the_same_model(folder, reference):
    process = subprocess.Popen(
        command(folder, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not any(e["event"] == "commit" and e["round"] == 2 for e in history(folder, "killed")):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not any(e["event"] == "finished" for e in history(folder, "killed"))
    assert simulate(folder, "killed")["model_hash"] == reference["model_hash"]


def test_flowers_own_engine_reaches_the_same_model(folder, reference):
    pytest.importorskip("ray")
    found = simulate(folder, "flower", "--engine", "flower")
    assert found["model_hash"] == reference["model_hash"]
    assert found["sites"] == reference["sites"]
    for site in ("site-a", "site-b", "site-x"):  # whichever of Ray's processes played it
        numbers = [e["number"] for e in verify(folder / "flower" / "sites" / site / RELEASES)]
        assert numbers == list(range(1, len(numbers) + 1)) != []


def test_run_folder_of_another_scenario_is_refused_with_exit_code_3(folder, reference):
    done = subprocess.run(
        command(folder, "reference", "--seed", "99"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "differs in seed (1 there, 99 here)" in done.stderr
    assert "Traceback" not in done.stderr

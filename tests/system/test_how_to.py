"""The how-tos as their readers type them: every block that a page says is run, word for word."""

import json
import shutil
import time
from contextlib import closing

import pytest
import tomli_w

from client.accounting import PrivacyEvent
from client.ledger import PrivacyLedger
from iedn.toml import load_toml
from tests.deployment import free_port, run_command
from tests.terminal import PATIENCE_S, Terminal

pytestmark = [pytest.mark.system, pytest.mark.slow]

TRIAL_SITES = ("site-a", "site-b", "site-x")
COHORTS = {"hospital-a": "site-a", "external-b": "site-x"}
IMAGES = {"T1WI": "t1", "T2WI": "t2", "FLAIR": "flair", "ADC": "adc", "T1_C": "contrast"}
RELEASED = "glioma-cbv-0123456789ab.safetensors"


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """A folder with what the pages presuppose: two hospitals with scans, and a trained model."""
    folder = tmp_path_factory.mktemp("how-to") / "town"
    folder.mkdir()
    run_command("iedn-simulate", "run", "smoke", "--out", "runs/smoke", cwd=folder)
    shutil.copyfile(folder / "runs/smoke/best.safetensors", folder / "best.safetensors")
    words = "init federation --name glioma-cbv --sites hospital-a,hospital-b,hospital-c"
    more = "--evaluate external-b --host localhost --preset tiny --simulation"
    run_command("iedn-server", *f"{words} {more}".split(), cwd=folder)
    (folder / "federation" / "kits").rename(folder / "kits")
    for site, source in COHORTS.items():
        (made,) = (folder / "runs" / "cohorts").glob(f"{source}-*")
        shutil.copytree(made, folder / "kits" / site / "cohort")
    return folder


@pytest.fixture
def folder(town, tmp_path):
    """The town for one test alone, with nothing done in it yet."""
    return shutil.copytree(town, tmp_path / "town", ignore=shutil.ignore_patterns("runs"))


@pytest.fixture
def terminal(folder, tmp_path):
    """A shell in it."""
    with closing(Terminal(folder, tmp_path / "screen")) as opened:
        yield opened


def for_local_commands(folder, site, *, manifest="cohort/manifest.csv", **tables):
    """Take ``[coordinator]`` out of a site file, name the manifest, and put tables in."""
    path = folder / "kits" / site / "site.toml"
    content = load_toml(path) | {"manifest": manifest}
    del content["coordinator"]
    for name, table in tables.items():
        content[name] = {**content.get(name, {}), **table}
    path.write_text(tomli_w.dumps(content), encoding="utf-8")


def scans_of(folder, target, site="hospital-a"):
    """The images of a site, without manifest and truth, as a folder of their own."""
    for patient in (folder / "kits" / site / "cohort").glob("sub-*"):
        shutil.copytree(patient, target / patient.name)


def test_describe_your_data(documented, terminal, folder):
    for_local_commands(folder, "hospital-a")
    scans_of(folder, folder / "cohort")
    scans_of(folder, folder / "mri" / "cohort")
    words = "phantom bids --scenario smoke --layout bids"
    run_command("iedn-simulate", *words.split(), cwd=folder)
    shutil.copytree(folder / "bids" / "site-a" / "bids", folder / "study")
    first, more, named = documented
    assert "4 patients, 4 scans" in terminal.run(first)
    assert "0 errors" in terminal.run("iedn-client --site hospital-a check --preset tiny")
    printed = terminal.run(more)
    assert printed.count("4 patients, 4 scans") == 3
    findings = "".join(line for line in printed.splitlines() if not line.startswith('{"task"'))
    assert json.loads(findings[findings.index("{") :])["scans"] == 4
    for number, patient in enumerate(sorted((folder / "cohort").glob("sub-*"))):
        patient.rename(patient.with_name(f"Doe_Jane_{number}"))
    (folder / "cohort" / "manifest.csv").unlink()
    terminal.run(named)
    assert "sub-0004" in (folder / "cohort" / "manifest.csv").read_text()
    assert (folder / "cohort" / "pseudonyms.csv").stat().st_mode & 0o077 == 0


def test_bring_bids_data(documented, terminal, folder):
    for_local_commands(folder, "hospital-a", manifest="../../made/site-a/from-bids.csv")
    printed = "".join(terminal.run(block) for block in documented)
    assert "4 patients, 4 scans" in printed
    assert "0 errors" in printed


def test_from_dicom(documented, terminal, folder):
    """From the renamed files on; what comes before them needs a scanner's."""
    for_local_commands(folder, "hospital-a")
    scans_of(folder, folder / "nifti")
    (block,) = documented
    printed = terminal.run(block)
    assert "4 patients, 4 scans" in printed
    assert "0 errors" in printed


def test_evaluate_an_external_cohort(documented, terminal, folder):
    for_local_commands(folder, "hospital-a")
    for_local_commands(folder, "external-b", policy={"review": True})
    check, evaluate, approve, trained = documented
    assert "0 errors" in terminal.run(check)
    assert "Nothing has left" in terminal.run(evaluate)
    assert "0 releases, chain whole" in terminal.run(approve)
    assert (folder / "kits" / "external-b" / "approved-releases.txt").stat().st_size > 0
    assert "ASL" in terminal.run(trained)


def test_join_as_a_site(documented, terminal, folder):
    make_key, peers, describe, check, releases, use = documented
    scans_of(folder, folder / "cohort")
    assert "fingerprint SHA256:" in terminal.run(make_key)
    for site in ("hospital-b", "hospital-c"):
        terminal.run(f"iedn-client --site {site} init")
    for site in ("hospital-a", "hospital-b", "hospital-c"):
        key = f"kits/{site}/tls/site.pub"
        terminal.run(f"iedn-server admit {site} {key} --dir federation")
    terminal.run("iedn-server roster federation; cp federation/roster.json .")
    assert "hospital-c" in terminal.run(peers)
    terminal.run(describe)
    assert "never: images" in terminal.run(check)
    assert "0 releases, chain whole" in terminal.run(releases)
    models = folder / "kits" / "hospital-a" / "models"
    models.mkdir()
    shutil.copyfile(folder / "best.safetensors", models / RELEASED)
    terminal.run(use)
    kit = folder / "kits" / "hospital-a"
    assert len(list((kit / "synthetic").rglob("*_synthetic-cbv.nii.gz"))) == 4
    assert (kit / "report.html").stat().st_size > 0


def test_synthesize_a_map(documented, terminal, folder):
    for_local_commands(folder, "hospital-a")
    scans_of(folder, folder / "scans")
    (folder / "incoming").mkdir()
    shutil.copytree(folder / "scans" / "sub-0001", folder / "incoming" / "sub-0007")
    names = {**IMAGES, "ASL": "asl", "brain_mask": "brain"}
    for column, name in names.items():
        image = folder / "scans" / "sub-0002" / "visit-1" / f"{column}.nii.gz"
        shutil.copyfile(image, folder / f"{name}.nii.gz")
    (block,) = documented
    terminal.run(block)
    synthetic = folder / "kits" / "hospital-a" / "synthetic"
    assert (synthetic / "sub-0007" / "visit-1_synthetic-cbv.nii.gz").is_file()
    (sidecar,) = (folder / "maps" / "sub-0007").glob("*_synthetic-cbv.json")
    assert json.loads(sidecar.read_text())["inputs_missing"] == []


def test_answer_a_privacy_officer(documented, terminal, folder):
    leaving, records = documented
    for_local_commands(folder, "hospital-a")
    assert "never: images" in terminal.run(leaving)
    printed = terminal.run(records)
    assert "0 releases, chain whole" in printed
    assert "no privacy has been spent" in printed


def test_the_privacy_ledger(documented, terminal, folder):
    (folder / "kits" / "hospital-a").rename(folder / "kits" / "NAME")
    privacy = {"tier": "formal", "epsilon": 8.0, "delta": 0.001}
    for_local_commands(folder, "NAME", privacy=privacy)
    kit = folder / "kits" / "NAME"
    ledger = PrivacyLedger.open(kit, epsilon_max=8.0, delta=1e-3)
    spent = PrivacyEvent(noise_multiplier=2.0, sample_rate=0.125, steps=20)
    ledger.reserve(spent, run="glioma-cbv", round_number=1, base_hash="b" * 64)
    reading, recover, record, allow = documented
    assert "glioma-cbv round 1" in terminal.run(reading)
    for file in kit.glob("ledger.sqlite*"):
        file.unlink()
    terminal.run(recover)
    terminal.run(record)
    terminal.run(allow)
    shown = json.loads(terminal.run("iedn-client --site NAME ledger --json"))
    assert [entry["kind"] for entry in shown["entries"]][-2:] == ["recorded", "raised"]


def test_run_a_reader_study(documented, terminal, folder, tmp_path):
    for site in COHORTS:
        for_local_commands(folder, site)
    make_quality, make_diagnosis, readers, serve, status = documented
    terminal.run(make_quality)
    terminal.run(make_diagnosis)
    assert terminal.run(readers).count("http://127.0.0.1:8417/#") == 3
    port = free_port()
    screen = tmp_path / "page"
    with closing(Terminal(folder, screen)) as other:
        other.begin(serve.replace(" rate\n", f" rate --port {port}\n"))
        began = time.monotonic()
        while "page on http://127.0.0.1" not in screen.read_text():
            assert time.monotonic() - began < PATIENCE_S, screen.read_text()
            time.sleep(0.2)
        other.interrupt()
    assert "reader-1" in terminal.run(status)


def test_simulate(documented, terminal, folder):
    scans_of(folder, folder / "cohort")
    shutil.copyfile(
        folder / "kits" / "hospital-a" / "cohort" / "manifest.csv",
        folder / "cohort" / "manifest.csv",
    )
    first, tables, virtual = documented
    assert "smoke" in terminal.run(first)
    assert "ASL" in terminal.run(tables)
    terminal.run(virtual)
    assert sorted(p.name for p in folder.glob("*.toml")) == ["asl.toml", "rare.toml", "three.toml"]


def test_set_up_a_consortium(documented, terminal, folder):
    set_up, roster, certificates = documented
    assert "4 sites, 50 rounds of 3 updates at least" in terminal.run(set_up)
    (folder / "glioma-cbv" / "kits").rename(folder / "handed-out")
    for site in ("hospital-a", "hospital-b", "hospital-c"):
        kit = f"handed-out/{site}"
        terminal.run(f"iedn-client --site {kit} init")
        terminal.run(f"iedn-server admit {site} {kit}/tls/site.pub --dir glioma-cbv")
    terminal.run(roster)
    listed = json.loads((folder / "glioma-cbv" / "roster.json").read_text())
    assert sorted(listed["sites"]) == ["hospital-a", "hospital-b", "hospital-c"]
    before = (folder / "glioma-cbv" / "tls" / "server.crt").read_bytes()
    assert "coordinator.example.org" in terminal.run(certificates)
    assert (folder / "glioma-cbv" / "tls" / "server.crt").read_bytes() != before


def test_trial_on_one_machine(documented, tmp_path):
    setting_up, starting, looking, finishing = documented
    folder = tmp_path / "coordinator"
    folder.mkdir()
    port = f"--host localhost --port {min(free_port(), 65000)}"
    with closing(Terminal(folder, tmp_path / "first")) as first:
        first.run(setting_up.replace("--host localhost", port))
        trial = folder / "trial"
        lines = [line for line in starting.splitlines() if line]
        assert lines == ["iedn-server start .", *(f"iedn-client --site {s}" for s in TRIAL_SITES)]
        terminals = [Terminal(trial, tmp_path / f"{n}.screen") for n in range(len(lines))]
        try:
            for opened, line in zip(terminals, lines, strict=True):
                opened.begin(line)
            _wait_for_a_round(trial, tmp_path / "0.screen")
            printed = first.run(looking)
            assert "failed" not in printed
            assert "chain whole" in printed
            terminals[0].run("true")
            first.run(finishing)
            assert (trial / "report.html").stat().st_size > 0
        finally:
            for opened in terminals:
                opened.close()
    for site in TRIAL_SITES:
        (card,) = (trial / "kits" / site / "models").glob("trial-*.card.json")
        assert json.loads(card.read_text())["trained_on"] == "phantom (simulation)"


def _wait_for_a_round(trial, screen):
    history, began = trial / "history.jsonl", time.monotonic()
    while not history.exists() or '"round": 1,' not in history.read_text():
        assert time.monotonic() - began < PATIENCE_S, screen.read_text()
        time.sleep(0.5)

"""The cohort report's numbers by hand, the command's exit codes, and which way up a picture is."""

import json
from pathlib import Path

import numpy as np
import pytest

import client.cli
from iedn.config import PRESETS
from iedn.modalities import Modality
from sites.cohort import ScanRecord
from sites.dataset import examine_cohort
from sites.identifying import reads_like_a_name
from sites.overlay import chosen_slices, radiological, write_overlay
from sites.report import characteristics, cohort_report

GRID = PRESETS["tiny"].grid


@pytest.fixture
def check(call):
    def run(site, *words):
        words = ["--site", site, "check", "--preset", "tiny", "--overlays", "0", *words]
        code, out, _ = call(client.cli.main, *words)
        return code, out

    return run


def record(patient: int, scan: int = 1, **cells) -> ScanRecord:
    path = Path("t1.nii.gz")
    return ScanRecord(f"sub-{patient:04d}", f"visit-{scan}", {Modality.T1WI: path}, **cells)


def test_characteristics_by_hand():
    found = characteristics(
        [
            record(1, 1, age=50.0, sex="F", disease="glioma", label="recurrence"),
            record(1, 2, age=51.0, label="treatment_response"),
            record(1, 3, label="recurrence"),
            record(2, 1, sex="M", disease="glioma"),
            record(2, 2, age=60.0),
            record(3, 1, label="recurrence"),
        ]
    )
    assert (found.patients, found.scans) == (3, 6)
    assert found.scans_per_patient == (1, 2.0, 3)
    # Ages 50 (the first that is given) and 60: mean 55, sample SD 10 / sqrt(2).
    assert (found.age_known, found.age_mean) == (2, 55.0)
    assert found.age_sd == pytest.approx(10 / np.sqrt(2))
    assert found.sex == {"F": 1, "M": 1, "unknown": 1}
    assert found.disease == {"glioma": 2, "unknown": 1}
    assert found.label == {"recurrence": 3, "treatment_response": 1, "unknown": 2}
    assert list(found.label) == ["recurrence", "treatment_response", "unknown"]


def test_characteristics_of_nobody():
    found = characteristics([])
    assert (found.patients, found.scans_per_patient, found.age_mean) == (0, None, None)


def test_flow_adds_up_and_a_scan_counts_under_the_code_that_decided(bad, tmp_path):
    site = bad.Site(tmp_path, patients=7)
    site.rows[0]["exclude_reason"] = "motion"
    site.path("T1WI", 1).unlink()
    site.path("ASL", 2).unlink()
    # A refused file and, later, a copied image: what decided is the copy.
    site.path("ADC", 3).unlink()
    site.path("T2WI", 4).write_bytes(site.path("T2WI", 3).read_bytes())
    site.rows[5]["CBV"] = ""
    config = site.write()
    report = cohort_report(config, examine_cohort(config, GRID))
    flow = report.flow
    assert (flow.listed, flow.usable, flow.without_cbv) == (7, 3, 1)
    assert flow.excluded == {"motion": 1}
    assert flow.quarantined == {"E100": 1, "E301": 2}
    assert flow.files_refused == {"E100": 1}
    parts = [report.parts[name].scans for name in ("train", "validation", "test")]
    assert sum(parts) == flow.usable - flow.without_cbv
    assert report.parts["all usable"].by_modality["ASL"] == 2
    assert [f.code for f in report.findings] == ["E100", "E100", "E100", "E301", "E301", "E403"]


def test_check_prints_the_flow_and_every_finding_with_what_to_do(bad, check, tmp_path):
    site = bad.Site(tmp_path)
    bad.truncate(site)
    site.write()
    code, out = check(tmp_path / "site.toml")
    assert code == 0
    assert "scans in the manifest" in out
    assert "E101 error sub-0001/visit-1 T2WI: truncated" in out.replace("\n", " ")
    assert "Export the series again" in out
    assert "1 errors (left out), 0 warnings" in out


def test_strict_turns_an_error_finding_into_exit_code_4(bad, check, tmp_path):
    site = bad.Site(tmp_path)
    site.write()
    assert check(tmp_path / "site.toml", "--strict")[0] == 0
    bad.truncate(site)
    assert check(tmp_path / "site.toml", "--strict")[0] == 4


def test_nothing_usable_is_4_and_the_report_says_why(bad, check, tmp_path):
    site = bad.Site(tmp_path, patients=1)
    site.path("T1WI").unlink()
    site.write()
    code, out = check(tmp_path / "site.toml", "--json")
    report = json.loads(out)
    assert code == 4
    assert (report["usable"], report["flow"]["quarantined"]) == (False, {"E100": 1})


def test_pictures_are_radiological():
    plane = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    # Rows run to the back, columns to the left: as a radiologist sees it, nothing to turn.
    to_left_and_back = np.diag([-2.0, -2.0, 5.0, 1.0])
    np.testing.assert_array_equal(radiological(plane, to_left_and_back), plane)
    # Rows run to the front, columns to the right: both are turned.
    to_right_and_front = np.diag([2.0, 2.0, 5.0, 1.0])
    np.testing.assert_array_equal(radiological(plane, to_right_and_front), [[4, 3], [2, 1]])


def test_slices_are_spread_over_the_brain():
    mask = np.zeros((50, 4, 4), dtype=np.float32)
    mask[5:46, 1, 1] = 1.0
    # Brain on slices 5 to 45; 15, 32.5, 50, 67.5 and 85 % of 40 steps are 6, 13, 20, 27 and 34.
    assert chosen_slices(mask) == [11, 18, 25, 32, 39]
    mask[:] = 0
    mask[7, 1, 1] = 1.0
    assert chosen_slices(mask) == [7]


def test_a_picture_of_a_scan_with_one_slice_of_brain_can_be_drawn(bad, tmp_path):
    site = bad.Site(tmp_path, patients=1)
    site.spoil("brain_mask", bad.disc(69, 1))
    cohort = examine_cohort(site.write(), GRID)
    path = tmp_path / "check" / "sub-0001" / "visit-1.png"
    write_overlay(path, cohort.records[0], cohort.all.prepared(0))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sub-0007", False),
        ("P12", False),
        ("visit-1", False),
        ("ses-02", False),
        ("T1WI", False),
        ("sub-0007_ses-01_ce-GAD_T1w", False),
        ("brain_mask", False),
        ("SURNAME_T1", True),
        ("19700102", True),
        ("sub-1970-01-02", True),
        ("202413990", False),  # no month 13
    ],
)
def test_what_reads_like_a_name(text, named):
    assert reads_like_a_name(text) == named

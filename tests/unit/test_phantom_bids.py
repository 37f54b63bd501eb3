"""The BIDS layout holds the manifest's very files, described."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simulation.phantom import PhantomCohort, SiteProtocol, write_bids, write_cohort
from sites.cohort import ScanRecord, load_manifest
from sites.discovery.layouts import discover
from sites.discovery.manifest import describe

VALIDATOR = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))

PROTOCOL = SiteProtocol(
    rows=24,
    columns=24,
    slices=6,
    spacing_mm=9.0,
    slice_spacing_mm=20.0,
    asl_output="4d",
    asl_pairs=1,
    pld_s=2.0,
    missing_probability={"FLAIR": 1.0},
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cohort = PhantomCohort(patients=1, min_visits=2, max_visits=2, protocol=PROTOCOL)
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    return write_cohort(folder, cohort, seed=5)


@pytest.fixture(scope="module")
def dataset(manifest: Path) -> Path:
    return write_bids(manifest, PROTOCOL)


def test_raw_and_derived_images_are_the_manifests(manifest: Path, dataset: Path) -> None:
    assert dataset == manifest.parent / "bids"
    stem = "sub-0001/ses-2"
    pairs = {
        "T1WI": f"{stem}/anat/sub-0001_ses-2_T1w",
        "T2WI": f"{stem}/anat/sub-0001_ses-2_T2w",
        "T1_C": f"{stem}/anat/sub-0001_ses-2_ce-gd_T1w",
        "ADC": f"{stem}/dwi/sub-0001_ses-2_ADC",
        "ASL": f"{stem}/perf/sub-0001_ses-2_asl",
        "CBV": f"derivatives/phantom/{stem}/perf/sub-0001_ses-2_cbv",
        "brain_mask": f"derivatives/phantom/{stem}/anat/sub-0001_ses-2_desc-brain_mask",
        "lesion_mask": f"derivatives/phantom/{stem}/anat/sub-0001_ses-2_label-lesion_mask",
    }
    for column, name in pairs.items():
        original = manifest.parent / "sub-0001" / "visit-2" / f"{column}.nii.gz"
        assert (dataset / f"{name}.nii.gz").read_bytes() == original.read_bytes(), column
    assert len(list(dataset.rglob("*.nii.gz"))) == 2 * len(pairs)


def test_descriptions_say_what_bids_wants(manifest: Path, dataset: Path) -> None:
    raw = json.loads((dataset / "dataset_description.json").read_text())
    assert (raw["DatasetType"], raw["BIDSVersion"]) == ("raw", "1.10.1")
    assert "no patients" in raw["Name"]
    derived = json.loads((dataset / "derivatives/phantom/dataset_description.json").read_text())
    assert derived["DatasetType"] == "derivative"
    assert (dataset / "participants.tsv").read_text() == "participant_id\nsub-0001\n"
    lines = (dataset / "sub-0001" / "sub-0001_sessions.tsv").read_text().splitlines()
    header = manifest.read_text().splitlines()[0].split(",")
    index = header.index("label")
    labels = [line.split(",")[index] for line in manifest.read_text().splitlines()[1:]]
    assert lines == ["session_id\tlabel", f"ses-1\t{labels[0]}", f"ses-2\t{labels[1]}"]
    perf = dataset / "sub-0001" / "ses-1" / "perf"
    described = json.loads((perf / "sub-0001_ses-1_asl.json").read_text())
    assert described["PostLabelingDelay"] == 2.0
    context = (perf / "sub-0001_ses-1_aslcontext.tsv").read_text().split()
    assert context == ["volume_type", "m0scan", "control", "label"]
    t1 = json.loads((dataset / "T1w.json").read_text())
    assert (t1["RepetitionTime"], t1["MagneticFieldStrength"]) == (0.6, 3.0)
    assert not (dataset / "FLAIR.json").exists(), "a sidecar without images is an error in BIDS"


def test_dataset_leaves_the_cohort_usable_and_is_kept(manifest: Path, dataset: Path) -> None:
    cohort = PhantomCohort(patients=1, min_visits=2, max_visits=2, protocol=PROTOCOL)
    assert write_cohort(manifest.parent, cohort, seed=5) == manifest
    mark = dataset / "README.md"
    before = mark.stat().st_mtime_ns
    assert write_bids(manifest, PROTOCOL) == dataset
    assert mark.stat().st_mtime_ns == before


def test_interrupted_copy_leaves_nothing(manifest: Path, tmp_path: Path) -> None:
    other = tmp_path / "manifest.csv"
    other.write_text(manifest.read_text())
    with pytest.raises(FileNotFoundError):
        write_bids(other, PROTOCOL)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.csv"]


def content(record: ScanRecord) -> tuple[dict[str, bytes], ScanRecord]:
    """The bytes of a scan's files by column, and everything else about it."""
    files = {column: path.read_bytes() for column, path in record.files.items()}
    bare = replace(record, images={}, cbv=None, brain_mask=None, lesion_mask=None)
    return files, bare


def test_the_manifest_of_the_dataset_is_that_of_the_phantom(manifest: Path, dataset: Path) -> None:
    path = dataset / "manifest.csv"
    found, _ = describe(discover(dataset, "auto"), dataset, path)
    try:
        again = load_manifest(path).scans
    finally:
        path.unlink()
    assert found.findings == ()
    # The very same scans: only folders and sessions are called otherwise.
    assert [r.scan_id for r in again] == ["ses-1", "ses-2"]
    renamed = [replace(r, scan_id=r.scan_id.replace("ses-", "visit-")) for r in again]
    assert list(map(content, renamed)) == list(map(content, load_manifest(manifest).scans))
    assert renamed[0].asl_kind == "deltam"
    assert renamed[0].pld_s == 2.0


def validated(folder: Path, cache: Path) -> tuple[int, list[str]]:
    """Exit code and codes of errors that the official validator gives a dataset."""
    done = subprocess.run(
        [str(VALIDATOR), str(folder), "--json"],
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, "DENO_DIR": str(cache)},
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    return done.returncode, [i["code"] for i in issues if i["severity"] == "error"]


@pytest.mark.skipif(VALIDATOR is None, reason="needs bids-validator-deno (extra dev)")
def test_the_official_validator_has_no_complaint(dataset: Path, tmp_path: Path) -> None:
    assert validated(dataset, tmp_path / "deno") == (0, [])
    spoiled = tmp_path / "bids"
    shutil.copytree(dataset, spoiled)
    sidecar = spoiled / "sub-0001" / "ses-1" / "perf" / "sub-0001_ses-1_asl.json"
    fields = json.loads(sidecar.read_text())
    del fields["PostLabelingDelay"]
    sidecar.write_text(json.dumps(fields))
    code, errors = validated(spoiled, tmp_path / "deno")
    assert code != 0
    assert errors, "the validator would pass anything"

"""Scans in a BIDS dataset: suffixes, entities, derivatives, tables."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from iedn.modalities import Modality
from sites.discovery.bids import discover_bids
from sites.discovery.layouts import discover

S = "sub-0007/ses-01"
PREFIX = "sub-0007_ses-01"
T1 = f"{S}/anat/{PREFIX}_T1w.nii.gz"
MASK = f"derivatives/prep/{S}/anat/{PREFIX}_desc-brain_mask.nii.gz"
COMPLETE = {
    "ArterialSpinLabelingType": "PCASL",
    "PostLabelingDelay": 1.8,
    "LabelingDuration": 1.8,
    "M0Type": "Separate",
}


def files(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def asl(root: Path, *types: str, sidecar: dict | None = None) -> Path:
    path = root / S / "perf" / f"{PREFIX}_asl.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (2, 2, 2, max(len(types), 1))
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, dtype=np.float32), np.eye(4)), path)
    if types:
        table = "volume_type\n" + "".join(f"{kind}\n" for kind in types)
        path.with_name(f"{PREFIX}_aslcontext.tsv").write_text(table)
    if sidecar is not None:
        path.with_name(f"{PREFIX}_asl.json").write_text(json.dumps(sidecar))
    return path


def codes(found) -> list[str]:
    return [finding.code for finding in found.findings]


@pytest.mark.parametrize(
    ("name", "column"),
    [
        (f"{S}/anat/{PREFIX}_T2w.nii.gz", "T2WI"),
        (f"{S}/anat/{PREFIX}_acq-tse_run-1_T2w.nii", "T2WI"),
        (f"{S}/anat/{PREFIX}_FLAIR.nii.gz", "FLAIR"),
        (f"{S}/anat/{PREFIX}_ce-gadobutrol_T1w.nii.gz", "T1_C"),
        (f"{S}/anat/{PREFIX}_acq-3d_ce-gd_part-mag_T1w.nii.gz", "T1_C"),
        (f"{S}/dwi/{PREFIX}_ADC.nii.gz", "ADC"),
        (f"derivatives/dsc/{S}/perf/{PREFIX}_cbv.nii.gz", "CBV"),
        (f"derivatives/dsc/{S}/perf/{PREFIX}_space-T1w_desc-leakage_cbv.nii.gz", "CBV"),
        (f"derivatives/x/{S}/anat/{PREFIX}_label-lesion_mask.nii.gz", "lesion_mask"),
        (f"derivatives/x/{S}/anat/{PREFIX}_desc-lesion_mask.nii.gz", "lesion_mask"),
    ],
)
def test_every_suffix_has_its_column(tmp_path, name, column):
    files(tmp_path, T1, MASK, name)
    found = discover_bids(tmp_path)
    (record,) = found.scans
    assert record.key == "sub-0007/ses-01"
    assert record.files == {
        "T1WI": tmp_path / T1,
        "brain_mask": tmp_path / MASK,
        column: tmp_path / name,
    }
    assert found.findings == ()


@pytest.mark.parametrize(
    "name",
    [
        f"{S}/anat/{PREFIX}_PDw.nii.gz",
        f"{S}/anat/{PREFIX}_ce-gd_FLAIR.nii.gz",
        f"{S}/anat/{PREFIX}_part-phase_T1w.nii.gz",
        f"{S}/perf/{PREFIX}_cbv.nii.gz",
        f"{S}/anat/{PREFIX}_ADC.nii.gz",
        f"{S}/anat/notes.nii.gz",
        f"derivatives/x/{S}/anat/{PREFIX}_T2w.nii.gz",
        f"derivatives/x/{S}/perf/{PREFIX}_space-MNI152_cbv.nii.gz",
        f"derivatives/x/{S}/anat/{PREFIX}_desc-ventricle_mask.nii.gz",
        "stray.nii.gz",
    ],
)
def test_anything_else_is_counted_and_not_used(tmp_path, name):
    files(tmp_path, T1, MASK, name)
    found = discover_bids(tmp_path)
    assert set(found.scans[0].files) == {"T1WI", "brain_mask"}
    assert [(f.code, f.path) for f in found.findings] == [("W110", tmp_path / name)]


def test_without_sessions_there_is_one_scan(tmp_path):
    files(tmp_path, "sub-0007/anat/sub-0007_T1w.nii.gz", "sub-0008/anat/sub-0008_T1w.nii.gz")
    found = discover_bids(tmp_path)
    assert [r.key for r in found.scans] == ["sub-0007/scan-1", "sub-0008/scan-1"]
    assert codes(found) == ["W211", "W211"]


def test_the_plainest_name_is_taken_and_said_so(tmp_path):
    other = f"{S}/anat/{PREFIX}_run-2_T1w.nii.gz"
    func = f"derivatives/a/{S}/func/{PREFIX}_desc-brain_mask.nii.gz"
    files(tmp_path, T1, other, func, MASK, f"{S}/anat/{PREFIX}_T1w.nii")
    found = discover_bids(tmp_path)
    (record,) = found.scans
    assert (record.images[Modality.T1WI], record.brain_mask) == (tmp_path / T1, tmp_path / MASK)
    assert codes(found) == ["W103", "W109", "W109"]
    assert "run-2" in found.findings[2].problem


@pytest.mark.parametrize(
    "name",
    [
        f"sub-0008/ses-01/anat/{PREFIX}_T2w.nii.gz",
        f"sub-0007/ses-02/anat/{PREFIX}_T2w.nii.gz",
        f"derivatives/dsc/sub-0008/ses-01/perf/{PREFIX}_cbv.nii.gz",
        "sub-0007/ses-01/anat/sub-0007_T2w.nii.gz",
    ],
)
def test_a_file_in_another_patients_or_sessions_folder_is_not_used(tmp_path, name):
    files(tmp_path, T1, MASK, name)
    found = discover_bids(tmp_path)
    assert [(f.code, f.path) for f in found.findings] == [("E212", tmp_path / name)]
    assert [set(record.files) for record in found.scans] == [{"T1WI", "brain_mask"}]


def test_a_session_without_t1_is_left_out(tmp_path):
    files(tmp_path, T1, MASK, "sub-0007/ses-02/anat/sub-0007_ses-02_T2w.nii.gz")
    found = discover_bids(tmp_path)
    assert [record.scan_id for record in found.scans] == ["ses-01"]
    assert [(f.code, f.path) for f in found.findings] == [("E210", tmp_path / "sub-0007/ses-02")]


def test_derivatives_without_their_session_are_explained(tmp_path):
    mask = "derivatives/prep/sub-0007/anat/sub-0007_desc-brain_mask.nii.gz"
    files(tmp_path, T1, MASK, mask)
    found = discover_bids(tmp_path)
    assert [record.brain_mask for record in found.scans] == [tmp_path / MASK]
    (finding,) = found.findings
    assert (finding.code, finding.path) == ("E210", tmp_path / "sub-0007")
    assert "only derivatives" in finding.problem


def test_the_cbf_volume_is_named_by_the_table_never_the_first(tmp_path):
    files(tmp_path, T1, MASK)
    path = asl(tmp_path, "m0scan", "control", "label", "cbf", sidecar={"PostLabelingDelay": 2})
    (record,) = discover_bids(tmp_path).scans
    assert record.images[Modality.ASL] == path
    assert (record.asl_kind, record.asl_volume, record.pld_s) == ("cbf", 3, 2.0)


def test_differences_need_a_complete_sidecar(tmp_path):
    files(tmp_path, T1, MASK, f"{S}/perf/{PREFIX}_m0scan.nii.gz")
    asl(tmp_path, "deltam", sidecar=COMPLETE)
    found = discover_bids(tmp_path)
    (record,) = found.scans
    assert (record.asl_kind, record.asl_volume, record.pld_s) == ("deltam", 0, 1.8)
    assert found.findings == ()
    for field in COMPLETE:
        asl(tmp_path, "deltam", sidecar={k: v for k, v in COMPLETE.items() if k != field})
        found = discover_bids(tmp_path)
        assert codes(found) == ["E201"]
        assert field in found.findings[0].problem
        assert Modality.ASL not in found.scans[0].images


@pytest.mark.parametrize("types", [(), ("cbf", "cbf"), ("control",)])
def test_asl_that_nothing_explains_is_left_out(tmp_path, types):
    files(tmp_path, T1, MASK)
    asl(tmp_path, *types)
    found = discover_bids(tmp_path)
    assert codes(found) == ["E201"]
    assert set(found.scans[0].files) == {"T1WI", "brain_mask"}


def test_tables_give_label_age_sex_and_a_session_goes_first(tmp_path):
    other = "sub-0007/ses-02/anat/sub-0007_ses-02_T1w.nii.gz"
    files(tmp_path, T1, other, "sub-0008/ses-01/anat/sub-0008_ses-01_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tsex\tdisease\tlabel\n"
        "sub-0007\t61\tF\tglioma\trecurrence\nsub-0008\t89+\tn/a\tn/a\trelapse\n"
    )
    (tmp_path / "sub-0007/sub-0007_sessions.tsv").write_text(
        "session_id\tage\tlabel\nses-02\t62.5\ttreatment_response\n"
    )
    found = discover_bids(tmp_path)
    said = [(r.age, r.sex, r.disease, r.label) for r in found.scans]
    assert said == [
        (61.0, "F", "glioma", "recurrence"),
        (62.5, "F", "glioma", "treatment_response"),
        (None, "", "", None),
    ]
    assert [c for c in codes(found) if c != "W211"] == ["E402", "W405"]


def test_auto_sees_bids_by_its_description_or_an_anat_folder(tmp_path):
    files(tmp_path, T1, MASK)
    assert discover(tmp_path).scans[0].images == {Modality.T1WI: tmp_path / T1}
    empty = tmp_path / "empty"
    files(empty, "dataset_description.json", "sub-0001/1/T1WI.nii")
    assert discover(empty).scans == ()
    assert discover(empty, "folders").scans[0].key == "sub-0001/1"

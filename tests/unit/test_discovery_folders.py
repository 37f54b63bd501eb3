"""Scans in folders of patients and scans: names, copies, leftovers."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from iedn.errors import CohortError, ConfigError
from iedn.modalities import Modality
from sites.discovery import layouts
from sites.discovery.folders import discover_folders
from sites.discovery.layouts import discover


def files(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def asl(path: Path, volumes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (2, 2, 2, volumes) if volumes > 1 else (2, 2, 2)
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, dtype=np.float32), np.eye(4)), path)


def codes(found) -> list[str]:
    return [finding.code for finding in found.findings]


SCAN = "P0007/20"
BASE = (f"{SCAN}/T1WI.nii.gz", f"{SCAN}/brain_mask.nii.gz")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("T2WI", "T2WI"),
        ("T2_FLAIR", "FLAIR"),
        ("T2WI_FLAIR", "FLAIR"),
        ("FLAIR", "FLAIR"),
        ("flair", "FLAIR"),
        ("T1_C", "T1_C"),
        ("T1WI_C", "T1_C"),
        ("T1WI+C", "T1_C"),
        ("ADC", "ADC"),
        ("rADC", "ADC"),
        ("CBV", "CBV"),
        ("lesion_mask", "lesion_mask"),
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_every_name_has_its_column(tmp_path, name, column, ending):
    files(tmp_path, *BASE, f"{SCAN}/{name}{ending}")
    found = discover_folders(tmp_path)
    (record,) = found.scans
    assert record.files[column] == tmp_path / SCAN / f"{name}{ending}"
    assert set(record.files) == {"T1WI", "brain_mask", column}
    assert (record.patient_id, record.scan_id) == ("P0007", "20")
    assert found.findings == ()


@pytest.mark.parametrize("name", ["brain_mask", "brainmask", "bmT1WI", "rbrainmask"])
def test_names_of_the_mask(tmp_path, name):
    files(tmp_path, f"{SCAN}/T1WI.nii.gz", f"{SCAN}/{name}.nii.gz")
    (record,) = discover_folders(tmp_path).scans
    assert record.brain_mask == tmp_path / SCAN / f"{name}.nii.gz"


@pytest.mark.parametrize("name", ["ASL", "TGSE", "rTGSE"])
def test_a_single_asl_volume_is_taken_as_a_map(tmp_path, name):
    files(tmp_path, *BASE)
    asl(tmp_path / SCAN / f"{name}.nii.gz", 1)
    (record,) = discover_folders(tmp_path).scans
    assert record.images[Modality.ASL].name == f"{name}.nii.gz"
    assert record.asl_kind is record.asl_volume is None


def test_raw_asl_is_left_out_until_a_table_names_the_map(tmp_path):
    files(tmp_path, *BASE)
    asl(tmp_path / SCAN / "ASL.nii.gz", 3)
    found = discover_folders(tmp_path)
    assert codes(found) == ["E201"]
    assert Modality.ASL not in found.scans[0].images
    assert Modality.T1WI in found.scans[0].images
    (tmp_path / SCAN / "aslcontext.tsv").write_text("volume_type\ncontrol\nlabel\ncbf\n")
    (tmp_path / SCAN / "ASL.json").write_text('{"PostLabelingDelay": 2.0}')
    found = discover_folders(tmp_path)
    assert codes(found) == []
    (record,) = found.scans
    assert (record.asl_kind, record.asl_volume, record.pld_s) == ("cbf", 2, 2.0)


def test_an_asl_file_without_a_header(tmp_path):
    files(tmp_path, *BASE, f"{SCAN}/ASL.nii.gz")
    (tmp_path / SCAN / "ASL.nii").write_bytes(b"")
    found = discover_folders(tmp_path)
    assert codes(found) == ["E102", "W103"]
    assert Modality.ASL not in found.scans[0].images


@pytest.mark.parametrize("start", [b"no image", b"\x1f\x8b\x08\x00damaged"])
def test_an_asl_file_that_is_damaged(tmp_path, start):
    files(tmp_path, *BASE)
    (tmp_path / SCAN / "ASL.nii.gz").write_bytes(start)
    assert codes(discover_folders(tmp_path)) == ["E102"]


def test_an_asl_header_of_an_impossible_type(tmp_path):
    files(tmp_path, *BASE)
    asl(tmp_path / SCAN / "ASL.nii", 1)
    content = bytearray((tmp_path / SCAN / "ASL.nii").read_bytes())
    content[70:72] = b"\xff\x7f"  # datatype
    (tmp_path / SCAN / "ASL.nii").write_bytes(bytes(content))
    assert codes(discover_folders(tmp_path)) == ["E102"]


def test_the_aligned_copy_is_preferred_and_said_so(tmp_path):
    files(tmp_path, *BASE, f"{SCAN}/ADC.nii.gz", f"{SCAN}/rADC.nii.gz")
    found = discover_folders(tmp_path)
    assert found.scans[0].images[Modality.ADC].name == "rADC.nii.gz"
    (finding,) = found.findings
    assert (finding.code, finding.path.name) == ("I108", "rADC.nii.gz")
    assert "not ADC.nii.gz" in finding.problem


def test_two_names_of_one_modality(tmp_path):
    files(tmp_path, *BASE, f"{SCAN}/FLAIR.nii.gz", f"{SCAN}/T2_FLAIR.nii.gz")
    found = discover_folders(tmp_path)
    assert found.scans[0].images[Modality.FLAIR].name == "T2_FLAIR.nii.gz"
    assert codes(found) == ["W109"]
    assert "not FLAIR.nii.gz" in found.findings[0].problem


def test_a_file_packed_and_unpacked(tmp_path):
    files(tmp_path, *BASE, f"{SCAN}/T1WI.nii")
    found = discover_folders(tmp_path)
    assert found.scans[0].images[Modality.T1WI].name == "T1WI.nii.gz"
    assert [(f.code, f.path.name) for f in found.findings] == [("W103", "T1WI.nii")]


def test_a_scan_without_t1_is_left_out_and_one_without_mask_is_not(tmp_path):
    files(tmp_path, *BASE, "P0008/1/T2WI.nii", "P0008/2/T1WI.nii")
    found = discover_folders(tmp_path)
    assert [record.key for record in found.scans] == ["P0007/20", "P0008/2"]
    assert [(f.code, f.path) for f in found.findings] == [
        ("E210", tmp_path / "P0008/1"),
        ("W211", tmp_path / "P0008/2"),
    ]


def test_unknown_files_are_counted_and_named_once(tmp_path):
    odd = [f"P00{n}/1/DWI.nii.gz" for n in range(10, 15)] + ["P0010/1/x.dcm", "P0010/1/y.dcm"]
    files(tmp_path, *BASE, *odd, "CBF.nii", "P0010/.hidden.nii", ".trash/1/T1WI.nii", "labels.csv")
    found = discover_folders(tmp_path)
    (finding,) = [f for f in found.findings if f.code == "W110"]
    assert finding.problem.startswith(
        "8 files are not used, this is the first: DWI.nii.gz (5), *.dcm (2), CBF.nii (1). Known: "
    )


def test_many_unknown_names_are_not_all_listed(tmp_path):
    files(tmp_path, *BASE, *[f"{SCAN}/x{n}.nii" for n in range(11)])
    (finding,) = discover_folders(tmp_path).findings
    assert "11 files" in finding.problem
    assert "and 3 other names" in finding.problem


def test_auto_takes_folders_where_nothing_speaks_for_bids(tmp_path):
    files(tmp_path, "sub-0001/visit-1/T1WI.nii", "sub-0001/visit-1/brain_mask.nii")
    assert [r.key for r in discover(tmp_path).scans] == ["sub-0001/visit-1"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        discover(tmp_path / "none")


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder / "P1"))

    monkeypatch.setattr(layouts, "discover_folders", refuse)
    with pytest.raises(CohortError, match="P1: cannot be read: Permission denied"):
        discover(tmp_path)


def test_labels_are_merged_and_mistakes_in_them_are_findings(tmp_path):
    files(tmp_path, "P1/1/T1WI.nii", "P1/1/brain_mask.nii", "P1/2/T1WI.nii", "P1/2/brain_mask.nii")
    table = tmp_path / "labels.csv"
    table.write_text(
        "patient_id,scan_id,label\nP1,1, recurrence \nP1,2,Recurrence\nP9,1,recurrence\n"
    )
    found = discover(tmp_path)
    assert [record.label for record in found.scans] == ["recurrence", None]
    assert [(f.code, f.path) for f in found.findings] == [("E402", table), ("W404", table)]
    assert "'Recurrence'" in found.findings[0].problem
    assert "P9/1" in found.findings[1].problem


@pytest.mark.parametrize(
    "content", [b"patient_id;scan_id;label\n", b"\xff", b'patient_id,scan_id,label\n"P1\n'[:-1]]
)
def test_a_labels_table_that_cannot_be_used_is_a_finding(tmp_path, content):
    files(tmp_path, *BASE)
    (tmp_path / "labels.csv").write_bytes(content)
    found = discover(tmp_path)
    assert codes(found) == ["E401"]
    assert len(found.scans) == 1

"""The manifest: what a row means, what is refused, and how patients are split."""

from pathlib import Path

import pytest

from iedn.errors import CohortError, ScanError
from iedn.modalities import Modality
from sites.cohort import Cohort, ScanRecord, load_manifest, modality_counts, split_by_patient
from sites.config import SplitConfig

HEADER = "patient_id,scan_id,T1WI,T2WI,FLAIR,ADC,T1_C,ASL,CBV,brain_mask,label,split,exclude_reason"
OPTIONAL = ",age,sex,disease,lesion_mask,reader_roi,asl_kind,asl_volume,pld_s"
GOOD = "sub-0007,ses-01,a/t1.nii.gz,,,a/adc.nii.gz,,,a/cbv.nii.gz,a/mask.nii.gz,recurrence,test,"


def manifest(folder: Path, *rows: str, header: str = HEADER, name: str = "manifest.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def row(patient: str = "sub-0001", scan: str = "ses-01", *, split: str = "", rest: str = "") -> str:
    return f"{patient},{scan},t1.nii,,,,,,,mask.nii,,{split},{rest}"


def cohort_of(*patients: tuple[str, int, str | None]) -> Cohort:
    """Patients as (id, number of scans, split)."""
    return Cohort(
        tuple(
            ScanRecord(patient, f"ses-{n:02d}", {Modality.T1WI: Path("t1.nii")}, split=split)
            for patient, scans, split in patients
            for n in range(scans)
        )
    )


def test_a_row_becomes_a_record(tmp_path):
    (record,) = load_manifest(manifest(tmp_path, GOOD)).scans
    assert record.key == "sub-0007/ses-01"
    assert record.images == {
        Modality.T1WI: tmp_path / "a/t1.nii.gz",
        Modality.ADC: tmp_path / "a/adc.nii.gz",
    }
    assert (record.cbv, record.brain_mask) == (
        tmp_path / "a/cbv.nii.gz",
        tmp_path / "a/mask.nii.gz",
    )
    assert (record.label, record.split) == ("recurrence", "test")


def test_optional_columns(tmp_path):
    rest = ",61,F,glioma,les.nii,roi.nii,cbf,2,1.8"
    (record,) = load_manifest(
        manifest(tmp_path, GOOD + rest, row() + ",,,,,,,,", header=HEADER + OPTIONAL)
    ).scans[:1]
    assert (record.age, record.sex, record.disease) == (61.0, "F", "glioma")
    assert (record.lesion_mask, record.reader_roi) == (tmp_path / "les.nii", tmp_path / "roi.nii")
    assert (record.asl_kind, record.asl_volume, record.pld_s) == ("cbf", 2, 1.8)


def test_tab_separated_and_byte_order_mark(tmp_path):
    text = "\ufeff" + "\n".join([HEADER, GOOD]).replace(",", "\t") + "\r\n"
    (tmp_path / "m.tsv").write_text(text, encoding="utf-8")
    assert load_manifest(tmp_path / "m.tsv").scans[0].patient_id == "sub-0007"


def test_excluded_scans_are_kept_apart(tmp_path):
    cohort = load_manifest(manifest(tmp_path, row(), row("sub-0002", rest="motion")))
    assert [r.patient_id for r in cohort.scans] == ["sub-0001"]
    assert [r.exclude_reason for r in cohort.excluded] == ["motion"]


@pytest.mark.parametrize(
    ("column", "value", "allowed"),
    [
        ("patient_id", "", "letters"),
        ("scan_id", "../x", "letters"),
        ("T1WI", "/data/t1.nii", "relative"),
        ("ASL", "C:\\data\\asl.nii", "relative"),
        ("ADC", "a/../../adc.nii", "inside the manifest's folder"),
        ("label", "progress", "recurrence, treatment_response"),
        ("split", "val", "train, validation, test"),
        ("lesion_mask", "../les.nii", "inside the manifest's folder"),
        ("asl_kind", "raw", "cbf, deltam"),
        ("asl_volume", "-1", "whole number"),
        ("asl_volume", "1.0", "whole number"),
        ("pld_s", "1800", "0 to 10"),
        ("pld_s", "nan", "0 to 10"),
        ("age", "old", "0 to 130"),
    ],
)
def test_a_wrong_cell_is_named_with_file_line_column_value_and_what_is_allowed(
    tmp_path, column, value, allowed
):
    columns = (HEADER + OPTIONAL).split(",")
    cells = [*GOOD.split(","), *[""] * 8]
    cells[columns.index(column)] = value
    file = manifest(tmp_path, row() + "," * 8, ",".join(cells), header=HEADER + OPTIONAL)
    with pytest.raises(CohortError) as caught:
        load_manifest(file)
    message = str(caught.value)
    assert f"{file}: " in message
    assert f"line 3, column {column}: got {value!r}. Allowed: " in message
    assert allowed in message
    assert caught.value.exit_code == 4


def test_an_unknown_label_has_its_code(tmp_path):
    with pytest.raises(CohortError, match="E402"):
        load_manifest(manifest(tmp_path, GOOD.replace("recurrence", "Recurrence")))


def test_all_wrong_cells_are_named_at_once(tmp_path):
    bad = GOOD.replace("recurrence", "x")
    with pytest.raises(CohortError) as caught:
        load_manifest(manifest(tmp_path, bad, bad.replace("ses-01", "ses 02")))
    assert [f"line {n}" in str(caught.value) for n in (2, 3)] == [True, True]
    assert "scan_id: got 'ses 02'" in str(caught.value)


def test_a_path_may_turn_around_inside_the_folder(tmp_path):
    text = GOOD.replace("a/t1.nii.gz", "a/../b/t1.nii.gz")
    assert load_manifest(manifest(tmp_path, text)).scans[0].images[Modality.T1WI].parts[-2] == "b"


@pytest.mark.parametrize("column", HEADER.split(","))
def test_every_column_of_the_contract_is_needed(tmp_path, column):
    header = ",".join(c for c in HEADER.split(",") if c != column)
    with pytest.raises(CohortError, match=f"line 1: column {column} is missing"):
        load_manifest(manifest(tmp_path, header=header))


@pytest.mark.parametrize(
    ("header", "problem"),
    [(HEADER + ",T2_FLAIR", "unknown column 'T2_FLAIR'"), (HEADER + ",ADC", "'ADC' appears twice")],
)
def test_columns_outside_the_contract(tmp_path, header, problem):
    with pytest.raises(CohortError, match=problem):
        load_manifest(manifest(tmp_path, header=header))


def test_a_scan_listed_twice(tmp_path):
    with pytest.raises(CohortError, match=r"line 4.*'sub-0001/ses-01' is already on line 2"):
        load_manifest(manifest(tmp_path, row(), row("sub-0002"), row()))


def test_a_row_with_too_few_cells(tmp_path):
    with pytest.raises(CohortError, match="line 3 has 2 cells, the header 13"):
        load_manifest(manifest(tmp_path, row(), "sub-0002,ses-01"))


def test_unreadable_manifests(tmp_path):
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + b"\n\xe4")
    (tmp_path / "empty.csv").write_bytes(b"")
    for name, problem in [("latin", "UTF-8"), ("empty", "empty"), ("none", "cannot be read")]:
        with pytest.raises(CohortError, match=problem):
            load_manifest(tmp_path / f"{name}.csv")


def test_a_patient_in_two_splits_is_refused(tmp_path):
    rows = [row(split="train"), row(scan="ses-02", split="test")]
    with pytest.raises(ScanError, match=r"'train' and 'test'") as caught:
        load_manifest(manifest(tmp_path, *rows))
    assert caught.value.code == "E302"
    excluded = [rows[0], row(scan="ses-02", split="test", rest="motion")]
    assert len(load_manifest(manifest(tmp_path, *excluded)).scans) == 1


def test_missing_and_shared_files_are_problems_not_errors(tmp_path):
    (tmp_path / "t1.nii").touch()
    problems = load_manifest(manifest(tmp_path, row(), row("sub-0002"))).problems
    assert sum(p.startswith("E100") and "mask.nii does not exist" in p for p in problems) == 2
    assert any(p.startswith("W301 sub-0002/ses-01 T1WI") for p in problems)


@pytest.mark.parametrize("num_patients", [3, 4, 10, 37])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_hold_whole_patients_and_none_is_empty(num_patients, seed):
    cohort = cohort_of(*[(f"sub-{n:04d}", 1 + n % 3, None) for n in range(num_patients)])
    split = split_by_patient(cohort, SplitConfig(), seed)
    parts = [{r.patient_id for r in part} for part in (split.train, split.validation, split.test)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == num_patients
    scans = [*split.train, *split.validation, *split.test]
    assert sorted(r.key for r in scans) == sorted(r.key for r in cohort.scans)


def test_split_sizes_follow_the_fractions():
    cohort = cohort_of(*[(f"sub-{n:04d}", 1, None) for n in range(100)])
    split = split_by_patient(cohort, SplitConfig(train=0.8, validation=0.1, test=0.1), 5)
    assert (len(split.train), len(split.validation), len(split.test)) == (80, 10, 10)


def test_a_split_is_fixed_by_its_seed_not_by_the_order_of_rows():
    patients = [(f"sub-{n:04d}", 1, None) for n in range(30)]
    first = split_by_patient(cohort_of(*patients), SplitConfig(), 3)
    turned = split_by_patient(cohort_of(*reversed(patients)), SplitConfig(), 3)
    other = split_by_patient(cohort_of(*patients), SplitConfig(), 4)
    assert {r.key for r in first.test} == {r.key for r in turned.test}
    assert {r.key for r in first.test} != {r.key for r in other.test}


def test_a_split_of_the_manifest_is_kept():
    fixed = [(f"sub-{n:04d}", 2, "test") for n in range(6)]
    free = [(f"sub-1{n:03d}", 1, None) for n in range(14)]
    split = split_by_patient(cohort_of(*fixed, *free), SplitConfig(), 0)
    assert {r.patient_id for r in split.test} == {p for p, _, _ in fixed}
    assert (len(split.train), len(split.validation)) == (12, 2)


def test_a_fraction_of_zero_stays_empty_and_two_patients_all_train():
    many = cohort_of(*[(f"sub-{n:04d}", 1, None) for n in range(9)])
    assert not split_by_patient(many, SplitConfig(train=0.8, validation=0.2, test=0.0), 0).test
    two = cohort_of(("sub-0001", 1, None), ("sub-0002", 1, None))
    assert len(split_by_patient(two, SplitConfig(), 0).train) == 2


def test_modality_counts_count_scans_and_leave_out_what_nobody_has():
    t1, asl = Modality.T1WI, Modality.ASL
    records = [
        ScanRecord("sub-0001", "ses-01", {asl: Path("a"), t1: Path("b")}),
        ScanRecord("sub-0001", "ses-02", {t1: Path("c")}),
    ]
    counts = modality_counts(records)
    assert counts == {t1: 2, asl: 1}
    assert list(counts) == [t1, asl]

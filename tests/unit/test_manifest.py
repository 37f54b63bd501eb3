"""The manifest that is written: read back the same, never half, never over another one."""

import json
import shutil
import stat
from pathlib import Path

import pytest

import client.cli
from iedn.errors import CohortError, ConfigError
from iedn.modalities import Modality
from sites.cohort import REQUIRED_COLUMNS, ScanRecord, load_manifest
from sites.discovery.found import Discovery
from sites.discovery.layouts import discover
from sites.discovery.manifest import describe, manifest_text

PEOPLE = "patient_id,scan_id,label\n"


def scans_at(root: Path, *places: str) -> Path:
    for place in places:
        for name in ("T1WI", "brain_mask"):
            path = root / place / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def full_record(root: Path) -> ScanRecord:
    return ScanRecord(
        patient_id="sub-0007",
        scan_id="ses-01",
        images={m: root / f"{m}.nii.gz" for m in Modality},
        cbv=root / "cbv, leakage corrected.nii",
        brain_mask=root / "mask.nii",
        lesion_mask=root / 'a "lesion".nii',
        reader_roi=root / "roi.nii",
        label="recurrence",
        split="test",
        asl_kind="deltam",
        asl_volume=0,
        pld_s=1.8,
        age=61.0,
        sex="F",
        disease="glioma, grade 4",
    )


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.tsv"])
def test_every_field_comes_back(tmp_path, name):
    scans = (full_record(tmp_path), ScanRecord("sub-0008", "1", {Modality.T1WI: tmp_path / "t"}))
    (tmp_path / name).write_text(manifest_text(scans, tmp_path / name), encoding="utf-8")
    assert load_manifest(tmp_path / name).scans == scans


def test_optional_columns_are_there_only_if_known(tmp_path):
    bare = ScanRecord("sub-0008", "1", {Modality.T1WI: tmp_path / "t.nii"}, age=0.0)
    header, row = manifest_text([bare], tmp_path / "manifest.csv").splitlines()
    assert header == ",".join((*REQUIRED_COLUMNS, "age"))
    assert row == "sub-0008,1,t.nii,,,,,,,,,,,0"


def test_what_was_found_is_what_is_read(tmp_path):
    root = scans_at(tmp_path, "P2/1", "P1/2", "P1/1")
    found, outcome = describe(discover(root), root, root / "manifest.csv")
    assert outcome == "written"
    assert load_manifest(root / "manifest.csv").scans == found.scans
    assert [record.key for record in found.scans] == ["P1/1", "P1/2", "P2/1"]
    assert sorted(p.name for p in root.iterdir()) == ["P1", "P2", "manifest.csv"]


def test_another_manifest_is_kept_unless_forced(tmp_path):
    root = scans_at(tmp_path, "P1/1")
    path = root / "manifest.csv"
    describe(discover(root), root, path)
    assert describe(discover(root), root, path)[1] == "unchanged"
    path.write_text("by hand")
    with pytest.raises(ConfigError, match="--force"):
        describe(discover(root), root, path)
    assert path.read_text() == "by hand"
    assert describe(discover(root), root, path, force=True)[1] == "written"
    assert len(load_manifest(path).scans) == 1


def test_the_manifest_may_be_above_the_scans_but_nowhere_else(tmp_path):
    root = scans_at(tmp_path / "mri" / "scans", "P1/1")
    describe(discover(root), root, tmp_path / "cohort.csv")
    (record,) = load_manifest(tmp_path / "cohort.csv").scans
    assert record.images[Modality.T1WI] == tmp_path / "mri/scans/P1/1/T1WI.nii.gz"
    (tmp_path / "other").mkdir()
    for place in ("other/manifest.csv", "none/manifest.csv", "mri/scans/P1/manifest.csv"):
        with pytest.raises(ConfigError, match="not below this one"):
            describe(discover(root), root, tmp_path / place)
    with pytest.raises(ConfigError, match=r"\.csv or \.tsv"):
        describe(discover(root), root, tmp_path / "manifest.txt")


def test_nothing_found_is_an_error_with_the_reasons(tmp_path):
    (tmp_path / "P1/1").mkdir(parents=True)
    (tmp_path / "P1/1/T2WI.nii").touch()
    with pytest.raises(CohortError, match="E210"):
        describe(discover(tmp_path), tmp_path, tmp_path / "manifest.csv")
    assert not (tmp_path / "manifest.csv").exists()


def test_a_name_that_a_table_cannot_hold_leaves_no_manifest(tmp_path):
    record = ScanRecord("P1", "1", {Modality.T1WI: tmp_path / " t1.nii"})
    with pytest.raises(CohortError, match="P1/1: a file or folder has spaces"):
        describe(Discovery((record,), ()), tmp_path, tmp_path / "manifest.csv")
    record = ScanRecord("P1", "1", {Modality.T1WI: tmp_path / "t1\u2028.nii"})
    with pytest.raises(CohortError, match=r"manifest\.csv"):
        describe(Discovery((record,), ()), tmp_path, tmp_path / "manifest.csv")
    assert list(tmp_path.iterdir()) == []


def test_names_are_warned_of_and_impossible_ones_left_out(tmp_path):
    root = scans_at(tmp_path, "P1/1", "Patient_Zero/1", "P2/for_Zero", "é 3/1")
    found, _ = describe(discover(root), root, root / "manifest.csv")
    assert [r.key for r in found.scans] == ["P1/1", "P2/for_Zero", "Patient_Zero/1"]
    assert [(f.code, f.path) for f in found.findings] == [
        ("E501", root / "é 3/1"),
        ("W501", root / "P2/for_Zero"),
        ("W501", root / "Patient_Zero"),
    ]


def test_pseudonyms_replace_names_only_and_last(tmp_path):
    root = scans_at(tmp_path, "sub-0001/visit-1", "Patient_Zero/1", "Patient_Zero/x y", "é 3/1")
    (root / "labels.csv").write_text(PEOPLE + "Patient_Zero,1,recurrence\n")
    path = root / "manifest.csv"
    found, _ = describe(discover(root), root, path, pseudonyms=True)
    keys = {record.images[Modality.T1WI].parent: record.key for record in found.scans}
    assert keys == {
        root / "sub-0001/visit-1": "sub-0001/visit-1",
        root / "Patient_Zero/1": "sub-0002/1",
        root / "Patient_Zero/x y": "sub-0002/scan-01",
        root / "é 3/1": "sub-0003/1",
    }
    assert {r.key: r.label for r in found.scans}["sub-0002/1"] == "recurrence"
    table = root / "pseudonyms.csv"
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    assert table.read_text(encoding="utf-8").splitlines() == [
        "patient_folder,scan_folder,patient_id,scan_id",
        "Patient_Zero,1,sub-0002,1",
        "Patient_Zero,x y,sub-0002,scan-01",
        "é 3,1,sub-0003,1",
    ]
    scans_at(root, "Another_One/1", "Patient_Zero/2", "sub-0004/1")
    found, _ = describe(discover(root), root, path, force=True, pseudonyms=True)
    again = {record.images[Modality.T1WI].parent: record.key for record in found.scans}
    assert keys.items() <= again.items()
    assert again[root / "Patient_Zero/2"] == "sub-0002/2"
    assert again[root / "Another_One/1"] == "sub-0005/1"
    assert load_manifest(path).scans == found.scans


def test_a_scan_called_after_a_person_keeps_its_patients_id(tmp_path):
    root = scans_at(tmp_path, "P1/of_Zero", "P1/of_One", "P1/2")
    found, _ = describe(discover(root), root, root / "manifest.csv", pseudonyms=True)
    assert [record.key for record in found.scans] == ["P1/2", "P1/scan-01", "P1/scan-02"]


def test_a_made_up_id_is_never_given_twice(tmp_path):
    root = scans_at(tmp_path, "Patient_Zero/x y", "Patient_Zero/scan-01")
    path = root / "manifest.csv"
    found, _ = describe(discover(root), root, path, pseudonyms=True)
    first = {record.images[Modality.T1WI].parent.name: record.key for record in found.scans}
    assert first == {"scan-01": "sub-0001/scan-01", "x y": "sub-0001/scan-02"}
    scans_at(root, "sub-0001/1", "Patient_Zero/scan-02")
    found, _ = describe(discover(root), root, path, force=True, pseudonyms=True)
    later = {r.images[Modality.T1WI].parent: r.key for r in found.scans}
    assert later == {
        root / "Patient_Zero/scan-01": "sub-0001/scan-01",
        root / "Patient_Zero/x y": "sub-0001/scan-02",
        root / "Patient_Zero/scan-02": "sub-0001/scan-03",
        root / "sub-0001/1": "sub-0002/1",
    }


def test_a_lost_key_table_is_written_again(tmp_path):
    root = scans_at(tmp_path, "Patient_Zero/1")
    describe(discover(root), root, root / "manifest.csv", pseudonyms=True)
    table = (root / "pseudonyms.csv").read_bytes()
    (root / "pseudonyms.csv").unlink()
    _, outcome = describe(discover(root), root, root / "manifest.csv", pseudonyms=True)
    assert outcome == "unchanged"
    assert (root / "pseudonyms.csv").read_bytes() == table


def test_no_key_table_beside_a_manifest_that_was_refused(tmp_path):
    root = scans_at(tmp_path, "Patient_Zero/1")
    (root / "manifest.csv").write_text("by hand")
    with pytest.raises(ConfigError, match="--force"):
        describe(discover(root), root, root / "manifest.csv", pseudonyms=True)
    assert not (root / "pseudonyms.csv").exists()


def test_no_key_table_where_nothing_is_replaced_and_a_broken_one_stops(tmp_path):
    root = scans_at(tmp_path, "P1/1")
    describe(discover(root), root, root / "manifest.csv", pseudonyms=True)
    assert not (root / "pseudonyms.csv").exists()
    for content in (b"", b"a,b\n", b"\xff\n"):
        (root / "pseudonyms.csv").write_bytes(content)
        with pytest.raises(CohortError, match=r"pseudonyms\.csv: not a"):
            describe(discover(root), root, root / "manifest.csv", pseudonyms=True)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    from simulation.phantom import PhantomCohort, SiteProtocol, write_cohort

    protocol = SiteProtocol(
        rows=16, columns=16, slices=4, spacing_mm=13.75, missing_probability={Modality.ASL: 0.5}
    )
    cohort = PhantomCohort(patients=2, min_visits=1, max_visits=2, protocol=protocol)
    return write_cohort(tmp_path_factory.mktemp("phantom") / "cohort", cohort, seed=4).parent


def test_the_phantoms_own_manifest_is_found_again(phantom, tmp_path):
    root = tmp_path / "cohort"
    shutil.copytree(phantom, root)
    made = load_manifest(root / "manifest.csv").scans
    lines = [f"{r.patient_id},{r.scan_id},{r.label}\n" for r in made]
    (root / "labels.csv").write_text(PEOPLE + "".join(lines))
    text = (root / "manifest.csv").read_text()
    found, outcome = describe(discover(root, "auto"), root, root / "manifest.csv")
    assert outcome == "unchanged"
    assert found.scans == made
    assert [f.code for f in found.findings] == ["W110"]
    (root / "manifest.csv").unlink()
    describe(discover(root), root, root / "manifest.csv")
    assert (root / "manifest.csv").read_text() == text


@pytest.fixture
def call(call, tmp_path):
    def run(*words):
        (tmp_path / "site.toml").write_text('name = "site-x"\nmanifest = "scans/manifest.csv"\n')
        return call(client.cli.main, "--site", tmp_path / "site.toml", "manifest", *words)

    return run


def test_the_command(call, tmp_path):
    root = scans_at(tmp_path / "scans", "P1/1", "P2/1")
    (root / "P2/1/brain_mask.nii.gz").unlink()
    code, out, _ = call("--scan", root)
    assert code == 0
    assert f"W211 {root}/P2/1: no brain_mask" in out
    assert "2 patients, 2 scans (T1WI 2)" in out
    assert f"1 findings; written: {root}/manifest.csv" in out
    assert "site.toml" not in out
    code, out, _ = call("--scan", root, "--out", tmp_path / "all.csv", "--json")
    facts = json.loads(out)
    assert (facts["outcome"], facts["scans"], facts["by_modality"]) == ("written", 2, {"T1WI": 2})
    assert [finding["code"] for finding in facts["findings"]] == ["W211"]
    assert "set manifest in its site.toml" in call("--scan", root, "--out", tmp_path / "all.csv")[1]


def test_the_commands_mistakes_have_their_codes(call, tmp_path):
    root = scans_at(tmp_path / "scans", "P1/1")
    assert call("--scan", root, "--layout", "dicom")[0] == 3
    assert call("--scan", tmp_path / "none")[0] == 3
    assert call()[0] == 2
    (root / "manifest.csv").write_text("by hand")
    code, _, error = call("--scan", root)
    assert code == 3
    assert "--force" in error
    assert call("--scan", root, "--force")[0] == 0
    (tmp_path / "empty").mkdir()
    assert call("--scan", tmp_path / "empty")[0] == 4

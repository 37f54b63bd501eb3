"""Every bad input that is known of: its code, and what becomes of the scan.

Three patients with one good scan each; a builder spoils the first. The others must come through.
"""

import csv
import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from iedn.config import GridConfig
from iedn.errors import CohortError
from sites.codes import CODES
from sites.cohort import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, exists
from sites.config import load_site_config
from sites.dataset import examine_cohort
from sites.report import cohort_report

GRID = GridConfig(rows=24, columns=24, spacing_mm=8.0)
SHAPE = (24, 24, 8)
AFFINE = np.array([[8.0, 0, 0, -92], [0, 8.0, 0, -92], [0, 0, 12.0, -42], [0, 0, 0, 1]])
# A cylinder of 69 pixels' radius-squared: 216 voxels of 8 x 8 mm a slice, 8 slices of 12 mm:
# 216 * 8 * 0.768 ml = 1327 ml, a plausible brain.
_X, _Y, _ = np.indices(SHAPE)
BRAIN = ((_X - 11.5) ** 2 + (_Y - 11.5) ** 2) < 69.0
LEVELS = {"T1WI": 400.0, "T2WI": 300.0, "ADC": 900.0, "ASL": 45.0, "CBV": 3.0}


def rotated(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ AFFINE


def sheared(cosine: float) -> np.ndarray:
    """AFFINE with x and y axes leaning towards each other."""
    affine = AFFINE.copy()
    affine[:2, 1] = 8.0 * np.array([cosine, np.sqrt(1 - cosine**2)])
    return affine


class Site:
    """A folder with a manifest; ``rows`` are its cells, the first is the one to spoil."""

    def __init__(self, folder: Path, patients: int = 3) -> None:
        self.folder, self._rng = folder, np.random.default_rng(3)
        self.rows = [self.scan(f"sub-{n:04d}", "visit-1") for n in range(1, patients + 1)]

    def scan(self, patient: str, scan: str) -> dict[str, str]:
        row = {"patient_id": patient, "scan_id": scan}
        for column, level in LEVELS.items():
            row[column] = f"{patient}/{scan}/{column}.nii.gz"
            self.save(row[column], self.values(level))
        row["brain_mask"] = f"{patient}/{scan}/brain_mask.nii.gz"
        self.save(row["brain_mask"], BRAIN)
        return row

    def values(self, level: float) -> np.ndarray:
        return BRAIN * level * self._rng.uniform(0.8, 1.2, SHAPE)

    def path(self, column: str, row: int = 0) -> Path:
        return self.folder / self.rows[row][column]

    def save(self, name: str, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = values if values.dtype.fields else values.astype(np.float32)
        image = nibabel.Nifti1Image(stored, affine)
        image.set_sform(affine, code=1)
        nibabel.save(image, path)
        return path

    def spoil(self, column: str, values=None, affine: np.ndarray = AFFINE) -> None:
        values = self.values(LEVELS.get(column, 1.0)) if values is None else values
        self.save(self.rows[0][column], values, affine)

    def header(self, column: str, change) -> None:
        """Rewrite a file with the header changed by ``change(image)``; no name in gzip's header."""
        path = self.path(column)
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
        change(image)
        path.write_bytes(gzip.compress(image.to_bytes()))

    def write(self):
        with (self.folder / "manifest.csv").open("w", newline="") as stream:
            columns = REQUIRED_COLUMNS + OPTIONAL_COLUMNS
            writer = csv.DictWriter(stream, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        path = self.folder / "site.toml"
        path.write_text('name = "site-a"\nmanifest = "manifest.csv"\n')
        return load_site_config(path)


def truncate(site):
    path = site.path("T2WI")
    path.write_bytes(path.read_bytes()[:-200])


def flip_checksum(site):
    content = bytearray(site.path("ADC").read_bytes())
    content[-6] ^= 1
    site.path("ADC").write_bytes(bytes(content))


def no_geometry(site):
    def change(image):
        image.set_sform(None, code=0)
        image.set_qform(None, code=0)

    site.header("T1WI", change)


def two_positions(site):
    site.header("T2WI", lambda image: image.set_qform(rotated(5.0), code=1))


def las(site):
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    site.spoil("T2WI", site.values(300.0)[::-1], AFFINE @ flip)


def colour(site):
    kind = [("R", "u1"), ("G", "u1"), ("B", "u1")]
    site.spoil("CBV", np.zeros(SHAPE, dtype=kind))


def not_a_number(column, count):
    def build(site):
        values = site.values(LEVELS[column])
        values[12, 12, :count] = np.nan
        site.spoil(column, values)

    return build


def negative(column, share):
    def build(site):
        values = site.values(LEVELS[column])
        inside = np.flatnonzero(BRAIN)
        values.ravel()[inside[: int(share * len(inside))]] *= -1.0
        site.spoil(column, values)

    return build


def disc(radius_squared, slices=SHAPE[2]):
    mask = radius_squared > ((_X - 11.5) ** 2 + (_Y - 11.5) ** 2)
    return mask & (np.indices(SHAPE)[2] < slices)


def shifted(column, mm, axis=2):
    def build(site):
        affine = AFFINE.copy()
        affine[axis, 3] += mm
        site.spoil(column, np.abs(site.values(LEVELS[column])) + 1.0, affine)

    return build


def copy(column, other, row=1):
    def build(site):
        site.path(other, row).write_bytes(site.path(column).read_bytes())

    return build


def second_visit(site):
    site.rows.append(site.scan(site.rows[0]["patient_id"], "visit-2"))
    site.path("T2WI", -1).write_bytes(site.path("T2WI").read_bytes())


def split_patient(site):
    site.rows.append(site.scan("sub-0001", "visit-2"))
    site.rows[0]["split"], site.rows[-1]["split"] = "train", "test"


def cells(**cells):
    return lambda site: site.rows[0].update(cells)


def sidecar(column, text):
    def build(site):
        site.path(column).with_name(f"{column}.json").write_text(text)

    return build


def twin(site):
    site.path("T2WI").with_name("T2WI.nii").write_bytes(b"another export")


def gzip_name(site):
    path = site.path("ADC")
    content = gzip.decompress(path.read_bytes())
    with path.open("wb") as raw, gzip.GzipFile("SURNAME_ADC.nii", "wb", fileobj=raw) as file:
        file.write(content)


def extension(site):
    comment = nibabel.nifti1.Nifti1Extension(6, b"SECRET")
    site.header("ADC", lambda image: image.header.extensions.append(comment))


def field(name):
    def change(image):
        image.header[name] = b"SECRET"

    return lambda site: site.header("ADC", change)


def renamed(site):
    old, new = site.path("ADC"), site.folder / "export" / "SURNAME_Given.nii.gz"
    new.parent.mkdir()
    old.rename(new)
    site.rows[0]["ADC"] = "export/SURNAME_Given.nii.gz"


def dated(site):
    site.rows[0]["scan_id"] = "19700102"


def beside(column, content):
    return lambda site: site.path(column).write_bytes(content)


# name: code, column of the finding, what becomes of the first scan, builder
USED, FILE, SCAN, COHORT = "used", "file left out", "scan left out", "manifest refused"
CASES = {
    "file missing": ("E100", "T2WI", FILE, lambda site: site.path("T2WI").unlink()),
    "truncated gzip": ("E101", "T2WI", FILE, truncate),
    "bad checksum": ("E101", "ADC", FILE, flip_checksum),
    "not gzip": ("E102", "ASL", FILE, beside("ASL", b"no image" * 99)),
    "empty file": ("E102", "T1WI", SCAN, beside("T1WI", b"")),
    "twin without compression": ("W103", "T2WI", USED, twin),
    "slight shear": ("W104", "T2WI", USED, lambda s: s.spoil("T2WI", affine=sheared(0.01))),
    "strong shear": ("E104", "T2WI", FILE, lambda s: s.spoil("T2WI", affine=sheared(0.1))),
    "no geometry": ("E105", "T1WI", SCAN, no_geometry),
    "voxels of a nanometre": (
        "E105",
        "T2WI",
        FILE,
        lambda s: s.spoil("T2WI", affine=AFFINE @ np.diag([1e-7, 1, 1, 1])),
    ),
    "qform differs": ("W106", "T2WI", USED, two_positions),
    "stored LAS": ("I107", "T2WI", USED, las),
    "oblique": ("I107", "T2WI", USED, lambda s: s.spoil("T2WI", affine=rotated(3.0))),
    "4D ASL": (
        "E201",
        "ASL",
        FILE,
        lambda s: s.spoil("ASL", np.stack([s.values(45.0), s.values(45.0)], -1)),
    ),
    "colour map": ("E202", "CBV", FILE, colour),
    "NaN in 8 of 1728 voxels": ("E203", "ADC", FILE, not_a_number("ADC", 8)),
    "NaN in 1 of 1728 voxels": ("W203", "ADC", USED, not_a_number("ADC", 1)),
    "2 % negative": ("W204", "ADC", USED, negative("ADC", 0.02)),
    "6 % negative ADC": ("E204", "ADC", FILE, negative("ADC", 0.06)),
    "6 % negative CBF": ("E204", "ASL", FILE, negative("ASL", 0.06)),
    "6 % negative CBV": ("E204", "CBV", FILE, negative("CBV", 0.06)),
    "6 % negative T2": ("W204", "T2WI", USED, negative("T2WI", 0.06)),
    "all zero": ("E205", "T2WI", FILE, lambda s: s.spoil("T2WI", np.zeros(SHAPE))),
    "constant": ("E205", "T1WI", SCAN, lambda s: s.spoil("T1WI", np.full(SHAPE, 7.0))),
    "empty mask": ("E205", "brain_mask", SCAN, lambda s: s.spoil("brain_mask", 0.0 * BRAIN)),
    # 216 voxels of 0.768 ml a slice: 4 slices hold 664 ml; a disc of radius 12 (448) 2753 ml.
    "mask of 664 ml": ("W206", "brain_mask", USED, lambda s: s.spoil("brain_mask", disc(69, 4))),
    "mask of 2753 ml": ("W206", "brain_mask", USED, lambda s: s.spoil("brain_mask", disc(144))),
    "ADC in no unit": ("W207", "ADC", USED, lambda s: s.spoil("ADC", s.values(30.0))),
    "CBF in no unit": ("W207", "ASL", USED, lambda s: s.spoil("ASL", s.values(4500.0))),
    "CBV relative": ("W207", "CBV", USED, lambda s: s.spoil("CBV", s.values(250.0))),
    "no T1": ("E210", "T1WI", SCAN, cells(T1WI="")),
    "no mask": ("E211", "brain_mask", SCAN, cells(brain_mask="")),
    # Eight slices of 12 mm: shifted by 24 mm, two of eight are not covered; by 12 mm one of them.
    "three quarters covered": ("E220", "ADC", FILE, shifted("ADC", 24.0)),
    "seven eighths covered": ("W220", "ADC", USED, shifted("ADC", 12.0)),
    "mask beside the T1": ("E220", "brain_mask", SCAN, shifted("T1WI", 24.0)),
    "same voxels, two patients": ("E301", "T2WI", SCAN, copy("T2WI", "T2WI")),
    "same voxels, one patient": ("W301", "T2WI", USED, second_visit),
    "same mask file": (
        "W301",
        "brain_mask",
        USED,
        lambda s: s.rows[1].update(brain_mask=s.rows[0]["brain_mask"]),
    ),
    "patient in two splits": ("E302", "split", COHORT, split_patient),
    "input is the CBV map": ("E303", "ASL", SCAN, copy("CBV", "ASL", row=0)),
    "difference ASL without sidecar": ("I401", "ASL", USED, cells(asl_kind="deltam")),
    "sidecar no JSON": ("W401", "ADC", USED, sidecar("ADC", "{")),
    "unknown label": ("E402", "label", COHORT, cells(label="relapse")),
    "no CBV": ("E403", "CBV", USED, cells(CBV="")),
    "identifier like a name": ("W501", "patient_id", USED, cells(patient_id="SURNAME-Given")),
    "identifier like a date": ("W501", "scan_id", USED, dated),
    "text in descrip": ("W502", "ADC", USED, field("descrip")),
    "text in aux_file": ("W502", "ADC", USED, field("aux_file")),
    "text in db_name": ("W502", "ADC", USED, field("db_name")),
    "text in intent_name": ("W502", "ADC", USED, field("intent_name")),
    "header extension": ("W503", "ADC", USED, extension),
    "name in gzip header": ("W504", "ADC", USED, gzip_name),
    "name in sidecar": (
        "W505",
        "ADC",
        USED,
        sidecar("ADC", json.dumps({"EchoTime": 0.1, "PatientName": "SURNAME"})),
    ),
    "file like a name": ("W506", "ADC", USED, renamed),
    "high age": ("W507", "age", USED, cells(age="93")),
}
ELSEWHERE = {
    "E111",  # see test_parallel
    "W208",  # the grid of these cases holds the whole brain; see test_preprocessing
    "W212",  # see test_brain_mask
    "W221",  # see test_registration
    *("I108", "W109", "W110", "W211", "E212", "E401", "W404", "W405", "E501"),  # test_discovery_*
}


def test_every_code_has_a_case():
    assert {code for code, *_ in CASES.values()} | ELSEWHERE == set(CODES)


def test_a_good_cohort_has_no_findings(tmp_path):
    config = Site(tmp_path).write()
    report = cohort_report(config, examine_cohort(config, GRID))
    assert report.findings == ()
    assert report.flow.listed == report.flow.usable == 3


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_gives_its_code_and_stops_nothing_else(tmp_path, name):
    code, column, outcome, build = CASES[name]
    site = Site(tmp_path)
    build(site)
    config = site.write()
    if outcome == COHORT:
        with pytest.raises(CohortError, match=code):
            examine_cohort(config, GRID)
        return
    cohort = examine_cohort(config, GRID)
    found = {(f.code, f.column) for f in cohort_report(config, cohort).findings}
    assert (code, column) in found
    used = {record.key: record for record in cohort.records}
    first = f"{site.rows[0]['patient_id']}/{site.rows[0]['scan_id']}"
    assert (first in used) == (outcome != SCAN)
    if outcome == FILE:
        assert column not in used[first].files
    assert "sub-0003/visit-1" in used
    problems = [f.problem for f in cohort_report(config, cohort).findings]
    assert not [p for p in problems if "SURNAME" in p or "SECRET" in p]


def test_both_scans_with_the_same_voxels_are_left_out_whatever_their_order(tmp_path):
    site = Site(tmp_path)
    copy("T2WI", "T2WI")(site)
    for _ in range(2):
        cohort = examine_cohort(site.write(), GRID)
        assert {r.patient_id for r in cohort.records} == {"sub-0003"}
        assert sorted(q.code for q in cohort.quarantined) == ["E301", "E301"]
        site.rows.reverse()


def test_excluding_the_wrong_row_frees_the_right_one(tmp_path):
    site = Site(tmp_path)
    copy("T2WI", "T2WI")(site)
    site.rows[1]["exclude_reason"] = "wrong export"
    cohort = examine_cohort(site.write(), GRID)
    assert {r.patient_id for r in cohort.records} == {"sub-0001", "sub-0003"}
    assert cohort.quarantined == ()


def test_a_copy_with_another_header_and_type_is_the_same_image(tmp_path):
    site = Site(tmp_path)
    whole = np.rint(site.values(300.0))
    site.spoil("T2WI", whole)
    image = nibabel.Nifti1Image(whole.astype(np.int16), rotated(2.0))
    nibabel.save(image, site.path("T2WI", 1))
    assert [q.code for q in examine_cohort(site.write(), GRID).quarantined] == ["E301", "E301"]


def test_voxels_are_hashed_once(tmp_path, monkeypatch):
    site = Site(tmp_path)
    copy("T2WI", "T2WI")(site)
    first = examine_cohort(site.write(), GRID)
    monkeypatch.setattr("sites.preprocessing.voxel_digest", None)
    monkeypatch.setattr("sites.preparation.header_findings", None)
    again = examine_cohort(site.write(), GRID)
    assert again.quarantined == first.quarantined != ()
    assert again.warnings == first.warnings


def test_a_path_the_file_system_refuses_is_a_missing_file(tmp_path):
    site = Site(tmp_path)
    site.rows[0]["T2WI"] = "/".join(["x" * 250] * 4) + "/y.nii.gz"
    cohort = examine_cohort(site.write(), GRID)
    assert [(q.code, q.modality) for q in cohort.quarantined] == [("E100", "T2WI")]
    assert not exists(Path("x" * 300))

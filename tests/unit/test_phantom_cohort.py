"""Cohorts on disk: complete, the same every time, physical."""

import csv
import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from iedn.errors import ConfigError
from iedn.modalities import Modality
from simulation.phantom import PhantomCohort, SiteProtocol, write_cohort

SEED = 3
TINY = SiteProtocol(rows=32, columns=32, slices=8, spacing_mm=6.875, slice_spacing_mm=16.0)
COLUMNS = (
    "patient_id,scan_id,T1WI,T2WI,FLAIR,ADC,T1_C,ASL,CBV,brain_mask,label,split,exclude_reason,"
    "lesion_mask"
)


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj, dtype=np.float64)


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def lesion_centre_mm(folder: Path, row: dict[str, str]) -> np.ndarray:
    image = nibabel.load(folder / row["lesion_mask"])
    index = np.argwhere(np.asarray(image.dataobj) > 0).mean(axis=0)
    return np.asarray(nibabel.affines.apply_affine(image.affine, index))


@pytest.fixture(scope="module")
def cohort() -> PhantomCohort:
    return PhantomCohort(patients=2, min_visits=2, max_visits=2, protocol=TINY)


@pytest.fixture(scope="module")
def manifest(cohort: PhantomCohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    steps: list[tuple[int, int]] = []
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    path = write_cohort(folder, cohort, seed=SEED, progress=lambda *at: steps.append(at))
    assert steps == [(2, 4), (4, 4)]
    return path


@pytest.fixture(scope="module")
def demo_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "demo"
    return write_cohort(folder, PhantomCohort(patients=1, max_visits=1), seed=SEED)


def test_manifest_has_the_fixed_columns_and_every_file_exists(manifest: Path) -> None:
    assert manifest.read_text(encoding="utf-8").splitlines()[0] == COLUMNS
    rows = rows_of(manifest)
    assert [(r["patient_id"], r["scan_id"]) for r in rows] == [
        (f"sub-000{p}", f"visit-{v}") for p in (1, 2) for v in (1, 2)
    ]
    for row in rows:
        assert row["split"] == row["exclude_reason"] == ""
        assert row["label"] in {"recurrence", "treatment_response"}
        for column in (*Modality, "CBV", "brain_mask", "lesion_mask"):
            assert row[column] == f"{row['patient_id']}/{row['scan_id']}/{column}.nii.gz"
            assert (manifest.parent / row[column]).is_file()
    assert "truth" not in manifest.read_text(encoding="utf-8")


def test_volumes_have_the_protocols_grid_a_clean_header_and_the_right_units(
    manifest: Path,
) -> None:
    row = rows_of(manifest)[0]
    images = {c: nibabel.load(manifest.parent / row[c]) for c in (*Modality, "CBV", "brain_mask")}
    for image in images.values():
        assert image.shape == (32, 32, 8)
        assert image.header.get_zooms() == pytest.approx((6.875, 6.875, 16.0))
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.affine == pytest.approx(images["T1WI"].affine)
        assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
        assert bytes(image.header["descrip"]).strip(b"\0") == b""
    assert images["brain_mask"].get_data_dtype() == np.uint8
    assert images["ADC"].get_data_dtype() == np.int16
    assert images["T1WI"].get_data_dtype() == np.float32
    brain = np.asarray(images["brain_mask"].dataobj) > 0
    assert 0.9 < brain.sum() * 6.875**2 * 16.0 * 1e-6 < 2.0
    medians = {c: np.median(np.asarray(images[c].dataobj)[brain]) for c in ("ADC", "ASL", "CBV")}
    assert 600 < medians["ADC"] < 1400
    assert 20 < medians["ASL"] < 60
    assert 1.5 < medians["CBV"] < 5.0


def test_gzip_headers_hold_neither_time_nor_name(manifest: Path) -> None:
    raw = (manifest.parent / rows_of(manifest)[0]["T1WI"]).read_bytes()
    assert raw[3] == 0
    assert raw[4:8] == b"\0\0\0\0"
    assert len(gzip.decompress(raw)) == 352 + 4 * 32 * 32 * 8


def test_result_does_not_depend_on_the_number_of_workers(
    manifest: Path, cohort: PhantomCohort, tmp_path: Path
) -> None:
    again = write_cohort(tmp_path / "again", cohort, seed=SEED, workers=2)
    assert contents(again.parent) == contents(manifest.parent)


def test_visits_share_the_anatomy_but_not_the_noise(manifest: Path) -> None:
    rows, folder = rows_of(manifest), manifest.parent
    masks = [voxels(folder / row["brain_mask"]) > 0 for row in rows]
    dice = [2.0 * (masks[0] & m).sum() / (masks[0].sum() + m.sum()) for m in masks[1:]]
    assert dice[0] > 0.95
    assert dice[0] > max(dice[1:])
    first, second = (lesion_centre_mm(folder, row) for row in rows[:2])
    assert np.linalg.norm(first - second) < 12.0
    corner = (slice(0, 3), slice(0, 3), slice(0, 3))
    assert not np.array_equal(*(voxels(folder / r["T1WI"])[corner] for r in rows[:2]))


def test_recurrence_has_more_blood_than_treatment_response_in_the_same_lesion(
    tmp_path: Path,
) -> None:
    protocol = TINY.model_copy(update={"modalities": (Modality.T1WI,), "has_cbv": False})
    rim_cbv: dict[float, list[float]] = {}
    for share in (0.0, 1.0):
        cohort = PhantomCohort(
            patients=2, max_visits=1, fraction_recurrence=share, protocol=protocol
        )
        folder = tmp_path / str(share)
        rows = rows_of(write_cohort(folder, cohort, seed=SEED))
        assert {r["label"] for r in rows} == {"recurrence" if share else "treatment_response"}
        rim_cbv[share] = [
            float(
                voxels(folder / "truth" / r["patient_id"] / r["scan_id"] / "CBV.nii.gz")[
                    voxels(folder / r["lesion_mask"]) > 0
                ].mean()
            )
            for r in rows
        ]
    assert all(high > 1.3 * low for low, high in zip(*rim_cbv.values(), strict=True))


def test_measured_cbv_follows_the_truth(demo_manifest: Path) -> None:
    row, folder = rows_of(demo_manifest)[0], demo_manifest.parent
    brain = voxels(folder / row["brain_mask"]) > 0
    truth = voxels(folder / "truth" / "sub-0001" / "visit-1" / "CBV.nii.gz")[brain]
    measured = voxels(folder / row["CBV"])[brain]
    assert 0.85 < np.corrcoef(truth, measured)[0, 1] < 0.999
    assert 0.7 < np.polyfit(truth, measured, 1)[0] < 1.2


def test_asl_follows_the_true_flow_but_is_noisy(demo_manifest: Path) -> None:
    row, folder = rows_of(demo_manifest)[0], demo_manifest.parent
    brain = voxels(folder / row["brain_mask"]) > 0
    flow = voxels(folder / "truth" / "sub-0001" / "visit-1" / "CBF.nii.gz")[brain]
    assert 0.6 < np.corrcoef(flow, voxels(folder / row["ASL"])[brain])[0, 1] < 0.97


def test_same_seed_is_the_same_head_on_another_grid(demo_manifest: Path, tmp_path: Path) -> None:
    protocol = SiteProtocol(
        rows=96, columns=96, spacing_mm=2.2916667, modalities=(Modality.T1WI,), has_cbv=False
    )
    fine = write_cohort(
        tmp_path / "fine", PhantomCohort(patients=1, max_visits=1, protocol=protocol), seed=SEED
    )
    folders = (demo_manifest.parent, fine.parent)
    rows = [rows_of(m)[0] for m in (demo_manifest, fine)]
    centres = [lesion_centre_mm(f, r) for f, r in zip(folders, rows, strict=True)]
    assert np.abs(centres[0] - centres[1])[:2].max() < 3.4375
    assert abs(centres[0] - centres[1])[2] < 8.0
    # Two coarse voxels are three fine ones: compare averages over 2 x 2 and 3 x 3 voxels.
    truth = [
        voxels(f / "truth" / "sub-0001" / "visit-1" / "CBV.nii.gz").reshape(32, n, 32, n, 16)
        for f, n in zip(folders, (2, 3), strict=True)
    ]
    coarse, other = (t.mean(axis=(1, 3)).ravel() for t in truth)
    assert np.corrcoef(coarse, other)[0, 1] > 0.98


def test_protocol_shapes_what_is_written(tmp_path: Path) -> None:
    protocol = TINY.model_copy(
        update={
            "orientation": "LAS",
            "oblique_deg": 10.0,
            "dtype": "int16",
            "field": "1.5T",
            "modalities": (Modality.T1WI, Modality.FLAIR, Modality.ASL),
            "missing_probability": {Modality.FLAIR: 1.0},
            "has_cbv": False,
            "has_labels": False,
        }
    )
    cohort = PhantomCohort(patients=1, max_visits=1, protocol=protocol)
    manifest = write_cohort(tmp_path / "site", cohort, seed=SEED)
    (row,) = rows_of(manifest)
    assert [c for c in row if row[c]] == [
        "patient_id", "scan_id", "T1WI", "ASL", "brain_mask", "lesion_mask",
    ]  # fmt: skip
    image = nibabel.load(manifest.parent / row["T1WI"])
    assert nibabel.aff2axcodes(image.affine) == ("L", "A", "S")
    assert image.get_data_dtype() == np.int16
    assert nibabel.affines.obliquity(image.affine).max() == pytest.approx(np.deg2rad(10.0))
    assert 50.0 < np.asarray(image.dataobj).mean() < 500.0


def test_finished_folder_is_used_again(manifest: Path, cohort: PhantomCohort) -> None:
    file = manifest.parent / rows_of(manifest)[0]["T1WI"]
    before = file.stat().st_mtime_ns
    assert write_cohort(manifest.parent, cohort, seed=SEED) == manifest
    assert file.stat().st_mtime_ns == before
    record = json.loads((manifest.parent / "phantom.json").read_text(encoding="utf-8"))
    assert record["seed"] == SEED
    assert record["cohort"]["patients"] == 2


def test_folder_with_another_cohort_is_refused(manifest: Path, cohort: PhantomCohort) -> None:
    with pytest.raises(ConfigError, match="another configuration"):
        write_cohort(manifest.parent, cohort, seed=SEED + 1)
    other = cohort.model_copy(update={"adc_gap": 0.0})
    with pytest.raises(ConfigError, match="another configuration"):
        write_cohort(manifest.parent, other, seed=SEED)


def test_folder_with_foreign_files_is_refused(tmp_path: Path, cohort: PhantomCohort) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no readable phantom\.json"):
        write_cohort(tmp_path, cohort, seed=SEED)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_damaged_folder_is_refused_and_names_the_file(tmp_path: Path) -> None:
    protocol = TINY.model_copy(update={"modalities": (Modality.T1WI,), "has_cbv": False})
    cohort = PhantomCohort(patients=1, max_visits=1, protocol=protocol)
    manifest = write_cohort(tmp_path / "cohort", cohort, seed=SEED)
    file = manifest.parent / "sub-0001" / "visit-1" / "T1WI.nii.gz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigError, match="sub-0001/visit-1/T1WI"):
        write_cohort(manifest.parent, cohort, seed=SEED)


def test_interrupted_writing_leaves_nothing(tmp_path: Path, cohort: PhantomCohort) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path / "cohort", cohort, seed=SEED, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seed", "workers"), [(-1, 1), (0, 0)])
def test_impossible_arguments_are_refused(
    tmp_path: Path, cohort: PhantomCohort, seed: int, workers: int
) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        write_cohort(tmp_path / "cohort", cohort, seed=seed, workers=workers)

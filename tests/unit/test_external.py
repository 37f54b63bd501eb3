"""An external cohort: clean synthetic maps on the patient's grid, ROI values, diagnostic value."""

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from client.external import measure, synthesize_cohort
from client.regions import hot_spot, mirrored
from client.synthesis import Synthesizer
from iedn.config import GridConfig, NetworkConfig
from iedn.inference import synthesize
from iedn.modalities import Modality
from iedn.model import build_network
from sites import synthetic
from sites.cohort import ScanRecord
from sites.config import load_site_config
from sites.dataset import PreparedCohort, prepare_cohort
from sites.preprocessing import Frame, Geometry, PreparedScan, to_patient_grid
from sites.synthetic import NOTICE, Sidecar, map_path, write_synthetic

T1, ASL = Modality.T1WI, Modality.ASL
GRID = GridConfig(rows=32, columns=32, spacing_mm=6.875)
HASH = "ab" * 32
HEADER = (
    "patient_id,scan_id,T1WI,T2WI,FLAIR,ADC,T1_C,ASL,CBV,brain_mask,"
    "label,split,exclude_reason,lesion_mask"
)
AFFINE = np.array([[6.0, 1.0, 0, -70], [-1.0, 6.0, 0, -80], [0, 0, 7.0, -9], [0, 0, 0, 1]])
SHAPE = (26, 30, 4)
SECRET = b"family name of a patient"


def save(path: Path, values: np.ndarray) -> None:
    image = nibabel.Nifti1Image(values.astype(np.float32), AFFINE)
    image.header["descrip"] = SECRET
    nibabel.save(image, path)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Three patients: the second without ASL, the third without a lesion mask."""
    folder, rng = tmp_path_factory.mktemp("external"), np.random.default_rng(3)
    x, y, z = np.indices(SHAPE)
    brain = ((x - 12.5) / 11) ** 2 + ((y - 14.5) / 13) ** 2 + ((z - 1.5) / 2.6) ** 2 < 1
    save(folder / "mask.nii.gz", brain)
    save(folder / "lesion.nii.gz", (np.abs(x - 6) < 2) & (np.abs(y - 14) < 2) & (z == 2))
    for name in ("t1-0", "t1-1", "t1-2", "asl-0", "asl-2"):
        save(folder / f"{name}.nii.gz", brain * rng.uniform(50, 150, SHAPE))
    rows = [
        "sub-0001,ses-01,t1-0.nii.gz,,,,,asl-0.nii.gz,,mask.nii.gz,recurrence,,,lesion.nii.gz",
        "sub-0002,ses-01,t1-1.nii.gz,,,,,,,mask.nii.gz,treatment_response,,,lesion.nii.gz",
        "sub-0003,ses-02,t1-2.nii.gz,,,,,asl-2.nii.gz,,mask.nii.gz,,,,",
    ]
    (folder / "manifest.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (folder / "site.toml").write_text('name="b"\nrole="evaluate"\nmanifest="manifest.csv"\n')
    return folder / "site.toml"


@pytest.fixture(scope="module")
def prepared(site) -> PreparedCohort:
    return prepare_cohort(load_site_config(site), GRID)


def network(*modalities: Modality, architecture: str = "iedn"):
    config = NetworkConfig(
        architecture=architecture, modalities=modalities, base_channels=4, depth=2
    )
    return build_network(config, seed=1)


def test_every_scan_gets_a_map_on_its_own_grid_and_a_sidecar(prepared, tmp_path):
    model, seen = network(*Modality), []
    rows = synthesize_cohort(
        Synthesizer(model, HASH), prepared, tmp_path, progress=lambda *done: seen.append(done)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [(r.patient_id, r.label) for r in rows] == [
        ("sub-0001", "recurrence"),
        ("sub-0002", "treatment_response"),
        ("sub-0003", None),
    ]
    image = nibabel.load(tmp_path / "sub-0001" / "ses-01_synthetic-cbv.nii.gz")
    assert image.shape == SHAPE
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    expected = synthesize(model, prepared.all[0]).cbv[0].numpy()
    on_t1 = to_patient_grid(expected, prepared.all.prepared(0).geometry)
    np.testing.assert_allclose(np.asarray(image.dataobj).T, on_t1 / 0.25, rtol=1e-6)
    assert on_t1.max() > 0

    sidecar = json.loads((tmp_path / "sub-0002" / "ses-01_synthetic-cbv.json").read_text())
    assert sidecar["notice"] == NOTICE == "SYNTHETIC CBV MAP - research use only, not for diagnosis"
    assert sidecar["model_hash"] == HASH
    assert sidecar["inputs_used"] == ["T1WI"]
    assert sidecar["inputs_missing"] == ["T2WI", "FLAIR", "ADC", "T1_C", "ASL"]
    assert "brain mean = 1.0" in sidecar["units"]
    assert sidecar["software"].startswith("iedn ")


def test_roi_values_stay_in_a_local_table(prepared, tmp_path):
    rows = synthesize_cohort(Synthesizer(network(*Modality), HASH), prepared, tmp_path)
    with (tmp_path / "roi_values.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [r["patient_id"] for r in table] == ["sub-0001", "sub-0002", "sub-0003"]
    assert [r["roi"] for r in table] == ["lesion_mask", "lesion_mask", "automatic"]
    assert [bool(r["asl_ratio"]) for r in table] == [True, False, True]
    assert "automatic-roi" in table[2]["flags"]
    np.testing.assert_allclose(float(table[0]["asl_ratio"]), rows[0].asl, rtol=1e-5)


def test_a_network_that_cannot_read_a_scan_leaves_it_out(prepared, tmp_path):
    only_asl = network(ASL)
    rows = synthesize_cohort(Synthesizer(only_asl, HASH), prepared, tmp_path / "a")
    assert [r.flags == ("no-input",) for r in rows] == [False, True, False]
    assert not (tmp_path / "a" / "sub-0002").exists()
    baseline = network(T1, ASL, architecture="encoder-decoder")
    rows = synthesize_cohort(Synthesizer(baseline, HASH), prepared, tmp_path / "b")
    assert [r.flags == ("no-input",) for r in rows] == [False, True, False]


def test_nothing_of_the_hospitals_header_is_in_a_map(prepared, tmp_path):
    synthesize_cohort(Synthesizer(network(*Modality), HASH), prepared, tmp_path)
    path = tmp_path / "sub-0001" / "ses-01_synthetic-cbv.nii.gz"
    content = path.read_bytes()
    assert content[3] == 0  # gzip flags: no file name, no comment
    assert content[4:8] == bytes(4)  # no time
    assert SECRET not in gzip.decompress(content)
    header = nibabel.load(path).header
    assert bytes(header["descrip"]).strip(b"\0") == b""
    assert len(header.extensions) == 0
    assert header.get_data_dtype() == np.float32


def test_a_map_never_stands_without_its_sidecar(tmp_path, monkeypatch):
    record = ScanRecord("sub-0001", "ses-01", {})
    array, sidecar = np.ones((2, 3, 4), dtype=np.float32), Sidecar(HASH, (T1,))
    path = write_synthetic(tmp_path, record, array, AFFINE, sidecar)
    assert path == map_path(tmp_path, record)
    first = path.read_bytes()
    assert write_synthetic(tmp_path, record, array, AFFINE, sidecar).read_bytes() == first

    def full(*_):
        raise OSError("no space left")

    write = synthetic.atomic_write_bytes
    monkeypatch.setattr(synthetic, "nifti_bytes", full)
    other = ScanRecord("sub-0002", "ses-01", {})
    with pytest.raises(OSError, match="no space"):
        write_synthetic(tmp_path, other, array, AFFINE, sidecar)
    assert not map_path(tmp_path, other).parent.exists()

    # The disk is full after the sidecar: the earlier map, made by another model, must be gone.
    monkeypatch.undo()
    monkeypatch.setattr(
        synthetic, "atomic_write_bytes", lambda p, c: full() if p == path else write(p, c)
    )
    with pytest.raises(OSError, match="no space"):
        write_synthetic(tmp_path, record, array, AFFINE, Sidecar("cd" * 32, (T1,)))
    assert [p.name for p in path.parent.iterdir()] == ["ses-01_synthetic-cbv.json"]
    assert "cdcd" in path.with_name("ses-01_synthetic-cbv.json").read_text()


def box_scan(regions: dict[str, np.ndarray], asl: np.ndarray | None = None) -> PreparedScan:
    """3 x 12 x 14 voxels of 5 mm; the brain is columns 2 to 11, centroid 6.5."""
    brain = np.zeros((3, 12, 14), dtype=np.float32)
    brain[:, 1:11, 2:12] = 1.0
    frame = Frame((3, 12, 14), np.diag([5.0, 5.0, 5.0, 1.0]))
    images = {T1: brain} if asl is None else {T1: brain, ASL: asl}
    geometry = Geometry(frame, frame, frame.affine)
    return PreparedScan(images=images, brain_mask=brain, geometry=geometry, regions=regions)


def region(*columns: int) -> np.ndarray:
    array = np.zeros((3, 12, 14), dtype=np.float32)
    array[1, 4:7, list(columns)] = 1.0
    return array


RECORD = ScanRecord("sub-0001", "ses-01", {}, label="recurrence")


def test_the_value_is_roi_over_mirrored_roi():
    cbv = np.full((3, 12, 14), 0.25, dtype=np.float32)
    asl = cbv.copy()
    cbv[1, 4:7, 3], cbv[1, 4:7, 4] = 0.8, 0.4  # mean 0.6
    cbv[1, 4:7, 9], cbv[1, 4:7, 10] = 0.1, 0.3  # mirror of 4 and 3 about 6.5: mean 0.2
    asl[1, 4:7, 3:5] = 0.5
    row = measure(RECORD, box_scan({"lesion_mask": region(3, 4)}, asl), cbv)
    assert row.synthetic_cbv == pytest.approx(3.0)
    assert row.asl == pytest.approx(2.0)
    assert (row.roi, row.flags) == ("lesion_mask", ("approximate-mirror",))


def test_the_lesion_mask_comes_before_the_readers_roi_and_is_not_its_own_reference():
    cbv = np.full((3, 12, 14), 0.25, dtype=np.float32)
    cbv[1, 4:7, 3] = 0.5
    cbv[1, 4:7, 10] = 9.0
    both = {"lesion_mask": region(3), "reader_roi": region(4)}
    assert measure(RECORD, box_scan(both), cbv).roi == "lesion_mask"
    row = measure(RECORD, box_scan({"reader_roi": region(3)}), cbv)
    assert (row.roi, row.synthetic_cbv) == ("reader_roi", pytest.approx(0.5 / 9.0))
    # The lesion covers 9 and 10 on the other side, so only column 11 is left as reference.
    scan = box_scan({"lesion_mask": region(2, 3, 9, 10)})
    row = measure(RECORD, scan, cbv)
    mean = (0.25 + 0.5 + 0.25 + 9.0) / 4
    reference = 0.25  # mirrored columns are 11, 10, 4, 3; without the lesion 11 and 4
    assert row.synthetic_cbv == pytest.approx(mean / reference)


def test_a_lesion_on_the_midline_has_no_reference():
    cbv = np.full((3, 12, 14), 0.25, dtype=np.float32)
    row = measure(RECORD, box_scan({"lesion_mask": region(6, 7)}), cbv)
    assert row.synthetic_cbv is None
    assert row.flags == ("empty-contralateral",)
    row = measure(RECORD, box_scan({"lesion_mask": region(5, 6, 7)}), cbv)
    assert row.flags == ("approximate-mirror", "small-contralateral")
    assert row.synthetic_cbv == pytest.approx(1.0)


def test_an_asl_map_without_flow_on_the_other_side_has_no_value():
    cbv = np.full((3, 12, 14), 0.25, dtype=np.float32)
    asl = np.zeros_like(cbv)
    asl[1, 4:7, 3] = 1.0
    row = measure(RECORD, box_scan({"lesion_mask": region(3)}, asl), cbv)
    assert row.asl is None
    assert row.synthetic_cbv == pytest.approx(1.0)


def test_reflection_is_about_the_brain_not_the_array():
    brain = np.zeros((1, 2, 10), dtype=bool)
    brain[..., 1:6] = True  # centroid 3
    array = np.arange(20, dtype=np.float32).reshape(1, 2, 10) + 1
    expected = [[7, 6, 5, 4, 3, 2, 1, 0, 0, 0], [17, 16, 15, 14, 13, 12, 11, 0, 0, 0]]
    np.testing.assert_array_equal(mirrored(array, brain)[0], expected)
    brain[0, 0, 6] = True  # centroid 36 / 11 = 3.27; twice that is 6.5, so column 0 pairs with 7
    np.testing.assert_array_equal(mirrored(array, brain)[0, 0], [8, 7, 6, 5, 4, 3, 2, 1, 0, 0])


def test_the_hot_spot_is_what_the_other_side_does_not_have():
    scan = box_scan({})
    cbv = np.full((3, 12, 14), 0.25, dtype=np.float32)
    cbv[:, 1:11, 6:8] = 5.0  # a bright vein on the midline
    cbv[0, 4:7, 2] = 2.0  # a vein on the brain's surface, on one side only
    cbv[2, 6:9, 9:12] = 1.0
    spot = hot_spot(cbv, scan.brain_mask > 0.5, scan.geometry.grid)
    assert spot is not None
    # A disc of 5 mm about the middle of the bright patch: the voxel and its four neighbours.
    assert sorted(map(tuple, np.argwhere(spot).tolist())) == [
        (2, 6, 10), (2, 7, 9), (2, 7, 10), (2, 7, 11), (2, 8, 10),
    ]  # fmt: skip
    row = measure(RECORD, scan, cbv)
    assert row.roi == "automatic"
    assert row.flags == ("automatic-roi", "approximate-mirror")
    assert row.synthetic_cbv == pytest.approx(4.0)


def test_a_symmetric_map_has_no_hot_spot():
    cbv = np.full((3, 12, 14), 0.25, dtype=np.float32)
    row = measure(RECORD, box_scan({}), cbv)
    assert (row.roi, row.synthetic_cbv, row.flags) == (None, None, ("no-roi",))


def test_every_image_and_a_measured_map_have_a_value_of_the_same_region():
    cbv = np.full((3, 12, 14), 0.25, dtype=np.float32)
    scan = box_scan({"lesion_mask": region(3)})
    measured = cbv.copy()
    measured[1, 4:7, 3] = 0.75
    row = measure(RECORD, replace(scan, cbv=measured), cbv)
    assert row.measured_cbv == pytest.approx(3.0)
    assert row.images == {T1: pytest.approx(1.0)}
    assert row.asl is None


def test_the_model_is_left_as_it_was(prepared, tmp_path):
    model = network(*Modality).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    synthesize_cohort(Synthesizer(model, HASH), prepared, tmp_path)
    assert model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)

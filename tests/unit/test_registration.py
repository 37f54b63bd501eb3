"""Registration: a clear misalignment is found and undone, everything else stays as it is."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from iedn.config import GridConfig
from iedn.errors import ConfigError
from iedn.modalities import Modality
from sites.cache import cache_key
from sites.cohort import ScanRecord
from sites.config import load_site_config
from sites.dataset import prepare_cohort
from sites.preprocessing import prepare_scan
from sites.reading import Volume
from sites.registration import RigidMotion, align, corrected, looks_misaligned, register

SHAPE = (10, 32, 32)  # (D, H, W)
AFFINE = np.array([[5.0, 0, 0, -77.5], [0, 5.0, 0, -77.5], [0, 0, 8.0, -36], [0, 0, 0, 1]])
GRID = GridConfig(rows=32, columns=32, spacing_mm=5.0)


def positions(affine: np.ndarray) -> np.ndarray:
    """RAS millimetres of every voxel, (D, H, W, 3)."""
    return np.indices(SHAPE)[::-1].transpose(1, 2, 3, 0) @ affine[:3, :3].T + affine[:3, 3]


def brain(mm: np.ndarray) -> np.ndarray:
    return ((mm / (60.0, 70.0, 34.0)) ** 2).sum(-1) < 1.0


def tissue(mm: np.ndarray) -> np.ndarray:
    """0 to 3: air, brain, and two lumps that break every symmetry."""
    one = ((mm - (20.0, 25.0, 5.0)) ** 2).sum(-1) < 24.0**2
    two = ((mm - (-25.0, -15.0, -6.0)) ** 2).sum(-1) < 20.0**2
    return np.select([one & brain(mm), two & brain(mm), brain(mm)], [2, 3, 1], 0)


def image(contrast: tuple[float, ...], seed: int) -> Volume:
    """The tissue with these values and some noise."""
    noise = np.random.default_rng(seed).normal(0.0, 4.0, SHAPE)
    array = (np.array(contrast)[tissue(positions(AFFINE))] + noise).astype(np.float32)
    return Volume(array, AFFINE, AFFINE)


T1 = image((0.0, 100.0, 160.0, 40.0), seed=1)
T2 = image((10.0, 80.0, 30.0, 150.0), seed=2)
MASK = Volume(brain(positions(AFFINE)).astype(np.float32), AFFINE, AFFINE)
NOISE = replace(T2, array=np.random.default_rng(3).random(SHAPE).astype(np.float32))


def displaced(volume: Volume, shift=(0.0, 0.0, 0.0), turn_deg=(0.0, 0.0, 0.0)) -> Volume:
    """The file says that its tissue lies turned (about the origin) and shifted."""
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(np.deg2rad(turn_deg)).as_matrix()
    motion[:3, 3] = shift
    return replace(volume, affine=motion @ volume.affine)


def error_mm(affine: np.ndarray) -> float:
    """Mean distance over the brain from where the tissue belongs."""
    mm = positions(AFFINE)[brain(positions(AFFINE))]
    change = affine @ np.linalg.inv(AFFINE)
    return float(np.linalg.norm(mm @ change[:3, :3].T + change[:3, 3] - mm, axis=1).mean())


@pytest.fixture(scope="module")
def found() -> RigidMotion:
    return register(T1, displaced(T2, (8.0, 0.0, 0.0)), MASK)


def test_a_known_shift_is_recovered(found):
    # T1 point p shows the tissue that the file has at p + (8, 0, 0).
    np.testing.assert_allclose(found.matrix[:3, 3], (8.0, 0.0, 0.0), atol=1.0)
    assert found.displacement_mm == pytest.approx(8.0, abs=1.0)
    assert found.rotation_deg < 1.5
    assert (found.applied, found.reason) == (True, "clearly better")
    assert found.fit_before < 0.85 * found.fit_after
    assert found.uncertainty_mm < 1.0
    assert found.consistency > 3.0
    moved = displaced(T2, (8.0, 0.0, 0.0))
    assert error_mm(moved.affine) == pytest.approx(8.0)
    # A quarter of the 5 mm voxels: the brain is nearly round, so its turn is seen by little.
    assert error_mm(corrected(moved, found)) < 1.25


def test_the_same_bits_every_time(found):
    again = register(T1, displaced(T2, (8.0, 0.0, 0.0)), MASK)
    assert again.matrix.tobytes() == found.matrix.tobytes()
    assert (again.fit_before, again.fit_after) == (found.fit_before, found.fit_after)


@pytest.mark.parametrize(
    ("shift", "turn", "expected"),
    [
        ((0, 0, 0), (0, 0, 0), False),
        ((8, 0, 0), (0, 0, 0), True),
        ((0, -8, 0), (0, 0, 0), True),
        ((0, 0, 8), (0, 0, 0), True),
        ((0, 0, 0), (0, 0, 8), True),
    ],
)
def test_the_first_look_sees_what_is_clear(shift, turn, expected):
    assert looks_misaligned(T1, displaced(T2, shift, turn), MASK) is expected


def test_what_heads_always_move_is_searched_but_not_corrected():
    moving = displaced(T2, (0.5, 0.5, 0), (0, 0, 0.5))
    assert looks_misaligned(T1, moving, MASK)
    assert align(T1, moving, MASK) is moving


def test_a_receive_field_is_not_taken_for_a_motion():
    # Twice as bright on one side of the head as on the other, in each image along another axis.
    mm = positions(AFFINE)
    t1, t2 = (
        replace(v, array=(v.array * np.exp(mm[..., axis] / 180.0)).astype(np.float32))
        for v, axis in ((T1, 0), (T2, 1))
    )
    assert align(t1, t2, MASK) is t2
    moved = align(t1, displaced(t2, (8.0, 0.0, 0.0)), MASK)
    assert error_mm(moved.affine) < 1.25


def test_the_first_look_knows_the_file_not_its_axis_order():
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[0, 3] = SHAPE[2] - 1
    mirrored = Volume(T2.array[:, :, ::-1].copy(), AFFINE @ flipped, AFFINE @ flipped)
    assert not looks_misaligned(T1, mirrored, MASK)
    assert looks_misaligned(T1, displaced(mirrored, (8, 0, 0)), MASK)


def test_an_aligned_file_is_the_same_object():
    assert align(T1, T2, MASK) is T2


def test_noise_is_left_alone():
    motion = register(T1, NOISE, MASK)
    assert (motion.applied, motion.reason) == (False, "not clearly better")
    assert align(T1, NOISE, MASK) is NOISE


def test_a_motion_too_large_to_be_believed_is_only_reported(monkeypatch, found):
    far = replace(found, applied=False, reason="too far", displacement_mm=31.0)
    monkeypatch.setattr("sites.registration.register", lambda *_: far)
    moving = displaced(T2, (8.0, 0.0, 0.0))
    left = align(T1, moving, MASK)
    np.testing.assert_array_equal(left.affine, moving.affine)
    (finding,) = left.warnings
    assert finding.code == "W221"
    assert "left as it is (too far: 31.0 mm" in finding.problem


def test_images_that_do_not_meet_are_a_failed_search():
    motion = register(T1, displaced(T2, (500.0, 0.0, 0.0)), MASK)
    assert (motion.applied, motion.reason) == (False, "search failed")
    np.testing.assert_array_equal(motion.matrix, np.eye(4))


def record_of(folder: Path, moving: Volume) -> ScanRecord:
    paths = {}
    for name, volume in {"t1": T1, "t2": moving, "mask": MASK}.items():
        paths[name] = folder / f"{name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(volume.array.T, volume.affine), paths[name])
    images = {Modality.T1WI: paths["t1"], Modality.T2WI: paths["t2"]}
    return ScanRecord("sub-0007", "ses-01", images, cbv=paths["t2"], brain_mask=paths["mask"])


def moves(scan):
    return [f for f in scan.warnings if f.code == "W221"]


def test_a_scan_is_prepared_with_the_motion_undone(tmp_path):
    (tmp_path / "right").mkdir()
    right = prepare_scan(record_of(tmp_path / "right", T2), GRID, registration="auto")
    record = record_of(tmp_path, displaced(T2, (8.0, 0.0, 0.0)))
    auto = prepare_scan(record, GRID, registration="auto")
    off = prepare_scan(record, GRID)
    inside = right.brain_mask > 0
    wanted, got, left = (s.images[Modality.T2WI][inside] for s in (right, auto, off))
    assert np.corrcoef(wanted, got)[0, 1] > 0.95
    assert np.corrcoef(wanted, left)[0, 1] < 0.85
    findings = moves(auto)
    assert [f.modality for f in findings] == ["T2WI", "CBV"]
    assert "mm and " in findings[0].problem
    assert "before" in findings[0].problem
    assert not moves(off)
    assert auto.cbv is not None


def test_an_aligned_scan_is_bit_identical_to_one_without_registration(tmp_path):
    record = record_of(tmp_path, T2)
    auto = prepare_scan(record, GRID, registration="auto")
    off = prepare_scan(record, GRID)
    assert auto.images[Modality.T2WI].tobytes() == off.images[Modality.T2WI].tobytes()
    assert auto.warnings == off.warnings
    assert not moves(auto)


def test_the_cache_key_follows_the_switch_and_the_version(tmp_path, monkeypatch):
    record = record_of(tmp_path, T2)
    keys = {cache_key(record, GRID), cache_key(record, GRID, registration="auto")}
    assert cache_key(record, GRID, registration="off") in keys
    monkeypatch.setattr("sites.cache.PREPROCESSING_VERSION", -1)
    assert len(keys | {cache_key(record, GRID)}) == 3


def test_the_switch_in_the_site_file_reaches_the_scans(tmp_path):
    record_of(tmp_path, displaced(T2, (8.0, 0.0, 0.0)))
    header = "patient_id,scan_id,T1WI,T2WI,FLAIR,ADC,T1_C,ASL,CBV,brain_mask,label,split"
    row = "sub-0007,ses-01,t1.nii.gz,t2.nii.gz,,,,,,mask.nii.gz,,"
    (tmp_path / "m.csv").write_text(f"{header},exclude_reason\n{row},\n")
    text = 'name = "a"\nrole = "evaluate"\nmanifest = "m.csv"\n'
    (tmp_path / "site.toml").write_text(text)
    default = load_site_config(tmp_path / "site.toml")
    assert default.preprocessing.registration == "off"
    assert "W221" not in [f.code for _, f in prepare_cohort(default, GRID).warnings]
    (tmp_path / "site.toml").write_text(text + '[preprocessing]\nregistration = "auto"\n')
    config = load_site_config(tmp_path / "site.toml")
    assert "W221" in [f.code for _, f in prepare_cohort(config, GRID).warnings]


def test_a_wrong_switch_is_named(tmp_path):
    text = 'name = "a"\nmanifest = "m.csv"\n[preprocessing]\nregistration = "always"\n'
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_site_config(tmp_path / "site.toml")
    assert caught.value.where.endswith("site.toml: preprocessing.registration")
    assert "'auto' or 'off'" in caught.value.allowed

"""Preprocessing: every voxel stays where it is in the patient, whatever the file's orientation."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from iedn.config import GridConfig
from iedn.errors import ScanError
from iedn.modalities import Modality
from sites.cohort import ScanRecord
from sites.preprocessing import Frame, antialiased, prepare_scan, resample, to_patient_grid
from sites.reading import Volume

T1, ASL, ADC = Modality.T1WI, Modality.ASL, Modality.ADC
CENTRE = np.array([4.0, -6.0, 12.0])
BLOB = np.array([20.0, 15.0, 18.0])  # right, front, upper part of the brain
GRID = GridConfig(rows=40, columns=36, spacing_mm=4.0)
SHAPE = (44, 50, 9)


def affine_of(rotation=None, spacing=(3.0, 3.0, 6.0), shape=SHAPE, off=(0, 0, 0)) -> np.ndarray:
    """An affine whose volume has its middle ``off`` the brain's."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) * spacing
    affine[:3, 3] = np.add(CENTRE, off) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def turned(about_z: float, about_x: float) -> np.ndarray:
    z, x = np.deg2rad([about_z, about_x])
    around_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    around_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    return np.array(around_z) @ np.array(around_x)


def places(affine: np.ndarray, shape) -> np.ndarray:
    """Millimetres of every voxel, (*shape, 3)."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def brain(mm: np.ndarray) -> np.ndarray:
    return (((mm - CENTRE) / (45.0, 55.0, 24.0)) ** 2).sum(-1) < 1.0


def blob(mm: np.ndarray, width: float = 7.0) -> np.ndarray:
    return np.exp(-((mm - BLOB) ** 2).sum(-1) / (2 * width**2))


def tissue(mm: np.ndarray) -> np.ndarray:
    """Uneven in all directions, so that a wrong flip cannot go unnoticed."""
    return brain(mm) * (300 + mm @ (1.0, 0.7, 2.0)) + 200 * blob(mm)


def save(path: Path, values: np.ndarray, affine: np.ndarray, *, codes: str = "RAS", dtype="f4"):
    """Write with the voxels stored in another order; ``affine`` belongs to the order RAS."""
    image = nibabel.Nifti1Image(values.astype(np.float32), affine)
    ornt = nibabel.orientations
    change = ornt.ornt_transform(ornt.io_orientation(affine), ornt.axcodes2ornt(tuple(codes)))
    image = image.as_reoriented(change)
    image.set_data_dtype(np.dtype(dtype))  # nibabel then chooses slope and intercept itself
    nibabel.save(image, path)
    return path


def scan_of(folder: Path, affine=None, *, codes="RAS", dtype="f4", **extra) -> ScanRecord:
    affine = affine_of() if affine is None else affine
    mm = places(affine, SHAPE)
    t1 = save(folder / f"t1_{codes}.nii.gz", tissue(mm), affine, codes=codes, dtype=dtype)
    mask = save(folder / f"mask_{codes}.nii.gz", brain(mm), affine, codes=codes)
    images = {T1: t1} | extra.pop("images", {})
    return ScanRecord("sub-0001", "ses-01", images, brain_mask=mask, **extra)


def centre_mm(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of mass of an array (D, H, W) in millimetres."""
    mm = places(affine, array.shape[::-1])
    weights = np.transpose(array).astype(np.float64)
    return (mm * weights[..., None]).sum((0, 1, 2)) / weights.sum()


def test_one_voxel_lands_where_it_must(tmp_path):
    # 40 x 54 x 6 voxels of 3 x 3 x 6 mm stored right-to-left reversed (RAS); mask in the box
    # 10..29 x 12..41, centroid (19.5, 26.5). Turned to L, P the voxel (15, 20) is
    # (39 - 15, 53 - 20) = (24, 33). The grid's first voxel is at 19.5 - 15.5 = 4 and
    # 26.5 - 19.5 = 7, so the voxel lands in column 24 - 4 = 20 and row 33 - 7 = 26.
    affine = np.diag([3.0, 3.0, 6.0, 1.0])
    values, mask = np.ones((40, 54, 6)), np.zeros((40, 54, 6))
    values[15, 20, 3], mask[10:30, 12:42, :] = 101.0, 1.0
    record = ScanRecord(
        "sub-0001",
        "ses-01",
        {T1: save(tmp_path / "t1.nii.gz", values, affine)},
        brain_mask=save(tmp_path / "m.nii.gz", mask, affine),
    )
    scan = prepare_scan(record, GridConfig(rows=40, columns=32, spacing_mm=3.0))
    array = scan.images[T1]
    assert array.shape == (6, 40, 32)
    assert np.unravel_index(array.argmax(), array.shape) == (3, 26, 20)
    # Copied, not interpolated: one voxel of 101, the rest 1; mean over 3600 voxels is 1.02777…
    mean = (3599 + 101) / 3600
    np.testing.assert_allclose(array.max(), 0.25 * 101 / mean, rtol=1e-5)
    np.testing.assert_allclose(np.median(array), 0.25 / mean, rtol=1e-5)
    np.testing.assert_allclose(scan.geometry.grid.affine @ [20, 26, 3, 1], [45, 60, 18, 1])


def test_the_grid_starts_at_the_whole_voxel_that_centres_the_brain_best(tmp_path):
    # Voxels of 2 x 3 x 6 mm: a 4 mm grid takes steps of 2 and 4/3 voxels. Centroid (25.5, 26.5),
    # turned (33.5, 26.5); first column 33.5 - 2 * 9.5 = 14.5, which goes up to 15, first row
    # 26.5 - 4/3 * 12.5 = 9.83, nearest 10. In the file these are 59 - 15 = 44 and 53 - 10 = 43.
    affine = np.diag([2.0, 3.0, 6.0, 1.0])
    mask = np.zeros((60, 54, 3))
    mask[11:41, 12:42] = 1.0
    record = ScanRecord(
        "sub-0001",
        "ses-01",
        {T1: save(tmp_path / "t1.nii.gz", mask * 5, affine)},
        brain_mask=save(tmp_path / "m.nii.gz", mask, affine),
    )
    grid = prepare_scan(record, GridConfig(rows=26, columns=20, spacing_mm=4.0)).geometry.grid
    expected = [[-4, 0, 0, 88], [0, -4, 0, 129], [0, 0, 6, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(grid.affine, expected, atol=1e-9)


def test_axes_are_bottom_to_top_front_to_back_right_to_left(tmp_path):
    scan = prepare_scan(scan_of(tmp_path), GRID)
    grid = scan.geometry.grid
    mm = np.moveaxis(places(grid.affine, grid.shape[::-1]), (0, 1, 2), (2, 1, 0))
    assert (np.diff(mm[..., 2], axis=0) > 0).all()
    assert (np.diff(mm[..., 1], axis=1) < 0).all()
    assert (np.diff(mm[..., 0], axis=2) < 0).all()


@pytest.mark.parametrize("codes", ["LAS", "LPS", "RPI", "PSR", "SAL"])
def test_the_stored_orientation_makes_no_difference(tmp_path, codes):
    reference = prepare_scan(scan_of(tmp_path), GRID)
    scan = prepare_scan(scan_of(tmp_path, codes=codes), GRID)
    assert scan.geometry.patient.shape != reference.geometry.patient.shape or codes in "LAS LPS RPI"
    np.testing.assert_allclose(scan.geometry.grid.affine, reference.geometry.grid.affine, atol=1e-5)
    np.testing.assert_array_equal(scan.brain_mask, reference.brain_mask)
    np.testing.assert_allclose(scan.images[T1], reference.images[T1], atol=1e-5)


def test_integers_with_a_slope_are_the_same_image(tmp_path):
    reference = prepare_scan(scan_of(tmp_path), GRID)
    (tmp_path / "int").mkdir()
    record = scan_of(tmp_path / "int", codes="LAS", dtype="i2")
    header = nibabel.load(record.images[T1]).header
    assert header["datatype"] == 4
    assert float(header["scl_slope"]) not in (0.0, 1.0)
    np.testing.assert_allclose(
        prepare_scan(record, GRID).images[T1], reference.images[T1], atol=2e-5
    )


@pytest.mark.parametrize("rotation", [turned(0, 0), turned(15, 0), turned(-20, 12)])
@pytest.mark.parametrize("codes", ["RAS", "LAS", "PSR"])
def test_a_blob_is_found_at_its_millimetres_and_brought_back(tmp_path, rotation, codes):
    affine = affine_of(rotation)
    asl_affine = affine_of(turned(5, -4), spacing=(2.5, 2.5, 5.0), shape=(60, 66, 14))
    asl = save(tmp_path / "asl.nii.gz", blob(places(asl_affine, (60, 66, 14))), asl_affine)
    scan = prepare_scan(scan_of(tmp_path, affine, codes=codes, images={ASL: asl}), GRID)
    grid = scan.geometry.grid
    assert grid.shape == (9, 40, 36)
    np.testing.assert_allclose(grid.spacing, (6, 4, 4), rtol=1e-5)
    np.testing.assert_allclose(centre_mm(scan.images[ASL], grid.affine), BLOB, atol=0.2)

    back = to_patient_grid(scan.images[ASL], scan.geometry)
    image = nibabel.load(tmp_path / f"t1_{codes}.nii.gz")
    assert back.shape == image.shape[::-1]
    np.testing.assert_allclose(scan.geometry.file_affine, image.affine)
    np.testing.assert_allclose(centre_mm(back, image.affine), BLOB, atol=0.2)


def test_slices_keep_the_direction_of_the_t1(tmp_path):
    affine = affine_of(turned(15, 10))
    grid = prepare_scan(scan_of(tmp_path, affine), GRID).geometry.grid
    unit = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    np.testing.assert_allclose(unit[:, 2], turned(15, 10)[:, 2], atol=1e-6)
    np.testing.assert_allclose(unit[:, 0], -turned(15, 10)[:, 0], atol=1e-6)


def test_the_brain_is_in_the_middle_even_if_it_is_not_in_the_file(tmp_path):
    affine = affine_of(off=(15.0, -12.0, 0.0))
    scan = prepare_scan(scan_of(tmp_path, affine), GRID)
    _, y, x = np.argwhere(scan.brain_mask > 0).mean(0)
    assert abs(y - 19.5) < 1
    assert abs(x - 17.5) < 1


def test_intensities_have_a_brain_mean_of_a_quarter_and_no_negatives(tmp_path):
    affine = affine_of()
    mm = places(affine, SHAPE)
    noisy_air = save(tmp_path / "adc.nii.gz", tissue(mm) - 30.0 * ~brain(mm), affine)
    cold = tissue(mm) - 2000.0 * (np.abs(mm - CENTRE).max(-1) < 6.0)
    cbv = save(tmp_path / "cbv.nii.gz", cold, affine)
    record = scan_of(tmp_path, images={ADC: noisy_air}, cbv=cbv)
    scan = prepare_scan(record, GridConfig(rows=64, columns=64, spacing_mm=3.0))
    inside = scan.brain_mask > 0
    for array in (scan.images[T1], scan.images[ADC], scan.cbv):
        assert array.min() == 0.0
        np.testing.assert_allclose(array[inside].mean(dtype=np.float64), 0.25, rtol=1e-6)
    # Voxels 1.5 or 4.5 mm from the middle in-plane, 0 mm in z: 4 * 4 * 1.
    (finding,) = [f for f in scan.warnings if f.code == "W204"]
    assert (finding.modality, finding.problem[:18]) == ("CBV", "16 negative voxels")


def test_finer_images_are_smoothed_in_plane_before_sampling(tmp_path):
    """Stripes of one native voxel would alias to strong stripes; smoothed they are even."""
    affine = affine_of()
    mm = places(affine, SHAPE)
    stripes = brain(mm) * (100.0 + 80.0 * (-1.0) ** np.indices(SHAPE)[0])
    t1 = save(tmp_path / "stripes.nii.gz", stripes, affine)
    record = scan_of(tmp_path, images={T1: t1})
    coarse = prepare_scan(record, GridConfig(rows=16, columns=16, spacing_mm=12.0))
    centre = coarse.images[T1][4, 6:10, 6:10]
    np.testing.assert_allclose(centre, centre.mean(), rtol=0.01)
    same = prepare_scan(record, GridConfig(rows=64, columns=64, spacing_mm=3.0)).images[T1]
    middle = same[4, 32, 26:38]
    np.testing.assert_allclose(middle[::2] / middle[1::2], middle[0] / middle[1], rtol=1e-4)
    assert max(middle[0] / middle[1], middle[1] / middle[0]) > 8.0  # 180 : 20 is kept


def test_the_smoothing_is_as_wide_as_its_rule_says():
    # 1 mm voxels for a 3 x 5 mm grid: sigma = sqrt(3^2 - 1) / 2.3548 = 1.2011 mm along W,
    # sqrt(5^2 - 1) / 2.3548 = 2.0804 mm along H, none along D.
    array = np.zeros((5, 61, 61), dtype=np.float32)
    array[2, 30, 30] = 1.0
    fine = np.diag([1.0, 1.0, 4.0, 1.0])
    frame = Frame((5, 12, 20), np.diag([3.0, 5.0, 8.0, 1.0]))
    smooth = antialiased(Volume(array, fine, fine), frame).astype(np.float64)
    steps = np.arange(61) - 30
    np.testing.assert_allclose(np.sqrt(smooth.sum((0, 1)) @ steps**2), 1.2011, rtol=0.01)
    np.testing.assert_allclose(np.sqrt(smooth.sum((0, 2)) @ steps**2), 2.0804, rtol=0.01)
    assert smooth[1].max() == smooth[3].max() == 0.0
    np.testing.assert_allclose(smooth.sum(), 1.0, rtol=1e-4)


def test_nothing_is_smoothed_for_a_finer_grid_and_masks_never_are():
    rng = np.random.default_rng(0)
    affine = np.diag([4.0, 4.0, 6.0, 1.0])
    volume = Volume(rng.random((4, 8, 8)).astype(np.float32), affine, affine)
    finer = Frame((4, 16, 16), np.diag([2.0, 2.0, 6.0, 1.0]))
    np.testing.assert_array_equal(antialiased(volume, finer), volume.array)
    coarser = Frame((4, 4, 4), np.diag([8.0, 8.0, 6.0, 1.0]))
    nearest = resample(volume, coarser, nearest=True)
    np.testing.assert_array_equal(nearest, volume.array[:, ::2, ::2])


def test_linear_interpolation_and_zero_outside():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    ramp = np.broadcast_to(np.arange(6, dtype=np.float32), (3, 4, 6)).copy() + 1
    at = affine.copy()
    at[0, 3] = 0.8  # 0.4 voxels: the sixth sample is beyond the last voxel's middle, in its half
    result = resample(Volume(ramp, affine, affine), Frame((3, 4, 8), at))
    np.testing.assert_allclose(result[1, 1], [1.4, 2.4, 3.4, 4.4, 5.4, 6.0, 0.0, 0.0], 1e-6)


def test_masks_and_regions_may_have_a_grid_of_their_own(tmp_path):
    other = affine_of(spacing=(2.0, 2.0, 2.0), shape=(70, 80, 31))
    mm = places(other, (70, 80, 31))
    lesion = save(tmp_path / "lesion.nii.gz", blob(mm) > 0.5, other)
    record = scan_of(tmp_path, lesion_mask=lesion)
    scan = prepare_scan(record, GRID)
    region = scan.regions["lesion_mask"]
    assert np.unique(region).tolist() == [0.0, 1.0]
    np.testing.assert_allclose(centre_mm(region, scan.geometry.grid.affine), BLOB, atol=1.0)


def test_a_brain_larger_than_the_grid_is_named(tmp_path):
    scan = prepare_scan(scan_of(tmp_path), GridConfig(rows=16, columns=16, spacing_mm=4.0))
    (finding,) = [f for f in scan.warnings if f.code == "W208"]
    assert finding.modality == "brain_mask"


def bad_asl(folder: Path, kind: str) -> Path:
    affine, path = affine_of(), folder / "asl.nii.gz"
    mm = places(affine, SHAPE)
    values = tissue(mm)
    if kind == "E203":
        values = np.where(brain(mm) & (mm[..., 0] > 30), np.nan, values)
    elif kind == "E205":
        values = -1.0 - values
    elif kind == "E220":
        affine = affine_of(off=(0.0, 0.0, 25.0))
    elif kind == "E201":
        values = np.stack([values, values], -1)
        nibabel.save(nibabel.Nifti1Image(values, affine), path)
        return path
    elif kind == "E100":
        return path
    return save(path, values, affine)


@pytest.mark.parametrize("code", ["E100", "E201", "E203", "E205", "E220"])
def test_a_bad_modality_is_left_out_and_the_scan_goes_on(tmp_path, code):
    path = bad_asl(tmp_path, code)
    scan = prepare_scan(scan_of(tmp_path, images={ASL: path}, cbv=path), GRID)
    assert set(scan.images) == {T1}
    assert scan.cbv is None
    assert [(f.code, f.modality) for f in scan.refused] == [(code, "ASL"), (code, "CBV")]


def test_the_named_volume_of_a_4d_asl_file_is_used(tmp_path):
    values = tissue(places(affine_of(), SHAPE))
    stack = np.stack([np.ones(SHAPE), values], -1).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(stack, affine_of()), tmp_path / "asl.nii.gz")
    record = scan_of(tmp_path, images={ASL: tmp_path / "asl.nii.gz"}, asl_volume=1)
    scan = prepare_scan(record, GRID)
    np.testing.assert_allclose(scan.images[ASL], scan.images[T1], atol=1e-5)


def test_a_slightly_short_field_of_view_is_used_with_a_warning(tmp_path):
    affine = affine_of(off=(0.0, 0.0, 12.0))
    path = save(tmp_path / "asl.nii.gz", tissue(places(affine, SHAPE)), affine)
    scan = prepare_scan(scan_of(tmp_path, images={ASL: path}), GRID)
    assert ASL in scan.images
    found = [(f.code, f.modality) for f in scan.warnings]
    # The block that plays the brain holds too little, and its "ASL" is no CBF.
    assert found == [("W206", "brain_mask"), ("W220", "ASL"), ("W207", "ASL")]


@pytest.mark.parametrize(
    ("change", "code", "column"),
    [
        ({"images": {}}, "E210", "T1WI"),
        ({"brain_mask": None}, "E211", "brain_mask"),
        ({"images": {T1: Path("none.nii")}}, "E100", "T1WI"),
        ({"brain_mask": Path("none.nii")}, "E100", "brain_mask"),
    ],
)
def test_without_t1_or_mask_there_is_no_scan(tmp_path, change, code, column):
    record = ScanRecord(**{**vars(scan_of(tmp_path)), **change})
    with pytest.raises(ScanError) as caught:
        prepare_scan(record, GRID)
    assert (caught.value.code, caught.value.modality) == (code, column)
    assert caught.value.scan == "sub-0001/ses-01"


def test_a_t1_beside_its_mask_is_refused(tmp_path):
    affine = affine_of(off=(60.0, 0.0, 0.0))
    t1 = save(tmp_path / "far.nii.gz", tissue(places(affine, SHAPE)) + 1.0, affine)
    with pytest.raises(ScanError) as caught:
        prepare_scan(scan_of(tmp_path, images={T1: t1}), GRID)
    assert caught.value.code == "E220"

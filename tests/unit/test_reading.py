"""Reading NIfTI: right voxels at right places, and a code for every file that cannot be trusted."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from iedn.errors import ScanError
from sites.reading import (
    Volume,
    finite,
    inside_view,
    read_mask,
    read_volume,
    sample_nearest,
    to_sitk,
    voxel_points,
)

AFFINE = np.array([[-2.0, 0, 0, 11], [0, 3.0, 0, -7], [0, 0, 5.0, 2], [0, 0, 0, 1]])
VALUES = np.arange(4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3)


def save(path: Path, values=VALUES, affine=AFFINE, *, code: int = 1, dtype=None) -> Path:
    image = nibabel.Nifti1Image(values, affine, dtype=dtype)
    image.set_sform(affine, code=code)
    image.set_qform(affine if code else None, code=code)
    nibabel.save(image, path)
    return path


def sheared(by: float) -> np.ndarray:
    """AFFINE's voxel sizes with the x and y axes leaning towards each other: cosine ``by``."""
    affine = np.diag([2.0, 3.0, 5.0, 1.0])
    affine[:2, 1] = 3.0 * np.array([by, np.sqrt(1 - by**2)])
    return affine


def truncated(path: Path) -> Path:
    rng = np.random.default_rng(0)
    content = save(path, rng.normal(size=(16, 16, 8)).astype(np.float32)).read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


def bad_checksum(path: Path) -> Path:
    content = bytearray(save(path).read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    return path


def no_geometry(path: Path) -> Path:
    return save(path, code=0)


def singular(path: Path) -> Path:
    content = bytearray(nibabel.Nifti1Image(VALUES, AFFINE).to_bytes())
    content[312:328] = bytes(16)  # srow_z
    return written(path, bytes(content))


def colour(path: Path) -> Path:
    rgb = np.zeros((4, 5, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return save(path, rgb)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD = {
    "missing": ("E100", "x.nii.gz", lambda p: p),
    "a folder": ("E100", "x.nii.gz", lambda p: (p.mkdir(), p)[1]),
    "truncated gzip": ("E101", "x.nii.gz", truncated),
    "truncated plain": ("E101", "x.nii", truncated),
    "only a gzip header": ("E101", "x.nii.gz", lambda p: written(p, b"\x1f\x8b\x08\x00")),
    "bad checksum": ("E101", "x.nii.gz", bad_checksum),
    "empty": ("E102", "x.nii.gz", lambda p: written(p, b"")),
    "not gzip": ("E102", "x.nii.gz", lambda p: written(p, b"no image at all" * 50)),
    "not NIfTI": ("E102", "x.nii", lambda p: written(p, b"no image at all" * 50)),
    "text in gzip": ("E102", "x.nii.gz", lambda p: written(p, gzip.compress(b"text" * 200))),
    "shear": ("E104", "x.nii.gz", lambda p: save(p, affine=sheared(0.06))),
    "no geometry": ("E105", "x.nii.gz", no_geometry),
    "singular affine": ("E105", "x.nii", singular),
    "4D": ("E201", "x.nii.gz", lambda p: save(p, np.stack([VALUES, VALUES], -1))),
    "2D": ("E201", "x.nii.gz", lambda p: save(p, VALUES[..., 0])),
    "colour": ("E202", "x.nii.gz", colour),
    "complex": ("E202", "x.nii.gz", lambda p: save(p, VALUES.astype(np.complex64))),
    "all zero": ("E205", "x.nii.gz", lambda p: save(p, 0 * VALUES)),
    "constant": ("E205", "x.nii.gz", lambda p: save(p, 0 * VALUES + 7)),
    "only NaN": ("E205", "x.nii.gz", lambda p: save(p, VALUES * np.nan)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_code(tmp_path, name):
    code, file_name, make = BAD[name]
    path = make(tmp_path / file_name)
    with pytest.raises(ScanError) as caught:
        read_volume(path)
    assert caught.value.code == code
    assert str(tmp_path) not in caught.value.problem


def test_random_bytes_after_a_valid_header_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(1)
    good = nibabel.Nifti1Image(VALUES, AFFINE).to_bytes()
    outcomes = set()
    for number in range(300):
        content = bytearray(good)
        for place in rng.integers(0, 348, size=6):
            content[place] = rng.integers(0, 256)
        try:
            read_volume(written(tmp_path / f"{number}.nii", bytes(content)))
            outcomes.add("read")
        except ScanError as error:
            outcomes.add(error.code)
    assert {"read", "E101", "E102"} <= outcomes


def test_axes_are_reversed_and_the_affine_keeps_every_voxel_in_place(tmp_path):
    volume = read_volume(save(tmp_path / "x.nii.gz"))
    assert volume.array.shape == (3, 5, 4)
    assert volume.array.dtype == np.float32
    assert volume.array[2, 4, 1] == VALUES[1, 4, 2]
    np.testing.assert_allclose(volume.affine @ [1, 4, 2, 1], [9, 5, 12, 1], atol=1e-5)
    np.testing.assert_allclose(volume.spacing, (5.0, 3.0, 2.0), rtol=1e-6)
    assert volume.warnings == ()


def test_slope_and_intercept_are_applied(tmp_path):
    image = nibabel.Nifti1Image(VALUES, AFFINE)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, -3.0)
    nibabel.save(image, tmp_path / "x.nii.gz")
    assert nibabel.load(tmp_path / "x.nii.gz").header["datatype"] == 4
    volume = read_volume(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(volume.array, 0.5 * VALUES.T - 3.0)


@pytest.mark.parametrize("shape", [(4, 5, 3, 1), (4, 5, 3, 1, 1)])
def test_trailing_dimensions_of_one_are_dropped(tmp_path, shape):
    path = save(tmp_path / "x.nii.gz", VALUES.reshape(shape))
    assert read_volume(path).array.shape == (3, 5, 4)


def test_a_named_volume_of_a_4d_file(tmp_path):
    path = save(tmp_path / "x.nii.gz", np.stack([VALUES, VALUES + 100], -1))
    np.testing.assert_array_equal(read_volume(path, index=1).array, VALUES.T + 100)
    with pytest.raises(ScanError, match="volumes 0 to 1") as caught:
        read_volume(path, index=2)
    assert caught.value.code == "E201"


def test_nifti2_is_read(tmp_path):
    nibabel.save(nibabel.Nifti2Image(VALUES, AFFINE), tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "x.nii.gz").array, VALUES.T)


@pytest.mark.parametrize(("by", "codes"), [(0.0, []), (5e-4, []), (0.01, ["W104"])])
def test_a_little_shear_is_taken_out_about_the_centre(tmp_path, by, codes):
    volume = read_volume(save(tmp_path / "x.nii.gz", affine=sheared(by)))
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert [f.code for f in volume.warnings if f.code == "W104"] == codes
    centre = [1.5, 2.0, 1.0, 1.0]
    np.testing.assert_allclose(volume.affine @ centre, volume.file_affine @ centre, atol=1e-9)
    np.testing.assert_allclose(volume.file_affine, sheared(by), atol=1e-6)


def test_the_sform_wins_and_the_distance_is_named(tmp_path):
    image = nibabel.Nifti1Image(VALUES, AFFINE)
    shifted = AFFINE.copy()
    shifted[0, 3] += 4.0
    image.set_sform(AFFINE, code=1)
    image.set_qform(shifted, code=1)
    nibabel.save(image, tmp_path / "x.nii.gz")
    volume = read_volume(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    (finding,) = volume.warnings
    assert finding.code == "W106"
    assert "4.0 mm" in finding.problem


def test_a_file_with_a_qform_alone_is_read(tmp_path):
    image = nibabel.Nifti1Image(VALUES, AFFINE)
    image.set_sform(None, code=0)
    image.set_qform(AFFINE, code=1)
    nibabel.save(image, tmp_path / "x.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "x.nii.gz").affine, AFFINE, atol=1e-5)


def test_a_truncated_file_would_have_passed_simpleitk(tmp_path):
    """Why SimpleITK never reads here: if this fails, it has learnt to notice."""
    path = truncated(tmp_path / "x.nii.gz")
    image = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    assert (image[-1] == 0).all()


def test_masks_are_zero_and_one(tmp_path):
    values = np.zeros((4, 5, 3), dtype=np.uint8)
    values[1, 2, 1], values[2, 2, 1] = 255, 1
    mask = read_mask(save(tmp_path / "m.nii.gz", values))
    assert np.unique(mask.array).tolist() == [0.0, 1.0]
    assert mask.array.sum() == 2


def test_a_mask_without_inside_is_refused(tmp_path):
    values = np.zeros((4, 5, 3), dtype=np.float32)
    values[0, 0, 0] = 0.3
    with pytest.raises(ScanError, match="the mask is empty") as caught:
        read_mask(save(tmp_path / "m.nii.gz", values))
    assert caught.value.code == "E205"


def box_volume(array: np.ndarray, affine=AFFINE) -> Volume:
    return Volume(array.astype(np.float32), affine, affine)


def test_few_non_finite_voxels_become_zero_with_a_warning():
    inside = np.zeros((10, 20, 20))
    inside[2:8, 4:16, 4:16] = 1  # 864 voxels: 0.1 % is 0.864 voxels
    values = np.ones((10, 20, 20))
    values[0, 0, :5] = np.inf
    found = finite(box_volume(values), box_volume(inside))
    assert np.isfinite(found.array).all()
    assert (found.array == 0).sum() == 5
    assert [f.code for f in found.warnings] == ["W203"]
    assert "5 NaN or infinite voxels set to 0, 0 of them" in found.warnings[0].problem


@pytest.mark.parametrize(("bad", "refused"), [(1, False), (2, True)])
def test_non_finite_voxels_inside_the_mask_have_a_limit(bad, refused):
    inside = np.zeros((10, 20, 20))
    inside[1:9, 3:17, 3:17] = 1  # 1568 voxels: 0.1 % is 1.568 voxels
    values = np.ones((10, 20, 20))
    values[5, 10, 10 : 10 + bad] = np.nan
    if refused:
        with pytest.raises(ScanError) as caught:
            finite(box_volume(values), box_volume(inside))
        assert caught.value.code == "E203"
    else:
        assert finite(box_volume(values), box_volume(inside)).array[5, 10, 10] == 0


def test_points_and_voxels_belong_together():
    volume = box_volume(VALUES.T)
    selected = np.zeros((3, 5, 4), dtype=bool)
    selected[2, 4, 1] = True
    points = voxel_points(volume, selected)
    np.testing.assert_allclose(points, [[9, 5, 12]])
    assert sample_nearest(volume, points + 0.9).tolist() == [VALUES[1, 4, 2]]
    outside = np.add(points, (0, 3.0, 0))
    assert sample_nearest(volume, outside).tolist() == [0.0]
    assert inside_view(volume, np.vstack([points, outside])).tolist() == [True, False]


def test_simpleitk_sees_the_voxel_at_the_same_place_in_its_own_frame():
    image = to_sitk(VALUES.T.copy(), AFFINE)
    x, y, z = image.TransformIndexToPhysicalPoint((1, 4, 2))
    np.testing.assert_allclose((-x, -y, z), (9, 5, 12))
    assert image.GetPixel((1, 4, 2)) == VALUES[1, 4, 2]

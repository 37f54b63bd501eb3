"""The door to the optional brain mask: what it gets, what comes back, what it says when absent."""

import importlib.util
import sys
import types
from dataclasses import replace
from typing import ClassVar

import nibabel
import numpy as np
import pytest

from iedn.config import GridConfig
from iedn.errors import ScanError
from iedn.modalities import Modality
from sites import brain_mask
from sites.brain_mask import estimate_brain_mask
from sites.cache import cache_key
from sites.cohort import ScanRecord
from sites.preprocessing import prepare_scan
from sites.reading import Volume

GRID = GridConfig(rows=16, columns=16, spacing_mm=10.0)
AFFINE = np.array([[-8.0, 0, 0, 60], [0, 8.0, 0, -60], [0, 0, 6.0, -9], [0, 0, 0, 1]])
SHAPE = (16, 15, 14)  # three sizes, so that an axis in the wrong place is noticed


def head() -> np.ndarray:
    """(x, y, z): a bright block that is nowhere symmetric."""
    values = np.random.default_rng(2).uniform(1, 20, SHAPE)
    values[3:12, 4:13, 2:12] += 100.0
    return values


def t1() -> Volume:
    return Volume(head().T.astype(np.float32), AFFINE, AFFINE)


class FakeExtraction:
    """Stands for deepbet's class: the brain is what is brighter than 50."""

    seen: ClassVar[list[nibabel.Nifti1Image]] = []

    def __init__(self, *, no_gpu):
        assert no_gpu

    def run(self, image):
        type(self).seen.append(image)
        mask = (np.asarray(image.dataobj) > 50).astype(np.uint8)
        if not mask.any():
            raise AssertionError("Not enough foreground to calculate bounding box")
        return image, nibabel.Nifti1Image(mask, image.affine), float(mask.sum())


@pytest.fixture(autouse=True)
def _fresh():
    brain_mask._extractor.cache_clear()
    FakeExtraction.seen.clear()
    yield
    brain_mask._extractor.cache_clear()


@pytest.fixture
def installed(monkeypatch):
    package = types.ModuleType("deepbet")
    package.bet = types.ModuleType("deepbet.bet")
    package.bet.BrainExtraction = FakeExtraction
    monkeypatch.setitem(sys.modules, "deepbet", package)
    monkeypatch.setitem(sys.modules, "deepbet.bet", package.bet)
    monkeypatch.setattr(brain_mask, "version", lambda name: "9.9" if name == "deepbet" else "")
    return FakeExtraction


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepbet", None)
    monkeypatch.setitem(sys.modules, "deepbet.bet", None)


@pytest.fixture
def record(tmp_path) -> ScanRecord:
    path = tmp_path / "T1WI.nii.gz"
    nibabel.save(nibabel.Nifti1Image(head().astype(np.float32), AFFINE), path)
    return ScanRecord("sub-0007", "visit-1", {Modality.T1WI: path})


def test_the_mask_lies_on_the_t1s_voxels(installed):
    mask = estimate_brain_mask(t1())
    assert mask.array.shape == SHAPE[::-1]
    assert mask.array.dtype == np.float32
    np.testing.assert_array_equal(mask.array, t1().array > 50)
    np.testing.assert_array_equal(mask.affine, AFFINE)
    (finding,) = mask.warnings
    assert finding.code == "W212"
    assert "deepbet 9.9" in finding.problem


def test_a_dark_lesion_leaves_no_hole_in_the_mask(installed):
    volume = t1()
    volume.array[5:7, 7:9, 6:8] = 10.0
    np.testing.assert_array_equal(estimate_brain_mask(volume).array, t1().array > 50)


def test_deepbet_gets_a_finite_float32_image_in_the_patients_frame(installed):
    volume = t1()
    volume.array[0, 0, 0], volume.array[0, 0, 1] = np.nan, np.inf
    estimate_brain_mask(volume)
    (image,) = installed.seen
    assert image.get_data_dtype() == np.float32
    assert image.shape == SHAPE
    np.testing.assert_array_equal(image.affine, AFFINE)
    values = np.asarray(image.dataobj)
    assert (values[0, 0, 0], values[1, 0, 0]) == (0.0, 0.0)
    assert np.isnan(volume.array[0, 0, 0]), "the T1 itself was changed"


def test_without_deepbet_the_scan_is_e211_and_says_how_to_install(absent, record):
    with pytest.raises(ScanError) as caught:
        prepare_scan(record, GRID)
    error = caught.value
    assert (error.code, error.scan, error.modality) == ("E211", record.key, "brain_mask")
    assert "pip install 'iedn[mask]'" in error.problem


def test_no_brain_in_the_t1_is_e211(installed):
    dark = Volume(np.ones(SHAPE[::-1], dtype=np.float32), AFFINE, AFFINE)
    with pytest.raises(ScanError, match="E211: none given, and deepbet finds no brain"):
        estimate_brain_mask(dark)


def test_a_scan_without_a_mask_is_prepared_and_says_so(installed, record):
    scan = prepare_scan(record, GRID)
    assert next(f.code for f in scan.warnings if f.modality == "brain_mask") == "W212"
    inside = scan.images[Modality.T1WI][scan.brain_mask > 0.5]
    assert float(inside.mean()) == pytest.approx(0.25, abs=1e-6)


def test_a_given_mask_is_never_replaced(installed, record, tmp_path):
    path = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image((head() > 90).astype(np.float32), AFFINE), path)
    scan = prepare_scan(replace(record, brain_mask=path), GRID)
    assert "W212" not in [f.code for f in scan.warnings]
    assert installed.seen == []


def test_the_cache_knows_what_made_the_mask(installed, record, monkeypatch, tmp_path):
    first = cache_key(record, GRID)
    monkeypatch.setattr(brain_mask, "version", lambda name: "10.0")
    assert cache_key(record, GRID) != first
    given = replace(record, brain_mask=tmp_path / "mask.nii.gz")
    key = cache_key(given, GRID)
    monkeypatch.setattr(brain_mask, "version", lambda name: "11.0")
    assert cache_key(given, GRID) == key


@pytest.mark.skipif(importlib.util.find_spec("deepbet") is None, reason="needs the extra mask")
def test_the_real_network_finds_a_ball_of_brain_the_same_in_every_orientation():
    x, y, z = np.indices((64, 64, 64))
    radius = np.sqrt((x - 30) ** 2 + (y - 33) ** 2 + (z - 31) ** 2)
    values = np.where(radius < 22, 100.0, 0.0) + np.where(np.abs(radius - 27) < 2, 160.0, 0.0)
    values = (values + np.random.default_rng(1).uniform(0, 8, values.shape)).astype(np.float32)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    plain = estimate_brain_mask(Volume(values.T.copy(), affine, affine)).array.T
    mirrored = affine.copy()
    mirrored[0] = [-3.0, 0, 0, 3.0 * 63]
    turned = estimate_brain_mask(Volume(values[::-1].T.copy(), mirrored, mirrored)).array.T
    np.testing.assert_array_equal(turned[::-1], plain)
    brain = radius < 22
    assert 2 * (plain * brain).sum() / (plain.sum() + brain.sum()) > 0.8

"""Random fields: one seed is one field, whatever grid it is asked for."""

import numpy as np
import pytest

from simulation.phantom.fields import Lattice, along_axes, cubic_spline, spline_field
from simulation.phantom.streams import Draw, stream


def field_on(lattice: Lattice, fwhm_mm: float = 7.0) -> np.ndarray:
    return spline_field(np.random.default_rng(3), fwhm_mm, lattice.axes)


def test_field_has_the_same_values_at_the_same_places_of_other_grids() -> None:
    coarse = field_on(Lattice((-40.0, -40.0, -40.0), (4.0, 4.0, 4.0), (20, 20, 20)))
    fine = field_on(Lattice((-80.0, -60.0, -40.0), (1.0, 2.0, 1.0), (160, 60, 80)))
    assert fine[40:120:4, 10:50:2, ::4] == pytest.approx(coarse, abs=1e-5)


def test_field_has_zero_mean_and_unit_variance() -> None:
    field = field_on(Lattice((-80.0, -80.0, -80.0), (2.0, 2.0, 2.0), (80, 80, 80)))
    assert float(field.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(field.std()) == pytest.approx(1.0, abs=0.05)


def test_wider_field_is_smoother() -> None:
    lattice = Lattice((-40.0, -40.0, -40.0), (2.0, 2.0, 2.0), (40, 40, 40))
    narrow, wide = (np.abs(np.diff(field_on(lattice, w), axis=0)).mean() for w in (6.0, 24.0))
    assert wide < 0.4 * narrow


def test_spline_values_by_hand_and_partition_of_unity() -> None:
    assert cubic_spline(np.array([0.0, 1.0, 2.0, 5.0])) == pytest.approx([2 / 3, 1 / 6, 0.0, 0.0])
    assert cubic_spline(np.arange(-3, 4) + 0.3).sum() == pytest.approx(1.0)


def test_along_axes_is_a_product_along_each_axis() -> None:
    rng = np.random.default_rng(0)
    volume = rng.random((3, 4, 5), dtype=np.float32)
    x, y, z = (rng.random((n + 1, n), dtype=np.float32) for n in (3, 4, 5))
    expected = np.einsum("ai,bj,ck,ijk->abc", x, y, z, volume)
    assert along_axes(volume, (x, y, z)) == pytest.approx(expected, rel=1e-5)


def test_streams_differ_by_every_key() -> None:
    keys = [(1, Draw.ANATOMY, 2, 0), (2, Draw.ANATOMY, 2, 0), (1, Draw.LESION, 2, 0)]
    keys += [(1, Draw.ANATOMY, 3, 0), (1, Draw.ANATOMY, 2, 1)]
    first = [float(stream(*key).random()) for key in keys]
    assert len(set(first)) == len(keys)
    assert first[0] == float(stream(*keys[0]).random())

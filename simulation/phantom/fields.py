"""Smooth random fields that live in physical space.

A field is white noise on a node lattice that is fixed in millimetres, under cubic B-splines. The
values at a place therefore depend on the seed alone, not on the grid they are asked for: one
seed is the same brain on every grid.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float32]
Axes = tuple[Volume, Volume, Volume]

FIELD_REACH_MM = 180.0
"""Fields are defined for coordinates within +-180 mm."""
FWHM_IN_NODES = 1.4446
"""Full width at half maximum of the cubic B-spline, in node distances."""
SPLINE_POWER = 151.0 / 315.0
"""Integral of the squared cubic B-spline: variance a unit-noise field has in one dimension."""


@dataclass(frozen=True)
class Lattice:
    """The regular grid on which anatomy is made, in millimetres of the head's own RAS frame.

    Attributes:
        origin_mm: centre of voxel (0, 0, 0).
        spacing_mm: voxel size along x, y, z.
        shape: voxels along x, y, z.
    """

    origin_mm: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]

    @property
    def axes(self) -> Axes:
        """Coordinates in mm along x, y and z."""
        x, y, z = (
            np.asarray(o + s * np.arange(n), dtype=np.float32)
            for o, s, n in zip(self.origin_mm, self.spacing_mm, self.shape, strict=True)
        )
        return x, y, z


def cubic_spline(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic B-spline at ``offset`` node distances from its centre."""
    distance = np.abs(offset)
    near = 2.0 / 3.0 - distance**2 + distance**3 / 2.0
    far = np.clip(2.0 - distance, 0.0, None) ** 3 / 6.0
    return np.where(distance < 1.0, near, far)


def _spline_weights(axis: Volume, step_mm: float, num_side: int) -> Volume:
    nodes = np.arange(-num_side, num_side + 1) * step_mm
    weights = cubic_spline((axis[:, None].astype(np.float64) - nodes[None, :]) / step_mm)
    return weights.astype(np.float32)


def spline_field(rng: np.random.Generator, fwhm_mm: float, axes: Axes) -> Volume:
    """A smooth Gaussian random field of zero mean and unit variance.

    Args:
        rng: drawn from once a call, always the same amount for one ``fwhm_mm``.
        fwhm_mm: width of the smoothing kernel.
        axes: coordinates along x, y, z in mm, within +-180 mm.

    Returns:
        float32 (len(x), len(y), len(z)).
    """
    step_mm = fwhm_mm / FWHM_IN_NODES
    num_side = int(np.ceil(FIELD_REACH_MM / step_mm)) + 2
    size = 2 * num_side + 1
    field = rng.standard_normal((size, size, size), dtype=np.float32)
    weights = [_spline_weights(axis, step_mm, num_side) for axis in axes]
    used = [_used(w) for w in weights]
    x, y, z = (w[:, near] for w, near in zip(weights, used, strict=True))
    near_field = np.ascontiguousarray(field[used[0], used[1], used[2]])
    return along_axes(near_field, (x / np.float32(SPLINE_POWER**1.5), y, z))


def _used(weights: Volume) -> slice:
    """The nodes that any coordinate reaches."""
    nodes = np.flatnonzero(weights.any(axis=0))
    return slice(int(nodes[0]), int(nodes[-1]) + 1) if nodes.size else slice(0, 1)


def along_axes(volume: Volume, matrices: tuple[Volume, Volume, Volume]) -> Volume:
    """Apply a matrix (n_out, n_in) along each of the three axes; float32 stays float32."""
    along_x, along_y, along_z = matrices
    out = np.matmul(volume, along_z.T)
    out = np.matmul(along_y, out)
    flat = along_x @ out.reshape(out.shape[0], -1)
    return np.asarray(flat.reshape(-1, *out.shape[1:]), dtype=np.float32)

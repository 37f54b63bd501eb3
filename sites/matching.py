"""How well two images of one head match at a relative position, and the step to a better one.

The match is measured by the correlation ratio (Roche et al., MICCAI 1998): the share of the
moving image's variance around the brain that a curve of the fixed image's intensity explains,
whatever that curve is. Beforehand, both images are divided by their own mean within about a
centimetre, inside the brain: that takes out receive fields, which nothing else here knows, and
leaves edges, from which positions can be read. The moving image's values are then replaced by
their ranks, lest vessels and ventricles, a few percent of the voxels, decide alone.

Steps are Gauss-Newton's: the moving image's slopes say how a small motion would change it; the
motion and the curve are fitted together, with Cauchy weights (Holland and Welsch 1977) against
lesions and vessels that no curve explains. Everything is deterministic.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from .reading import Affine, BoolArray, FloatArray, Volume, sample_nearest, voxel_points

_VOXEL_MM = 3.5
_SMOOTHING_MM = 3.5
_THICK_MM = 5.5
_LOCAL_MM = 10.0
_AROUND_BRAIN_MM = 5.5
_MOST_POINTS = 12000
_LEAST_POINTS = 500
_KNOTS = 8
_RANKS = 64
_SLABS = 12
# A turn of 1 / 50 radians moves the brain's outer parts by about 1 mm.
_ARM_MM = 50.0
_LONGEST_STEP_MM = 6.0
# Residuals beyond about this many robust standard deviations hardly count.
_OUTLIER_SD = 3.0
_MAD_TO_SD = 1.4826

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """One Gauss-Newton step.

    Attributes:
        motion: 4x4, RAS millimetres, to be applied after the position it was made from.
        uncertainty_mm: standard error of the brain's mean displacement by it: from leaving out
            each of about twelve slabs of the head in turn (jackknife).
    """

    motion: Affine
    uncertainty_mm: float


@dataclass(frozen=True)
class Comparison:
    """The match at a position against that at the given one, on the same voxels.

    Attributes:
        given: correlation ratio (0 to 1) at the given position.
        there: correlation ratio at the other.
        gains: what each slab of the head adds to ``there - given``.
    """

    given: float
    there: float
    gains: Points


class Pair:
    """Two images of one head, ready to be compared at any relative position.

    A position is a 4x4 matrix in RAS millimetres that maps a point of the fixed image to the
    point of the moving image's file that shows the same tissue.

    Args:
        fixed: the T1.
        moving: another image of the scan.
        mask: the brain.
    """

    def __init__(self, fixed: Volume, moving: Volume, mask: Volume) -> None:
        coarse = _shrunk(fixed)
        around, brain = _regions(coarse, mask)
        points = voxel_points(coarse, around)
        stride = max(1, -(-len(points) // _MOST_POINTS))
        self._points: Points = points[::stride]
        self._centre = self._points.mean(axis=0)
        self._slabs = np.argwhere(around)[::stride, 0] * _SLABS // len(around)
        self._curve = _hats(_levelled(coarse, brain)[around][::stride])
        self._moving = _ranked(_shrunk(moving), mask)
        slopes = np.gradient(self._moving.array)
        self._slopes = [np.ascontiguousarray(along) for along in reversed(slopes)]

    def displacement(self, position: Affine) -> float:
        """Mean distance in mm by which points of the brain move."""
        return float(np.linalg.norm(self._moved(position) - self._points, axis=1).mean())

    def step(self, position: Affine) -> Step | None:
        """The step to a better match; None where too little is seen in common, or nothing."""
        points = self._moved(position)
        index, seen = self._index(points)
        if int(seen.sum()) < _LEAST_POINTS:
            return None
        centre = position[:3, :3] @ self._centre + position[:3, 3]
        arms = points[seen] - centre
        slopes = self._sampled(self._slopes, index[seen])
        slopes = slopes @ np.linalg.inv(self._moving.affine)[:3, :3]
        changes = np.column_stack([np.cross(arms, slopes) / _ARM_MM, slopes])
        values = self._sampled([self._moving.array], index[seen])
        rest = _unexplained(self._curve[seen], np.column_stack([values, changes]))
        parts = _normal_equations(rest[:, 1:], rest[:, 0], self._slabs[seen])
        if np.linalg.matrix_rank(parts[0].sum(axis=0)) != 6:
            return None
        return _solved(parts, centre, arms)

    def compare(self, position: Affine) -> Comparison:
        """The match at ``position`` against that at the given one; all 0 if not seen."""
        found = [self._index(self._moved(m)) for m in (np.eye(4), position)]
        seen = found[0][1] & found[1][1]
        if int(seen.sum()) < _LEAST_POINTS:
            return Comparison(0.0, 0.0, np.zeros(_SLABS))
        left = [self._left(index[seen], self._curve[seen]) for index, _ in found]
        gains = np.zeros(_SLABS)
        np.add.at(gains, self._slabs[seen], left[0] - left[1])
        return Comparison(1.0 - float(left[0].sum()), 1.0 - float(left[1].sum()), gains)

    def _left(self, index: Points, curve: Points) -> Points:
        """Each point's part of the share of the variance that the curve does not explain."""
        values = self._sampled([self._moving.array], index)
        rest = _unexplained(curve, values)[:, 0]
        return np.asarray(rest**2 / max(float(values.var()) * len(values), 1e-12))

    def _moved(self, position: Affine) -> Points:
        return np.asarray(self._points @ position[:3, :3].T + position[:3, 3], dtype=np.float64)

    def _index(self, points: Points) -> tuple[Points, BoolArray]:
        """Where points lie in the moving image's array (z, y, x), and which lie inside it."""
        inverse = np.linalg.inv(self._moving.affine)
        index = (points @ inverse[:3, :3].T + inverse[:3, 3])[:, ::-1]
        last = np.array(self._moving.array.shape) - 1.0
        return index, np.all((index >= 0.0) & (index <= last), axis=1)

    def _sampled(self, arrays: list[FloatArray], index: Points) -> Points:
        """Linear interpolation, a column for each array."""
        columns = [map_coordinates(array, index.T, order=1) for array in arrays]
        return np.stack(columns, axis=1).astype(np.float64)


def turned(rotation: NDArray[np.float64], centre: Points, shift: Points) -> Affine:
    """The map of x to rotation (x - centre) + centre + shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = centre - rotation @ centre + shift
    return matrix


def _unexplained(curve: Points, columns: Points) -> Points:
    """What least squares on the curve's basis leaves of each column."""
    basis, _ = np.linalg.qr(curve)
    return np.asarray(columns - basis @ (basis.T @ columns), dtype=np.float64)


def _normal_equations(
    changes: Points, rest: Points, slabs: NDArray[np.intp]
) -> tuple[Points, Points]:
    """Weighted sums of products, (S, 6, 6) and (S, 6), for each slab that is seen."""
    sd = _MAD_TO_SD * float(np.median(np.abs(rest)))
    weights = 1.0 / (1.0 + (rest / max(_OUTLIER_SD * sd, 1e-12)) ** 2)
    used = [slabs == slab for slab in np.unique(slabs)]
    weighted = changes * weights[:, None]
    squares = np.stack([weighted[u].T @ changes[u] for u in used])
    return squares, np.stack([weighted[u].T @ rest[u] for u in used])


def _solved(parts: tuple[Points, Points], centre: Points, arms: Points) -> Step:
    squares, products = (part.sum(axis=0) for part in parts)
    best = -np.linalg.solve(squares, products)
    without = np.stack(
        [
            -np.linalg.lstsq(squares - less, products - fewer, rcond=None)[0]
            for less, fewer in zip(*parts, strict=True)
        ]
    )
    spread = without - without.mean(axis=0)
    covariance = (len(without) - 1) / len(without) * spread.T @ spread
    best *= min(1.0, _LONGEST_STEP_MM / float(np.linalg.norm(best)))
    rotation = Rotation.from_rotvec(best[:3] / _ARM_MM).as_matrix()
    # A point at arm r moves by turn x r + shift; the mean square of that over the brain.
    mean_square = np.eye(6)
    mean_square[:3, :3] = (np.eye(3) * (arms**2).sum(1).mean() - arms.T @ arms / len(arms)) / (
        _ARM_MM**2
    )
    variance = float(np.trace(covariance @ mean_square))
    return Step(turned(rotation, centre, best[3:]), float(np.sqrt(variance)))


def _shrunk(volume: Volume) -> Volume:
    """Block means; along each axis by the largest whole factor that keeps voxels small."""
    factors = [max(1, int(_VOXEL_MM / size + 1e-6)) for size in volume.spacing]
    counts = [size // k for size, k in zip(volume.array.shape, factors, strict=True)]
    blocks = [length for pair in zip(counts, factors, strict=True) for length in pair]
    whole = tuple(slice(0, n * k) for n, k in zip(counts, factors, strict=True))
    array = volume.array[whole].reshape(blocks).mean(axis=(1, 3, 5), dtype=np.float32)
    steps = np.array(factors[::-1], dtype=np.float64)
    # A block's middle lies (k - 1) / 2 voxels after its first voxel.
    block = np.diag([*steps, 1.0])
    block[:3, 3] = (steps - 1.0) / 2.0
    affine = volume.affine @ block
    return Volume(array, affine, affine)


def _regions(volume: Volume, mask: Volume) -> tuple[BoolArray, BoolArray]:
    """Voxels in the brain or near it, where skull and scalp give edges; and those in it."""
    everywhere = voxel_points(volume, np.ones(volume.array.shape, dtype=np.bool_))
    inside = sample_nearest(mask, everywhere).reshape(volume.array.shape) > 0.5
    reach = [round(_AROUND_BRAIN_MM / size) for size in volume.spacing]
    box = np.ones([2 * voxels + 1 for voxels in reach], dtype=np.bool_)
    return np.asarray(binary_dilation(inside, box), dtype=np.bool_), np.asarray(inside)


def _levelled(volume: Volume, brain: BoolArray) -> FloatArray:
    """The image over its local mean in the brain, smoothed along axes with small voxels.

    Without smoothing, interpolation would be taken for agreement: values between voxels are
    means of noisy neighbours. Across thick slices it would cost more than it gives.
    """
    wide = [_LOCAL_MM / size for size in volume.spacing]
    weight = gaussian_filter(brain.astype(np.float32), wide) + np.float32(1e-6)
    mean = gaussian_filter(volume.array * brain, wide) / weight
    least = 0.2 * abs(float(volume.array[brain].mean())) if brain.any() else 0.0
    narrow = [_SMOOTHING_MM / s if s <= _THICK_MM else 0.0 for s in volume.spacing]
    level = volume.array / np.maximum(mean, max(least, 1e-12))
    return np.asarray(gaussian_filter(level, narrow, mode="nearest"), dtype=np.float32)


def _ranked(volume: Volume, mask: Volume) -> Volume:
    """The levelled image, its values replaced by their quantiles (0 to 1) in the brain."""
    _, brain = _regions(volume, mask)
    level = _levelled(volume, brain)
    shares = np.linspace(0.0, 1.0, _RANKS)
    quantiles = np.quantile(level[brain], shares) if brain.any() else shares
    ranks = np.interp(level, quantiles, shares).astype(np.float32)
    return replace(volume, array=ranks)


def _hats(values: FloatArray) -> Points:
    """Basis of the continuous curves that are straight between quantiles of the values, (N, K)."""
    knots = np.unique(np.quantile(values, np.linspace(0.02, 0.98, _KNOTS)))
    return np.stack([np.interp(values, knots, unit) for unit in np.eye(len(knots))], axis=1)

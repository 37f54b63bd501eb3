"""One individual's brain: the MNI152 average, warped and folded anew.

An affine and a smooth displacement make the head's shape; smooth noise added to the logarithm of
the tissue probabilities turns the blurred average into an individual gyral pattern. Around the
brain lie CSF, bone and scalp; veins run in the sulci and along the midline. Not modelled: nuclei
beyond what the average shows, falx and tentorium as tissue, skull base, eyes, neck.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from .fields import Lattice, Volume, spline_field
from .streams import Draw, stream
from .template import Template, load_template
from .tissue import Tissue

HEAD_LOW_MM = (-92.0, -128.0, -82.0)
HEAD_HIGH_MM = (92.0, 96.0, 102.0)
HEAD_CENTRE_MM = (0.0, -17.0, 12.0)
"""About the middle of the cerebrum; heads turn about it and grids are centred on it."""

HEAD_HALF_AXES_MM = (98.0, 118.0, 112.0)
AIR_DISTANCE_MM = 50.0

COARSE_LATTICE_MM = (2.0, 2.0, 2.0)
FINE_LATTICE_MM = (1.0, 1.0, 2.0)
FINE_BELOW_MM = 2.0
"""In-plane spacing below which the anatomy is made on the fine lattice."""

SHARPNESS = 2.5
FOLD_FWHM_MM = 6.5
FOLD_GAIN = {Tissue.GM: 0.9, Tissue.WM: 0.7, Tissue.CSF: 1.6}
FOLD_FLOOR = {Tissue.GM: 0.02, Tissue.WM: 0.01, Tissue.CSF: 0.03}
SHELL_EDGES_MM = (0.0, 2.0, 8.0, 12.0)
EDGE_MM = 2.0


@dataclass(frozen=True)
class Anatomy:
    """A patient's healthy head on a lattice; arrays are float32 (X, Y, Z).

    Attributes:
        lattice: where the voxels are.
        template_mm: (3, X, Y, Z) MNI coordinate that each voxel corresponds to; the first
            component's sign is the side of the falx.
        distance_mm: signed distance to the brain's surface, negative inside.
        fractions: (len(Tissue), X, Y, Z) volume fractions, summing to 1 inside the head.
        cbv_factor: local CBV relative to the class value, mean 1.
        cbf_factor: the same for CBF; correlated with ``cbv_factor``.
        att_factor: the same for the arterial transit time.
    """

    lattice: Lattice
    template_mm: Volume
    distance_mm: Volume
    fractions: Volume
    cbv_factor: Volume
    cbf_factor: Volume
    att_factor: Volume


def head_lattice(spacing_mm: float) -> Lattice:
    """The lattice on which anatomy is made for images of this in-plane spacing.

    Two lattices exist, 2 x 2 x 2 mm and 1 x 1 x 2 mm. Random fields do not depend on them, so the
    same patient differs only by how finely the same head is sampled.
    """
    step = FINE_LATTICE_MM if spacing_mm < FINE_BELOW_MM else COARSE_LATTICE_MM
    x, y, z = (
        round((high - low) / s) + 1
        for low, high, s in zip(HEAD_LOW_MM, HEAD_HIGH_MM, step, strict=True)
    )
    return Lattice(origin_mm=HEAD_LOW_MM, spacing_mm=step, shape=(x, y, z))


def rotation(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix (3, 3) from turns about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def _warp(rng: np.random.Generator, lattice: Lattice) -> Volume:
    """MNI coordinate (3, X, Y, Z) of every lattice voxel."""
    turn = rotation(rng.normal(0.0, 2.5, 3)) @ np.diag(rng.normal(1.0, 0.04, 3))
    shift = rng.normal(0.0, 3.0, 3)
    x, y, z = (a - c for a, c in zip(lattice.axes, HEAD_CENTRE_MM, strict=True))
    warped = np.empty((3, *lattice.shape), dtype=np.float32)
    for row in range(3):
        bend = spline_field(rng, 48.0, lattice.axes)
        linear = (
            turn[row, 0] * x[:, None, None]
            + turn[row, 1] * y[None, :, None]
            + turn[row, 2] * z[None, None, :]
        )
        warped[row] = linear + (HEAD_CENTRE_MM[row] + shift[row]) + 2.0 * bend
    return warped


def _look_up(template: Template, template_mm: Volume) -> tuple[Volume, Volume, Volume]:
    """Grey matter, white matter and surface distance at MNI coordinates, trilinear.

    Only inside an ellipsoid around the head; outside it there is nothing but air.
    """
    centre, half_axes = (
        np.asarray(v, dtype=np.float32)[:, None, None, None]
        for v in (HEAD_CENTRE_MM, HEAD_HALF_AXES_MM)
    )
    near = (((template_mm - centre) / half_axes) ** 2).sum(axis=0) < 1.0
    found = np.zeros((3, *near.shape), dtype=np.float32)
    found[2] = AIR_DISTANCE_MM
    found[:, near] = _trilinear(template, template_mm[:, near])
    return found[0], found[1], found[2]


def _trilinear(template: Template, points_mm: Volume) -> Volume:
    """The template's maps (3, n) at points (3, n); its border's values outside."""
    _, *shape = template.maps.shape
    top = np.array(shape, dtype=np.float32)[:, None] - 1.001
    origin = np.asarray(template.origin_mm, dtype=np.float32)[:, None]
    index = np.clip(points_mm - origin, 0.0, top)
    low = index.astype(np.int64)
    x, y, z = index - low.astype(np.float32)
    first = (low[0] * shape[1] + low[1]) * shape[2] + low[2]
    found = np.zeros((3, first.size), dtype=np.float32)
    for i, j, k in product((0, 1), repeat=3):
        weight = (x if i else 1.0 - x) * (y if j else 1.0 - y) * (z if k else 1.0 - z)
        corner = first + ((i * shape[1] + j) * shape[2] + k)
        for out, image in zip(found, template.maps, strict=True):
            out += weight * image.take(corner)
    return found


def inside(distance_mm: Volume, edge_mm: float = 0.0) -> Volume:
    """Soft indicator of ``distance_mm < edge_mm``, falling over two millimetres."""
    soft = np.float32(0.5) - (distance_mm - np.float32(edge_mm)) / EDGE_MM
    return np.asarray(np.clip(soft, 0.0, 1.0), dtype=np.float32)


def _folded(
    rng: np.random.Generator, gm: Volume, wm: Volume, distance_mm: Volume, lattice: Lattice
) -> Volume:
    """Fractions (3, X, Y, Z) of grey matter, white matter and CSF inside the brain."""
    csf = np.clip(1.0 - gm - wm, 0.0, 1.0)
    near_surface = np.exp(-((distance_mm / 8.0) ** 2))
    weights = np.empty((3, *gm.shape), dtype=np.float32)
    for tissue, share in zip((Tissue.GM, Tissue.WM, Tissue.CSF), (gm, wm, csf), strict=True):
        fold = spline_field(rng, FOLD_FWHM_MM, lattice.axes)
        gain: Volume | float = FOLD_GAIN[tissue]
        if tissue is Tissue.CSF:
            gain = gain + near_surface
        weights[tissue] = (share + FOLD_FLOOR[tissue]) ** SHARPNESS * np.exp(gain * fold)
    return np.asarray(weights / weights.sum(axis=0), dtype=np.float32)


def _veins(
    rng: np.random.Generator, template_mm: Volume, distance_mm: Volume, lattice: Lattice
) -> Volume:
    """Fraction of vein: the superior sagittal sinus, and curves where two fields vanish."""
    midline = np.exp(-0.5 * ((template_mm[0] / 2.2) ** 2 + ((distance_mm - 2.5) / 2.2) ** 2))
    sinus = midline / (1.0 + np.exp(-(template_mm[2] - 5.0) / 4.0))
    first, second = (spline_field(rng, 16.0, lattice.axes) for _ in range(2))
    tubes = np.exp(-0.5 * (first**2 + second**2) / 0.16**2)
    near_surface = np.exp(-(((distance_mm + 1.0) / 4.0) ** 2))
    vein = np.maximum(sinus, 0.9 * tubes * near_surface)
    return np.asarray(np.where(vein > 1e-3, np.clip(vein, 0.0, 0.9), 0.0), dtype=np.float32)


def _perfusion_factors(rng: np.random.Generator, lattice: Lattice) -> tuple[Volume, Volume, Volume]:
    shared, own, arrival = (spline_field(rng, w, lattice.axes) for w in (14.0, 14.0, 35.0))
    cbv, cbf, att = (
        np.asarray(np.clip(1.0 + sd * field, 0.3, None), dtype=np.float32)
        for sd, field in ((0.20, shared), (0.20, 0.75 * shared + 0.66 * own), (0.10, arrival))
    )
    return cbv, cbf, att


def make_anatomy(seed: int, patient: int, lattice: Lattice) -> Anatomy:
    """The healthy head of one patient.

    Args:
        seed: the cohort's seed.
        patient: the patient's number.
        lattice: see :func:`head_lattice`.

    Raises:
        ConfigError: nilearn is not installed.
    """
    template = load_template()
    rng = stream(seed, Draw.ANATOMY, patient)
    template_mm = _warp(rng, lattice)
    gm, wm, distance_mm = _look_up(template, template_mm)
    fractions = np.zeros((len(Tissue), *lattice.shape), dtype=np.float32)
    brain, skin_of_csf, skull, head = (inside(distance_mm, edge) for edge in SHELL_EDGES_MM)
    fractions[:3] = _folded(rng, gm, wm, distance_mm, lattice) * brain
    fractions[Tissue.CSF] += skin_of_csf - brain
    fractions[Tissue.BONE] = skull - skin_of_csf
    fractions[Tissue.SCALP] = head - skull
    vein = _veins(rng, template_mm, distance_mm, lattice) * skull
    fractions *= 1.0 - vein
    fractions[Tissue.VEIN] = vein
    cbv, cbf, att = _perfusion_factors(rng, lattice)
    return Anatomy(lattice, template_mm, distance_mm, fractions, cbv, cbf, att)

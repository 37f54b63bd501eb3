"""The tumour: an enhancing rim around necrosis, in oedema that respects the falx.

What is drawn for a lesion (outcome, perfusion, growth) is in ``latents``; here it becomes volume
fractions. Not modelled: mass effect, resection cavity, blood products.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .anatomy import EDGE_MM, Anatomy, inside
from .fields import Lattice, Volume, spline_field
from .streams import Draw, stream
from .template import load_template
from .tissue import Tissue

SMALLEST_RADIUS_MM, LARGEST_RADIUS_MM = 8.0, 24.0
SLAB_MM = (-22.0, 52.0)
"""MNI heights between which lesion centres lie, so that thick slices cover them."""


@dataclass(frozen=True)
class LesionShape:
    """Where a patient's lesion is and what form it keeps over the visits.

    Attributes:
        centre_mm: MNI coordinate.
        radius_mm: radius of the tumour at the first visit.
        stretch: relative length of the three half axes.
        rim_mm: thickness of the enhancing rim.
        oedema_mm: how far the oedema reaches beyond the tumour.
    """

    centre_mm: tuple[float, float, float]
    radius_mm: float
    stretch: tuple[float, float, float]
    rim_mm: float
    oedema_mm: float


@dataclass(frozen=True)
class LesionTexture:
    """Fields that shape a lesion on one lattice; float32 (X, Y, Z), unit variance.

    Attributes:
        coarse: lobes of the outline.
        fine: roughness of the outline.
        core: variation of the rim's thickness.
        halo: variation of the oedema's reach.
        perfusion: variation of CBV and CBF inside the rim.
    """

    coarse: Volume
    fine: Volume
    core: Volume
    halo: Volume
    perfusion: Volume


@lru_cache(maxsize=1)
def _deep_white_matter() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """MNI coordinates (n, 3) where a lesion may lie, and their depths under the surface in mm."""
    template = load_template()
    index = np.argwhere((template.wm > 0.6) & (template.distance_mm < -8.0))
    places_mm = index + np.asarray(template.origin_mm)
    covered = (places_mm[:, 2] > SLAB_MM[0]) & (places_mm[:, 2] < SLAB_MM[1])
    depth_mm = -template.distance_mm[tuple(index[covered].T)]
    return places_mm[covered], depth_mm.astype(np.float64)


def draw_shape(seed: int, patient: int) -> LesionShape:
    """Draw a lesion in deep white matter, clear of the midline and of the surface."""
    rng = stream(seed, Draw.LESION, patient)
    radius_mm = float(rng.uniform(12.0, 19.0))
    places_mm, depth_mm = _deep_white_matter()
    clear = np.abs(places_mm[:, 0]) > 0.7 * radius_mm + 6.0
    fitting = places_mm[clear & (depth_mm > 0.6 * radius_mm + 2.0)]
    x, y, z = (float(v) for v in fitting[rng.integers(len(fitting))])
    a, b, c = (float(v) for v in np.exp(rng.normal(0.0, 0.12, 3)))
    return LesionShape(
        centre_mm=(x, y, z),
        radius_mm=radius_mm,
        stretch=(a, b, c),
        rim_mm=float(rng.uniform(5.0, 8.0)),
        oedema_mm=float(rng.uniform(6.0, 16.0)),
    )


def draw_texture(seed: int, patient: int, lattice: Lattice) -> LesionTexture:
    """Draw the fields of a patient's lesion; they stay the same over the visits."""
    rng = stream(seed, Draw.LESION, patient, visit=1)
    widths_mm = (12.0, 5.0, 10.0, 12.0, 9.0)
    return LesionTexture(*(spline_field(rng, w, lattice.axes) for w in widths_mm))


Box = tuple[slice, slice, slice]


def _reach(anatomy: Anatomy, shape: LesionShape, radius_mm: float) -> Box:
    """The part of the lattice that the lesion and its oedema can touch."""
    reach_mm = 1.9 * radius_mm * max(shape.stretch) + 2.5 * shape.oedema_mm
    centre = np.asarray(shape.centre_mm, dtype=np.float32)[:, None, None, None]
    near = (np.abs(anatomy.template_mm - centre) < reach_mm).all(axis=0)
    x, y, z = (np.flatnonzero(near.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return slice(x[0], x[-1] + 1), slice(y[0], y[-1] + 1), slice(z[0], z[-1] + 1)


def _outline(template_mm: Volume, shape: LesionShape, wobble: Volume, radius_mm: float) -> Volume:
    """Distance in mm to the tumour's outline, negative inside; not exact, since it is warped."""
    scaled = [
        (axis - centre) / stretch
        for axis, centre, stretch in zip(template_mm, shape.centre_mm, shape.stretch, strict=True)
    ]
    range_mm = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
    return np.asarray(range_mm - radius_mm * wobble, dtype=np.float32)


def own_side(template_mm: Volume, shape: LesionShape) -> Volume:
    """Soft indicator of the lesion's side of the falx at MNI coordinates (3, ...)."""
    sign = np.float32(1.0 if shape.centre_mm[0] > 0.0 else -1.0)
    return inside(-sign * template_mm[0], -EDGE_MM / 2.0)


def with_lesion(
    anatomy: Anatomy, shape: LesionShape, texture: LesionTexture, radius_mm: float
) -> Volume:
    """Volume fractions (len(Tissue), X, Y, Z) of the head with a lesion of ``radius_mm``."""
    box = _reach(anatomy, shape, radius_mm)
    everywhere = (slice(None), *box)
    template_mm = anatomy.template_mm[everywhere]
    wobble = 1.0 + 0.22 * texture.coarse[box] + 0.07 * texture.fine[box]
    outline = _outline(template_mm, shape, wobble, radius_mm)
    room = own_side(template_mm, shape) * inside(anatomy.distance_mm[box], -2.0)
    tumour = inside(outline) * room
    rim_mm = shape.rim_mm * np.clip(1.0 + 0.3 * texture.core[box], 0.4, None)
    necrosis = np.minimum(inside(outline + rim_mm), tumour)
    reach_mm = shape.oedema_mm * np.clip(1.0 + 0.35 * texture.halo[box], 0.1, None)
    oedema = np.clip((inside(outline - reach_mm) - inside(outline)) * room, 0.0, 1.0)
    local = anatomy.fractions[everywhere] * (1.0 - tumour)
    for tissue, uptake in ((Tissue.WM, 0.9), (Tissue.GM, 0.25)):
        swollen = local[tissue] * oedema * uptake
        local[tissue] -= swollen
        local[Tissue.OEDEMA] += swollen
    local[Tissue.RIM] = tumour - necrosis
    local[Tissue.NECROSIS] = necrosis
    fractions = anatomy.fractions.copy()
    fractions[everywhere] = local
    return fractions

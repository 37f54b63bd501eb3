"""One picture a scan for the operator: the mask on the head in three planes, each image on the T1.

Everything is shown on the grid that training uses, after any correction. Radiological convention:
the patient's right is on the left of axial and coronal panels; sagittal ones look to the left.
Pictures show patients and stay at the site.

A picture is a PNG with a palette: grey levels, and one colour for each kind of line.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion, zoom
from skimage import feature

from iedn.modalities import Modality

from .overlay import chosen_slices
from .preprocessing import PreparedScan
from .reading import Affine, FloatArray
from .suspicion import ScanNumbers

Picture = NDArray[np.uint8]
"""Indices into the palette (rows, columns)."""

GREYS = 48
OUTLINE, EDGE, MARK, CAPTION = GREYS, GREYS + 1, GREYS + 2, GREYS + 3
_COLOURS = ((255, 80, 80), (80, 200, 255), (255, 220, 0), (255, 255, 255))
PIXEL_MM = 1.0
"""Size of a pixel of the picture."""

AXIAL, CORONAL, SAGITTAL = 0, 1, 2
"""Axes of (D, H, W) that the three planes are perpendicular to."""

_MARGIN_MM = 15.0
# Along (D, H, W): a mask that misses most of the brain is to be seen within the head.
_LEAST_MM = (150.0, 210.0, 170.0)
_SQUARE_MM = 18.0
_BRIGHTEST = 98.5
_GAP = 4
_STRIP = 18
_TEXT_SIZE = 13
# Edges are where the slope is steepest: these shares of a panel's pixels have a gentler one.
_EDGE_QUANTILES = (0.82, 0.93)
_EDGE_SIGMA = 2.0
# skimage annotates nothing; as Any it passes the strict checks.
_feature: Any = feature
_PLANES = {AXIAL: "axial", CORONAL: "coronal", SAGITTAL: "sagittal"}
_SIDES = {AXIAL: ("R", "L"), CORONAL: ("R", "L"), SAGITTAL: ("A", "P")}


@dataclass(frozen=True)
class _Panel:
    """A part of the picture, with what is written at its left and right."""

    picture: Picture
    sides: tuple[str, str]


def montage(
    title: str, scan: PreparedScan, images: Mapping[str, FloatArray], numbers: ScanNumbers
) -> bytes:
    """Draw a scan.

    Above, the brain mask on the contrast-enhanced T1 (else on the T1), five slices in each plane.
    Below, a row for each other image: its edges on the T1, then T1 and image as a checkerboard.

    Args:
        title: whose images these are; stands at the top.
        scan: as it is used.
        images: all its images (D, H, W) on the grid by manifest column, the T1 among them.
        numbers: of this scan.

    Returns:
        A PNG.
    """
    view = _View(scan)
    sheet = _Sheet()
    sheet.caption(f"{title}: stays at this site.   R = the patient's right")
    column = Modality.T1_C if Modality.T1_C in images else Modality.T1WI
    shown = view.grey(images[column])
    for axis, plane in _PLANES.items():
        sheet.caption(f"{column}, {plane}: red = brain mask ({numbers.mask_ml:.0f} ml)")
        sheet.row([view.outlined(shown, axis, index) for index in view.slices(axis)])
    fixed = view.grey(images[Modality.T1WI])
    for name, fit in numbers.fits.items():
        sheet.caption(
            f"{name} on T1WI ({fit.text()}): blue = edges of {name}; then both in squares"
        )
        moving = view.grey(images[name])
        places = view.looks()
        edges = [view.edged(fixed, moving, *place) for place in places]
        sheet.row([*edges, *(view.checkered(fixed, moving, *place) for place in places)])
    return sheet.png()


def turned(volume: FloatArray, affine: Affine) -> FloatArray:
    """A volume (D, H, W) turned so that its axes run from top to bottom, front to back, R to L.

    Args:
        volume: on a grid whose axes are closest to these, in either direction.
        affine: the grid's, to RAS millimetres.
    """
    upward = tuple(axis for axis in range(3) if affine[2 - axis, 2 - axis] > 0)
    return np.flip(volume, upward)


class _View:
    """A scan's volumes, turned, and cut to the surroundings of the brain."""

    def __init__(self, scan: PreparedScan) -> None:
        grid = scan.geometry.grid
        self._affine, self._spacing = grid.affine, grid.spacing
        mask = turned(scan.brain_mask, grid.affine)
        self._box = tuple(
            _surroundings(mask, axis, self._spacing[axis]) for axis in (AXIAL, CORONAL, SAGITTAL)
        )
        self._mask = mask[self._box]

    def grey(self, image: FloatArray) -> FloatArray:
        """An image, turned and cut, as 0 (black) to 1 (as bright as it gets in the brain)."""
        part = turned(image, self._affine)[self._box]
        brightest = float(np.percentile(part[self._mask > 0.5], _BRIGHTEST))
        return np.asarray(np.clip(part / max(brightest, 1e-6), 0.0, 1.0), dtype=np.float32)

    def slices(self, axis: int) -> list[int]:
        """Up to five slices that hold brain."""
        return chosen_slices(np.moveaxis(self._mask, axis, 0))

    def looks(self) -> list[tuple[int, int]]:
        """Planes and slices to compare two images on: two axial ones, and one of each other."""
        axial, coronal, sagittal = (self.slices(axis) for axis in range(3))
        return [
            (AXIAL, axial[len(axial) // 4]),
            (AXIAL, axial[len(axial) // 2]),
            (CORONAL, coronal[len(coronal) // 2]),
            (SAGITTAL, sagittal[len(sagittal) // 4]),
        ]

    def outlined(self, image: FloatArray, axis: int, index: int) -> _Panel:
        """A slice with the mask's outline."""
        picture = _levels(self._plane(image, axis, index))
        inside = self._plane(self._mask, axis, index) > 0.5
        picture[inside & ~binary_erosion(inside)] = OUTLINE
        return _Panel(picture, _SIDES[axis])

    def edged(self, fixed: FloatArray, moving: FloatArray, axis: int, index: int) -> _Panel:
        """A slice of one image with the other's edges."""
        picture = _levels(self._plane(fixed, axis, index))
        low, high = _EDGE_QUANTILES
        edges = _feature.canny(
            self._plane(moving, axis, index),
            sigma=_EDGE_SIGMA,
            low_threshold=low,
            high_threshold=high,
            use_quantiles=True,
        )
        picture[edges] = EDGE
        return _Panel(picture, _SIDES[axis])

    def checkered(self, fixed: FloatArray, moving: FloatArray, axis: int, index: int) -> _Panel:
        """A slice of both images, in squares in turn."""
        planes = [self._plane(image, axis, index) for image in (fixed, moving)]
        rows, columns = (np.arange(n) // round(_SQUARE_MM / PIXEL_MM) for n in planes[0].shape)
        is_moving = (rows[:, None] + columns[None, :]) % 2 == 1
        return _Panel(_levels(np.where(is_moving, planes[1], planes[0])), _SIDES[axis])

    def _plane(self, volume: FloatArray, axis: int, index: int) -> FloatArray:
        """A slice at the picture's pixels."""
        factors = [self._spacing[other] / PIXEL_MM for other in range(3) if other != axis]
        plane = np.take(volume, index, axis)
        made = zoom(plane, factors, order=1, mode="nearest", grid_mode=True)
        return np.asarray(made, dtype=np.float32)


@dataclass
class _Sheet:
    """Strips of text and rows of panels, from top to bottom."""

    _strips: list[Picture] = field(default_factory=list)
    _texts: list[tuple[int, int, str, int]] = field(default_factory=list)
    _height: int = 0

    def caption(self, text: str) -> None:
        """A line of text."""
        self._texts.append((_GAP, self._height + 2, text, CAPTION))
        self._add(np.zeros((_STRIP, 1), dtype=np.uint8))

    def row(self, panels: Sequence[_Panel]) -> None:
        """Panels side by side."""
        height = max(panel.picture.shape[0] for panel in panels)
        parts: list[Picture] = []
        left = 0
        for panel in panels:
            rows, columns = panel.picture.shape
            below = self._height + rows // 2 - _TEXT_SIZE
            self._texts.append((left + 2, below, panel.sides[0], MARK))
            self._texts.append((left + columns - _TEXT_SIZE, below, panel.sides[1], MARK))
            parts.append(np.pad(panel.picture, ((0, height - rows), (0, _GAP))))
            left += columns + _GAP
        self._add(np.hstack(parts))

    def png(self) -> bytes:
        """All of it."""
        font = ImageFont.load_default(_TEXT_SIZE)
        width = max(strip.shape[1] for strip in self._strips)
        wide = [np.pad(strip, ((0, 0), (0, width - strip.shape[1]))) for strip in self._strips]
        image = Image.fromarray(np.vstack(wide), mode="P")
        image.putpalette(_palette())
        draw = ImageDraw.Draw(image)
        for left, top, text, colour in self._texts:
            draw.text((left, top), text, fill=colour, font=font)
        stream = io.BytesIO()
        image.save(stream, format="png", optimize=True)
        return stream.getvalue()

    def _add(self, strip: Picture) -> None:
        self._strips.append(strip)
        self._height += strip.shape[0]


def _surroundings(mask: FloatArray, axis: int, spacing_mm: float) -> slice:
    """The mask's extent along an axis with a margin; a head's, if that is more."""
    others = tuple(other for other in range(3) if other != axis)
    filled = np.flatnonzero(mask.any(axis=others))
    first, last = int(filled[0]), int(filled[-1])
    missing = _LEAST_MM[axis] / spacing_mm - (last - first + 1)
    margin = round(max(_MARGIN_MM / spacing_mm, missing / 2))
    return slice(max(first - margin, 0), last + margin + 1)


def _levels(plane: FloatArray) -> Picture:
    return np.asarray(np.rint(plane * (GREYS - 1)), dtype=np.uint8)


def _palette() -> list[int]:
    greys = [round(255 * level / (GREYS - 1)) for level in range(GREYS)]
    colours = [(grey, grey, grey) for grey in greys] + list(_COLOURS)
    return [part for colour in colours for part in colour]

"""Pictures for the operator: does the mask fit the brain, do the images lie on the T1?

One PNG a scan: a row an image, a column a slice, the T1's brain mask drawn as a contour on each.
Everything is shown on the grid that training uses. Radiological convention: the patient's right
is on the left of the picture, anterior is up. Pictures show patients and stay at the site.
"""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from iedn.files import atomic_write_bytes
from iedn.modalities import TARGET

from .cohort import ScanRecord
from .preprocessing import PreparedScan, resample
from .reading import Affine, FloatArray, read_volume

SLICES = 5
# Slices near the ends of the mask show little brain.
_SHARE = (0.15, 0.85)
_PANEL_INCHES = 1.5
_MARGIN_INCHES = 0.9
_BRIGHTEST = 98.5


def write_overlay(path: Path, record: ScanRecord, scan: PreparedScan) -> None:
    """Draw a scan's images with its brain mask.

    Args:
        path: the PNG; its folder is made, for its owner only.
        record: the scan, with only those files that are used.
        scan: its arrays.

    Raises:
        ScanError: the CBV file has become unreadable since it was prepared.
    """
    rows = shown_images(record, scan)
    planes = chosen_slices(scan.brain_mask)
    size = (_PANEL_INCHES * len(planes) + _MARGIN_INCHES, _PANEL_INCHES * len(rows) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(planes), squeeze=False)
    for panels, (name, image) in zip(grid, rows.items(), strict=True):
        _draw_row(panels, image, scan, planes)
        panels[0].set_ylabel(name, fontsize=9)
    for panel, plane in zip(grid[0], planes, strict=True):
        panel.set_title(f"slice {plane + 1} of {len(scan.brain_mask)}", fontsize=8)
    figure.suptitle(f"{record.key}: contour = brain mask; R = patient's right", fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_write_bytes(path, stream.getvalue())


def shown_images(record: ScanRecord, scan: PreparedScan) -> dict[str, FloatArray]:
    """All images of a scan (D, H, W) on its grid, by manifest column; the CBV map not cut.

    Args:
        record: the scan, with only those files that are used.
        scan: its arrays.

    Raises:
        ScanError: the CBV file has become unreadable since it was prepared.
    """
    images = {str(modality): image for modality, image in scan.images.items()}
    if scan.cbv is None or record.cbv is None:
        return images
    # The target is cut at the mask; a shifted map shows only when it is not. One that was moved
    # lies elsewhere than its file says.
    if any(f.code == "W221" and f.modality == TARGET for f in scan.warnings):
        return images | {TARGET: scan.cbv}
    whole = resample(read_volume(record.cbv), scan.geometry.grid)
    return images | {TARGET: np.maximum(whole, np.float32(0.0))}


def chosen_slices(mask: FloatArray) -> list[int]:
    """Up to five different slices, spread over those that hold brain.

    Args:
        mask: (D, H, W), not empty.
    """
    filled = np.flatnonzero(mask.any(axis=(1, 2)))
    places = np.linspace(*_SHARE, SLICES) * (len(filled) - 1)
    return sorted({int(filled[round(place)]) for place in places})


def radiological(plane: FloatArray, affine: Affine) -> FloatArray:
    """A slice (H, W) turned so that anterior is up and the patient's right on the left.

    Args:
        plane: a slice of an array on a grid whose in-plane axes are closest to left-right (W)
            and front-back (H).
        affine: the grid's, to RAS millimetres.
    """
    turned = plane[::-1] if affine[1, 1] > 0 else plane
    return turned[:, ::-1] if affine[0, 0] > 0 else turned


def _draw_row(
    panels: NDArray[np.object_], image: FloatArray, scan: PreparedScan, planes: list[int]
) -> None:
    affine = scan.geometry.grid.affine
    brightest = float(np.percentile(image[scan.brain_mask > 0.5], _BRIGHTEST))
    for panel, plane in zip(panels, planes, strict=True):
        picture = radiological(image[plane], affine)
        outline = radiological(scan.brain_mask[plane], affine)
        _draw(panel, picture, outline, brightest)


def _draw(panel: Axes, picture: FloatArray, outline: FloatArray, brightest: float) -> None:
    panel.set(xticks=[], yticks=[])
    panel.imshow(picture, cmap="gray", vmin=0.0, vmax=brightest, interpolation="nearest")
    if outline.any() and not outline.all():
        panel.contour(outline, levels=[0.5], colors="#ff5050", linewidths=0.9)
    panel.text(0.02, 0.5, "R", color="yellow", fontsize=7, transform=panel.transAxes)

"""The drawings of a site's report. They show single scans and patients, and stay at the site."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from iedn.evaluation.statistics import BlandAltman, RocPoint
from iedn.html_page import COLOURS, GREY, MARKERS, figure
from iedn.modalities import Modality
from sites.overlay import radiological
from sites.preprocessing import PreparedScan
from sites.reading import FloatArray

from .site_results import Example, LesionPair

CBV_WINDOW = (0.0, 0.8)
DIFFERENCE_WINDOW = (-0.3, 0.3)
_BRIGHTEST = 99.0
_SHOWN = (Modality.T1WI, Modality.T2WI, Modality.FLAIR, Modality.ADC, Modality.T1_C, Modality.ASL)


def bland_altman_drawing(lesions: Sequence[LesionPair], found: BlandAltman) -> Figure:
    """Differences over means of a lesion's rCBV; a point a scan, a colour a patient."""
    made = figure(7, 4)
    axes = made.subplots()
    patients = sorted({pair.patient_id for pair in lesions})
    for pair in lesions:
        number = patients.index(pair.patient_id)
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        mean = (pair.synthetic + pair.measured) / 2
        axes.plot(mean, pair.synthetic - pair.measured, markersize=5, alpha=0.85, **style)
    for estimate, name in (
        (found.upper, "+1.96 SD"),
        (found.bias, "bias"),
        (found.lower, "-1.96 SD"),
    ):
        axes.axhline(estimate.value, color="black" if name == "bias" else GREY, linewidth=1.2)
        axes.axhspan(estimate.low, estimate.high, color=GREY, alpha=0.12, linewidth=0)
        label = f" {name} {estimate.value:+.2f}"
        axes.text(1.0, estimate.value, label, transform=axes.get_yaxis_transform(), va="center")
    axes.set(xlabel="mean of synthetic and measured rCBV", ylabel="synthetic minus measured rCBV")
    return made


def roc_drawing(curves: Mapping[str, Sequence[RocPoint]], areas: Mapping[str, str]) -> Figure:
    """ROC curves of scores on the same cases, with their areas in the legend."""
    made = figure(7.5, 4.6)
    axes = made.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for number, (name, points) in enumerate(curves.items()):
        x, y = zip(*points, strict=True)
        colour = COLOURS[number % len(COLOURS)]
        style = "-" if number < len(COLOURS) // 2 else "--"
        axes.plot(x, y, style, color=colour, linewidth=1.8, label=f"{name}: {areas[name]}")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_aspect("equal")
    made.legend(loc="outside right center", fontsize=9, title="area (95 % interval)")
    return made


def rounds_drawing(rounds: Sequence[tuple[int, Mapping[str, float]]]) -> Figure:
    """This site's validation PSNR and SSIM by round."""
    made = figure(9, 3)
    for axes, (name, label) in zip(
        made.subplots(1, 2),
        (("psnr_db", "PSNR (dB)"), ("ssim_percent", "SSIM (%)")),
        strict=True,
    ):
        points = [(number, means[name]) for number, means in rounds if name in means]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=COLOURS[0])
        axes.set(xlabel="round", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return made


def montage(example: Example) -> bytes:
    """PNG of one slice: every image, measured and synthetic CBV, and their difference.

    Radiological convention: the patient's right is on the left of the picture. Both CBV maps have
    one fixed window, with a colour bar; the slice is the one with most lesion, else mid-brain.
    """
    scan = example.scan
    lesion = scan.regions.get("lesion_mask", scan.regions.get("reader_roi"))
    where = lesion if lesion is not None and lesion.any() else scan.brain_mask
    index = int(np.argmax(where.sum(axis=(1, 2))))
    panels: list[tuple[str, FloatArray | None]] = [(str(m), scan.images.get(m)) for m in _SHOWN]
    made = Figure(figsize=(11, 3.9), layout="constrained")
    grid = made.subplots(2, 6)
    for axes, (name, image) in zip(grid[0], panels, strict=True):
        _grey(axes, name, image, scan, index)
    for axes in grid[1][3:]:
        axes.set_axis_off()
    synthetic = example.synthetic * scan.brain_mask
    shown = _colour(grid[1][1], "CBV synthetic", synthetic, scan, index)
    if scan.cbv is not None:
        measured = scan.cbv * scan.brain_mask
        _colour(grid[1][0], "CBV measured", measured, scan, index)
        plane = radiological(synthetic[index] - measured[index], scan.geometry.grid.affine)
        low, high = DIFFERENCE_WINDOW
        difference = grid[1][2].imshow(plane, cmap="RdBu_r", vmin=low, vmax=high)
        _plain(grid[1][2], "synthetic - measured")
        made.colorbar(difference, ax=grid[1][4], location="left", fraction=0.5, label="difference")
    else:
        grid[1][0].set_facecolor("0.93")
        _plain(grid[1][0], "CBV not measured")
        grid[1][2].set_axis_off()
    made.colorbar(
        shown, ax=grid[1][3], location="left", fraction=0.5, label="CBV (brain mean 0.25)"
    )
    stream = io.BytesIO()
    made.savefig(stream, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def _grey(axes: Axes, name: str, image: FloatArray | None, scan: PreparedScan, index: int) -> None:
    if image is None:
        axes.set_facecolor("0.93")
        axes.text(0.5, 0.5, "not\nscanned", ha="center", va="center", transform=axes.transAxes)
        axes.set_box_aspect(1)
    else:
        plane = radiological(image[index], scan.geometry.grid.affine)
        brightest = float(np.percentile(image[scan.brain_mask > 0.5], _BRIGHTEST))
        axes.imshow(plane, cmap="gray", vmin=0.0, vmax=brightest)
        axes.text(0.02, 0.5, "R", color="yellow", fontsize=8, transform=axes.transAxes)
    _plain(axes, name)


def _colour(axes: Axes, name: str, volume: FloatArray, scan: PreparedScan, index: int) -> AxesImage:
    low, high = CBV_WINDOW
    plane = radiological(volume[index], scan.geometry.grid.affine)
    _plain(axes, name)
    return axes.imshow(plane, cmap="turbo", vmin=low, vmax=high)


def _plain(axes: Axes, title: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)

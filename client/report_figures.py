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
        axes.plot(
            (pair.synthetic + pair.measured) / 2,
            pair.synthetic - pair.measured,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            alpha=0.85,
        )
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
        x, y = [x for x, _ in points], [y for _, y in points]
        colour = COLOURS[number % len(COLOURS)]
        style = "-" if number < len(COLOURS) // 2 else "--"
        axes.plot(x, y, style, color=colour, linewidth=1.8, label=f"{name}: {areas[name]}")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_aspect("equal")
    made.legend(loc="outside right center", fontsize=9, title="area (95 % interval)", frameon=False)
    return made


def rounds_drawing(rounds: Sequence[tuple[int, Mapping[str, float]]]) -> Figure:
    """This site's validation PSNR and SSIM by round."""
    made = figure(9, 3)
    for axes, (name, label) in zip(
        made.subplots(1, 2),
        (("psnr_db", "PSNR (dB)"), ("ssim_percent", "SSIM (%)")),
        strict=True,
    ):
        known = [(number, means[name]) for number, means in rounds if name in means]
        x, y = [number for number, _ in known], [mean for _, mean in known]
        axes.plot(x, y, marker="o", markersize=4, color=COLOURS[0])
        axes.set(xlabel="round", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return made


def montage(example: Example) -> bytes:
    """PNG of one slice: every image, and below measured and synthetic CBV and their difference.

    Radiological convention: the patient's right is on the left of the picture. Both CBV maps have
    one fixed window; the slice is the one with most lesion, else mid-brain.
    """
    made = Figure(figsize=(11, 5.4), layout="constrained")
    (above,), (below,) = made.subfigures(2, 1, squeeze=False, height_ratios=[1.0, 1.75])
    view = _View(example.scan)
    for axes, modality in zip(above.subplots(1, len(_SHOWN)), _SHOWN, strict=True):
        image = example.scan.images.get(modality)
        if image is None:
            _absent(axes, "not\nscanned")
        else:
            view.draw_image(axes, image)
        axes.set_title(str(modality), fontsize=10)
    panels = below.subplots(1, 3)
    shown = view.draw_map(panels[1], example.synthetic, "turbo", CBV_WINDOW)
    panels[1].set_title("CBV synthetic (brain mean 0.25)", fontsize=10)
    below.colorbar(shown, ax=panels[1], shrink=0.85)
    panels[0].set_title("CBV measured (brain mean 0.25)", fontsize=10)
    if example.scan.cbv is None:
        _absent(panels[0], "not\nmeasured")
        panels[2].set_axis_off()
    else:
        measured = example.scan.cbv
        shown = view.draw_map(panels[0], measured, "turbo", CBV_WINDOW)
        below.colorbar(shown, ax=panels[0], shrink=0.85)
        error = example.synthetic - measured
        shown = view.draw_map(panels[2], error, "RdBu_r", DIFFERENCE_WINDOW)
        below.colorbar(shown, ax=panels[2], shrink=0.85)
        panels[2].set_title("synthetic - measured", fontsize=10)
    stream = io.BytesIO()
    made.savefig(stream, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


class _View:
    """One slice of a scan, as a radiologist looks at it."""

    def __init__(self, scan: PreparedScan) -> None:
        lesion = scan.regions.get("lesion_mask", scan.regions.get("reader_roi"))
        self._lesion = lesion if lesion is not None and lesion.any() else None
        where = scan.brain_mask if self._lesion is None else self._lesion
        self._index = int(np.argmax(where.sum(axis=(1, 2))))
        self._scan = scan

    def draw_image(self, axes: Axes, image: FloatArray) -> None:
        brightest = float(np.percentile(image[self._scan.brain_mask > 0.5], _BRIGHTEST))
        axes.imshow(self._plane(image), cmap="gray", vmin=0.0, vmax=brightest)
        self._finish(axes)

    def draw_map(
        self, axes: Axes, volume: FloatArray, colours: str, window: tuple[float, float]
    ) -> AxesImage:
        inside = self._plane(self._scan.brain_mask) > 0.5
        plane = np.ma.masked_where(~inside, self._plane(volume))
        axes.set_facecolor("black")
        shown = axes.imshow(plane, cmap=colours, vmin=window[0], vmax=window[1])
        if self._lesion is not None:
            outline = self._plane(self._lesion)
            colour = "black" if window[0] < 0 else "white"  # a difference is pale near 0
            axes.contour(outline, levels=[0.5], colors=colour, linewidths=1.0)
        self._finish(axes)
        return shown

    def _plane(self, volume: FloatArray) -> FloatArray:
        return radiological(volume[self._index], self._scan.geometry.grid.affine)

    def _finish(self, axes: Axes) -> None:
        axes.set(xticks=[], yticks=[])
        axes.text(0.03, 0.5, "R", color="yellow", fontsize=8, transform=axes.transAxes)


def _absent(axes: Axes, why: str) -> None:
    axes.set(xticks=[], yticks=[], facecolor="0.93", box_aspect=1)
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes)

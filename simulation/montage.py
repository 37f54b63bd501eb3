"""A picture of held-out scans: inputs, measured CBV, synthetic CBV and their difference.

Radiological convention: the patient's right is on the left of the picture, anterior is up. Both
CBV maps share one fixed window. Only for phantoms; a hospital's pictures stay in the hospital.
"""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from client.training import network_from
from iedn.files import atomic_write_bytes
from iedn.inference import synthesize
from iedn.modalities import Modality
from iedn.parameters import groups_for
from server.config import FederationConfig
from server.run_folder import RunFolder
from sites.dataset import PreparedCohort

from .results import cohort_of

MONTAGE = "montage.png"
MOST_ROWS = 12
CBV_WINDOW = (0.0, 0.8)
IMAGE_WINDOW = (0.0, 0.6)
DIFFERENCE_WINDOW = (-0.3, 0.3)

Slice = NDArray[np.float32]


def write_montage(out: Path, config: FederationConfig) -> Path:
    """One held-out scan a training site, at the slice through its lesion (or mid-brain).

    Of many sites the first ``MOST_ROWS``.
    """
    folder = RunFolder(out, config)
    model, _, number = folder.load_best()
    sites = [name for name, entry in sorted(config.sites.items()) if entry.role == "train"]
    sites = sites[:MOST_ROWS]
    titles = [*Modality, "CBV measured", "CBV synthetic", "difference"]
    figure = Figure(figsize=(1.55 * len(titles), 1.75 * len(sites) + 0.5), layout="constrained")
    grid = figure.subplots(len(sites), len(titles), squeeze=False)
    for row, site in zip(grid, sites, strict=True):
        cohort = cohort_of(out, config, site)
        sample = cohort.test[0]
        groups = {g: model[g] for g in groups_for(sample.modalities) if g in model}
        network = network_from(groups, config.effective_preset.network)
        made = synthesize(network, sample, flip_average=config.flip_average).cbv[0].numpy()
        _draw_row(row, cohort, made, site)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    text = (
        f"PHANTOM, {config.run}, model of round {number}; R = patient's right; CBV window 0 to 0.8"
    )
    figure.suptitle(f"{text} (brain mean 0.25)", fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    path = out / MONTAGE
    atomic_write_bytes(path, stream.getvalue())
    return path


def _draw_row(row: NDArray[np.object_], cohort: PreparedCohort, made: Slice, site: str) -> None:
    scan = cohort.test.prepared(0)
    lesion = scan.regions.get("lesion_mask")
    where = lesion if lesion is not None and lesion.any() else scan.brain_mask
    index = int(np.argmax(where.sum(axis=(1, 2))))
    affine = scan.geometry.grid.affine

    def view(volume: Slice) -> Slice:
        return _radiological(volume[index], affine)

    for axes, modality in zip(row, Modality, strict=False):
        image = scan.images.get(modality)
        _show(axes, None if image is None else view(image), "gray", IMAGE_WINDOW)
    if scan.cbv is None:
        msg = f"{site}: the scan has no measured CBV"
        raise ValueError(msg)
    _show(row[-3], view(scan.cbv * scan.brain_mask), "turbo", CBV_WINDOW)
    _show(row[-2], view(made * scan.brain_mask), "turbo", CBV_WINDOW)
    difference = view((made - scan.cbv) * scan.brain_mask)
    _show(row[-1], difference, "RdBu_r", DIFFERENCE_WINDOW)
    row[0].set_ylabel(site, fontsize=9)
    row[0].text(0.02, 0.5, "R", color="yellow", fontsize=7, transform=row[0].transAxes)


def _radiological(plane: Slice, affine: NDArray[np.float64]) -> Slice:
    """(H, W) turned so that anterior is up and the patient's right is on the left."""
    rows_to_anterior, columns_to_right = affine[1, 1] > 0, affine[0, 0] > 0
    turned = plane[::-1] if rows_to_anterior else plane
    return turned[:, ::-1] if columns_to_right else turned


def _show(axes: Axes, plane: Slice | None, colours: str, window: tuple[float, float]) -> None:
    axes.set(xticks=[], yticks=[], box_aspect=1)
    if plane is None:
        axes.set_facecolor("0.85")
        axes.text(0.5, 0.5, "not\nscanned", ha="center", va="center", transform=axes.transAxes)
        return
    axes.imshow(plane, cmap=colours, vmin=window[0], vmax=window[1], interpolation="nearest")

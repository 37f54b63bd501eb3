"""Evaluation of a cohort without measured CBV: synthetic maps, ROI values, diagnostic value.

The question is the paper's external one: does the synthetic map tell recurrence from treatment
response better than ASL? Maps and values per scan stay at the site; what may leave is the
``DiagnosticSummary``, and the site's policy decides on that elsewhere.

The ROI value is mean in the ROI / mean in the mirrored region of the other hemisphere. The
mirror plane is the column of the brain mask's centroid, so the value is approximate: a tilted or
asymmetric head is not corrected. Every row says so in its flags.
"""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from iedn.evaluation.statistics import Estimate, auc_interval
from iedn.files import atomic_write_bytes
from iedn.modalities import Modality
from sites.cohort import Label, ScanRecord
from sites.dataset import PreparedCohort
from sites.preprocessing import Frame, PreparedScan
from sites.reading import BoolArray, FloatArray

from .synthesis import Synthesizer, write_map

RoiSource = Literal["lesion_mask", "reader_roi", "automatic"]

ROI_FILE = "roi_values.csv"
HOT_SPOT_RADIUS_MM = 5.0
HOT_SPOT_SMOOTHING_MM = 4.0
HOT_SPOT_DEPTH_MM = 10.0

AUTOMATIC = "automatic-roi"
APPROXIMATE_MIRROR = "approximate-mirror"
NO_ROI = "no-roi"
NO_INPUT = "no-input"
SMALL_MIRROR = "small-contralateral"
EMPTY_MIRROR = "empty-contralateral"


@dataclass(frozen=True)
class RoiRow:
    """One scan's values. Local: names the scan.

    Attributes:
        patient_id: as in the manifest.
        scan_id: as in the manifest.
        label: what became of the lesion; None where it is not known.
        roi: where the region came from; None if there is none.
        synthetic_cbv: ROI / contralateral in the synthetic map; None if it cannot be computed.
        asl: the same in ASL; None also where ASL was not scanned.
        flags: what to know about the values.
    """

    patient_id: str
    scan_id: str
    label: Label | None
    roi: RoiSource | None = None
    synthetic_cbv: float | None = None
    asl: float | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class DiagnosticValue:
    """How well one value tells recurrence (positive) from treatment response.

    Attributes:
        auc: area under the ROC curve with its interval; None without scans of both classes.
        num_recurrence: scans with this label and a value.
        num_treatment_response: scans with this label and a value.
        num_patients: different patients among them; several scans of one are not independent,
            the interval is therefore somewhat too narrow where this is below the scans' number.
    """

    auc: Estimate | None
    num_recurrence: int
    num_treatment_response: int
    num_patients: int


@dataclass(frozen=True)
class DiagnosticSummary:
    """Aggregates of an external cohort; each value counts the scans that have it.

    Attributes:
        synthetic_cbv: of the synthetic map's ratio.
        asl: of the ASL map's ratio.
        num_automatic: labelled scans whose ROI no human drew; they are in no other number,
            since a hot spot is as often a vein as a lesion.
        num_unlabelled: scans without a label; they are in no other number.
    """

    synthetic_cbv: DiagnosticValue
    asl: DiagnosticValue
    num_automatic: int
    num_unlabelled: int


def synthesize_cohort(
    synthesizer: Synthesizer,
    prepared: PreparedCohort,
    out_folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[RoiRow]:
    """Write the synthetic map of every scan, and the ROI values of all.

    Args:
        synthesizer: the model.
        prepared: the site's scans; all of them are used.
        out_folder: gets a folder a patient with the maps, and ``roi_values.csv``.
        progress: called with (done, total) after every scan.

    Returns:
        One row a scan, in the manifest's order.
    """
    rows = []
    for index, record in enumerate(prepared.records):
        scan = prepared.all.prepared(index)
        if synthesizer.inputs(scan):
            cbv = synthesizer.cbv(scan)
            sidecar = synthesizer.sidecar(scan, (*scan.warnings, *scan.refused))
            write_map(out_folder, record, scan, cbv, sidecar)
            rows.append(measure(record, scan, cbv))
        else:
            rows.append(_empty_row(record, NO_INPUT))
        if progress is not None:
            progress(index + 1, len(prepared.records))
    out_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_write_bytes(out_folder / ROI_FILE, _table(rows).encode())
    return rows


def measure(record: ScanRecord, scan: PreparedScan, cbv: FloatArray) -> RoiRow:
    """One scan's ROI values.

    The region is the lesion mask, else the reader's ROI, else an automatic hot spot (flagged):
    a disc of 5 mm radius where the smoothed synthetic map exceeds its mirror image most. That
    spot may be a vein or the wrong lesion; it is a stopgap until a human has drawn a region.

    Args:
        record: the scan.
        scan: its arrays.
        cbv: its synthetic map (D, H, W) on the same grid.
    """
    brain = scan.brain_mask > 0.5
    region = _region(scan, cbv, brain)
    if region is None:
        return _empty_row(record, NO_ROI)
    source, roi = region
    lesion = roi | (scan.regions.get("lesion_mask", np.zeros_like(cbv)) > 0.5)
    other = (mirrored(roi.astype(np.float32), brain) > 0.5) & brain & ~lesion
    asl = scan.images.get(Modality.ASL)
    return RoiRow(
        patient_id=record.patient_id,
        scan_id=record.scan_id,
        label=record.label,
        roi=source,
        synthetic_cbv=_ratio(cbv, roi, other),
        asl=None if asl is None else _ratio(asl, roi, other),
        flags=_flags(source, roi, other),
    )


def mirrored(array: FloatArray, brain: BoolArray) -> FloatArray:
    """The array (D, H, W) reflected along W about the brain mask's centroid; 0 from outside."""
    columns = np.arange(brain.shape[2])
    twice_centre = round(2 * float(np.average(columns, weights=brain.sum(axis=(0, 1)))))
    origin = twice_centre - columns
    known = (origin >= 0) & (origin < columns.size)
    result = np.zeros_like(array)
    result[..., known] = array[..., origin[known]]
    return result


def diagnostic_summary(rows: Iterable[RoiRow]) -> DiagnosticSummary:
    """Aggregates of the labelled rows; recurrence is the positive class."""
    rows = list(rows)
    labelled = [row for row in rows if row.label is not None]
    drawn = [row for row in labelled if row.roi != "automatic"]
    return DiagnosticSummary(
        synthetic_cbv=_diagnostic_value(drawn, [row.synthetic_cbv for row in drawn]),
        asl=_diagnostic_value(drawn, [row.asl for row in drawn]),
        num_automatic=sum(row.roi == "automatic" for row in labelled),
        num_unlabelled=len(rows) - len(labelled),
    )


def _diagnostic_value(rows: Sequence[RoiRow], values: Sequence[float | None]) -> DiagnosticValue:
    pairs = [(row, value) for row, value in zip(rows, values, strict=True) if value is not None]
    positive = [row.label == "recurrence" for row, _ in pairs]
    num_recurrence = sum(positive)
    both = 0 < num_recurrence < len(pairs)
    return DiagnosticValue(
        auc=auc_interval(positive, [value for _, value in pairs]) if both else None,
        num_recurrence=num_recurrence,
        num_treatment_response=len(pairs) - num_recurrence,
        num_patients=len({row.patient_id for row, _ in pairs}),
    )


def _region(
    scan: PreparedScan, cbv: FloatArray, brain: BoolArray
) -> tuple[RoiSource, BoolArray] | None:
    """The best region there is, inside the brain."""
    given: tuple[RoiSource, ...] = ("lesion_mask", "reader_roi")
    for source in given:
        if source in scan.regions:
            roi: BoolArray = (scan.regions[source] > 0.5) & brain
            if roi.any():
                return source, roi
    spot = hot_spot(cbv, brain, scan.geometry.grid)
    return None if spot is None else ("automatic", spot)


def hot_spot(cbv: FloatArray, brain: BoolArray, grid: Frame) -> BoolArray | None:
    """A disc in one slice where the smoothed map exceeds its mirror image most.

    The difference to the other side leaves out what is bright on both, such as the sagittal
    sinus; 10 mm from the brain's edge leave out the veins on its surface. None if the map is
    nowhere brighter than its mirror image.
    """
    sigma = [0.0, *(HOT_SPOT_SMOOTHING_MM / spacing for spacing in grid.spacing[1:])]
    smooth = np.asarray(gaussian_filter(np.where(brain, cbv, 0.0), sigma), dtype=np.float32)
    deep = np.stack([distance_transform_edt(b, sampling=grid.spacing[1:]) for b in brain])
    paired = (deep >= HOT_SPOT_DEPTH_MM) & (mirrored(brain.astype(np.float32), brain) > 0.5)
    excess = np.where(paired, smooth - mirrored(smooth, brain), -np.inf)
    if not excess.max() > 0.0:
        return None
    slice_, row, column = np.unravel_index(int(np.argmax(excess)), excess.shape)
    rows, columns = np.ogrid[: brain.shape[1], : brain.shape[2]]
    squared_mm2 = ((rows - row) * grid.spacing[1]) ** 2 + (
        (columns - column) * grid.spacing[2]
    ) ** 2
    spot = np.zeros_like(brain)
    spot[slice_] = squared_mm2 <= HOT_SPOT_RADIUS_MM**2
    return spot & brain


def _ratio(array: FloatArray, roi: BoolArray, other: BoolArray) -> float | None:
    """Mean in the ROI / mean in the other region; None without a positive denominator."""
    reference = float(array[other].mean(dtype=np.float64)) if other.any() else 0.0
    return float(array[roi].mean(dtype=np.float64)) / reference if reference > 0.0 else None


def _flags(source: RoiSource, roi: BoolArray, other: BoolArray) -> tuple[str, ...]:
    automatic = (AUTOMATIC,) if source == "automatic" else ()
    if not other.any():
        return (*automatic, EMPTY_MIRROR)
    small = (SMALL_MIRROR,) if 2 * int(other.sum()) < int(roi.sum()) else ()
    return (*automatic, APPROXIMATE_MIRROR, *small)


def _empty_row(record: ScanRecord, flag: str) -> RoiRow:
    return RoiRow(record.patient_id, record.scan_id, record.label, flags=(flag,))


def _table(rows: Iterable[RoiRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["patient_id", "scan_id", "label", "roi", "synthetic_cbv_ratio", "asl_ratio", "flags"]
    )
    for row in rows:
        ratios = ("" if v is None else f"{v:.6g}" for v in (row.synthetic_cbv, row.asl))
        flags = ";".join(row.flags)
        writer.writerow(
            [row.patient_id, row.scan_id, row.label or "", row.roi or "", *ratios, flags]
        )
    return text.getvalue()

"""A cohort without measured CBV: synthetic maps on disk, and the values of each scan's lesion.

Maps and values per scan stay at the site. What they are worth for telling recurrence from
treatment response is in ``diagnostic_value``; what may leave is decided in ``sites.egress``.

A value is mean in the ROI / mean in the mirrored region of the other hemisphere (``regions``).
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from iedn.files import atomic_write_bytes
from iedn.modalities import Modality
from sites.cohort import Label, ScanRecord
from sites.dataset import PreparedCohort
from sites.preprocessing import PreparedScan
from sites.reading import FloatArray

from .regions import RoiSource, find_region
from .synthesis import Synthesizer, write_map

ROI_FILE = "roi_values.csv"

NO_ROI = "no-roi"
NO_INPUT = "no-input"


@dataclass(frozen=True)
class RoiRow:
    """One scan's values. Local: names the scan.

    Attributes:
        patient_id: as in the manifest.
        scan_id: as in the manifest.
        label: what became of the lesion; None where it is not known.
        roi: where the region came from; None if there is none.
        synthetic_cbv: ROI / contralateral in the synthetic map; None if it cannot be computed.
        images: the same in each image that was scanned and has a value.
        measured_cbv: the same in the measured CBV map; None where there is none.
        flags: what to know about the values.
    """

    patient_id: str
    scan_id: str
    label: Label | None
    roi: RoiSource | None = None
    synthetic_cbv: float | None = None
    images: Mapping[Modality, float] = field(default_factory=dict)
    measured_cbv: float | None = None
    flags: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """``patient_id/scan_id``, as of ``ScanRecord``."""
        return f"{self.patient_id}/{self.scan_id}"

    @property
    def asl(self) -> float | None:
        """ROI / contralateral in ASL."""
        return self.images.get(Modality.ASL)


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
    region = find_region(scan, cbv)
    if region is None:
        return _empty_row(record, NO_ROI)
    ratios = {m: region.ratio(image) for m, image in scan.images.items()}
    return RoiRow(
        patient_id=record.patient_id,
        scan_id=record.scan_id,
        label=record.label,
        roi=region.source,
        synthetic_cbv=region.ratio(cbv),
        images={m: value for m, value in ratios.items() if value is not None},
        measured_cbv=None if scan.cbv is None else region.ratio(scan.cbv),
        flags=region.flags,
    )


def _empty_row(record: ScanRecord, flag: str) -> RoiRow:
    return RoiRow(record.patient_id, record.scan_id, record.label, flags=(flag,))


def _table(rows: Iterable[RoiRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    of_images = [f"{m.lower()}_ratio" for m in Modality]
    named = ["patient_id", "scan_id", "label", "roi", "synthetic_cbv_ratio", "measured_cbv_ratio"]
    writer.writerow([*named, *of_images, "flags"])
    for row in rows:
        values = (row.synthetic_cbv, row.measured_cbv, *(row.images.get(m) for m in Modality))
        ratios = ("" if v is None else f"{v:.6g}" for v in values)
        names = (row.patient_id, row.scan_id, row.label or "", row.roi or "")
        writer.writerow([*names, *ratios, ";".join(row.flags)])
    return text.getvalue()

"""A phantom cohort once more, as a BIDS dataset beside its manifest.

Raw images follow BIDS 1.10.1 (the first with a suffix for ADC maps). CBV maps and masks are
computed things and go to ``derivatives/phantom``; BIDS has no suffix for a perfusion CBV, so that
``_cbv`` is this project's own. Files are copies of the manifest's: one set of voxels, two layouts.
"""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

from iedn import __version__, progress
from iedn.modalities import BRAIN_MASK, TARGET, Modality

from .config import SiteProtocol
from .labelling import FIELD_TESLA, asl_context, asl_sidecar
from .scanning import LESION_MASK
from .signals import TIMINGS

BIDS_FOLDER = "bids"
BIDS_VERSION = "1.10.1"
DERIVATIVES = Path("derivatives") / "phantom"

_RAW = {
    Modality.T1WI: ("anat", "T1w"),
    Modality.T2WI: ("anat", "T2w"),
    Modality.FLAIR: ("anat", "FLAIR"),
    Modality.T1_C: ("anat", "ce-gd_T1w"),
    Modality.ADC: ("dwi", "ADC"),
    Modality.ASL: ("perf", "asl"),
}
_DERIVED = {
    TARGET: ("perf", "cbv"),
    BRAIN_MASK: ("anat", "desc-brain_mask"),
    LESION_MASK: ("anat", "label-lesion_mask"),
}
_README = """# Simulated phantom cohort: no patients

Every image is computed from an average brain and published tissue constants. It is for trying
software, never a source of statements about patients.
"""


def write_bids(manifest: Path, protocol: SiteProtocol) -> Path:
    """Write the cohort of a phantom's manifest as a BIDS dataset.

    Args:
        manifest: what ``write_cohort`` gave.
        protocol: of the site, for the sidecars.

    Returns:
        The dataset's folder, ``bids`` beside the manifest; it appears complete or not at all, and
        one that is there already is kept.
    """
    folder = manifest.parent / BIDS_FOLDER
    if folder.exists():
        return folder
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        rows = _rows(manifest)
        for done, row in enumerate(rows, start=1):
            _write_scan(partial, manifest.parent, row, protocol)
            progress.report(f"{manifest.parent.name}: BIDS scans", done, len(rows))
        _write_tables(partial, rows)
        _write_descriptions(partial)
        _write_sidecars(partial, rows, protocol)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _session(row: dict[str, str]) -> str:
    return row["scan_id"].replace("visit-", "ses-")


def _write_scan(dataset: Path, source: Path, row: dict[str, str], protocol: SiteProtocol) -> None:
    subject, session = row["patient_id"], _session(row)
    for root, places in ((dataset, _RAW), (dataset / DERIVATIVES, _DERIVED)):
        for column, (kind, suffix) in places.items():
            if row[column]:
                name = f"{subject}_{session}_{suffix}.nii.gz"
                _copy(source / row[column], root / subject / session / kind / name)
    if row[Modality.ASL]:
        stem = dataset / subject / session / "perf" / f"{subject}_{session}"
        Path(f"{stem}_aslcontext.tsv").write_text(asl_context(protocol), encoding="utf-8")
        _write_json(Path(f"{stem}_asl.json"), asl_sidecar(protocol))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_tables(dataset: Path, rows: list[dict[str, str]]) -> None:
    """``participants.tsv``, and a table of sessions with the outcome for each patient."""
    sessions: dict[str, list[str]] = {}
    for row in rows:
        line = f"{_session(row)}\t{row['label'] or 'n/a'}"
        sessions.setdefault(row["patient_id"], []).append(line)
    lines = ["participant_id", *sessions]
    (dataset / "participants.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for subject, visits in sessions.items():
        text = "\n".join(["session_id\tlabel", *visits]) + "\n"
        (dataset / subject / f"{subject}_sessions.tsv").write_text(text, encoding="utf-8")
    label = {
        "Description": "What the simulated lesion is at this visit",
        "Levels": {
            "recurrence": "recurrence of the tumour",
            "treatment_response": "response to treatment",
        },
    }
    _write_json(dataset / "sessions.json", {"label": label})


def _write_descriptions(dataset: Path) -> None:
    shared = {
        "BIDSVersion": BIDS_VERSION,
        "License": "Apache-2.0",
        "GeneratedBy": [{"Name": "iedn-simulate phantom", "Version": __version__}],
    }
    raw = {"Name": "Simulated phantom cohort, no patients", "DatasetType": "raw", **shared}
    derived = {
        "Name": "Simulated CBV maps and masks, no patients",
        "DatasetType": "derivative",
        **shared,
        "SourceDatasets": [{"URL": "../.."}],
    }
    _write_json(dataset / "dataset_description.json", raw)
    _write_json(dataset / DERIVATIVES / "dataset_description.json", derived)
    (dataset / "README.md").write_text(_README, encoding="utf-8")


def _write_sidecars(dataset: Path, rows: list[dict[str, str]], protocol: SiteProtocol) -> None:
    """One sidecar a kind of image that exists (a sidecar alone is an error in BIDS)."""
    for modality in (Modality.T1WI, Modality.T2WI, Modality.FLAIR):
        if any(row[modality] for row in rows):
            _write_json(dataset / f"{_RAW[modality][1]}.json", _sidecar(modality, protocol))
    if protocol.has_cbv:
        _write_json(dataset / DERIVATIVES / "cbv.json", {"Units": _cbv_units(protocol)})


def _sidecar(modality: Modality, protocol: SiteProtocol) -> dict[str, Any]:
    """Sequence times in seconds; by BIDS inheritance T1_C shares those of T1WI, as it should."""
    timing = TIMINGS[modality]
    times = {"RepetitionTime": timing.tr_s, "EchoTime": timing.te_s}
    if timing.ti_s > 0.0:
        times["InversionTime"] = timing.ti_s
    return {"MagneticFieldStrength": FIELD_TESLA[protocol.field], **times}


def _cbv_units(protocol: SiteProtocol) -> str:
    return "mL/100g" if protocol.cbv_scale == 1.0 else "arbitrary"

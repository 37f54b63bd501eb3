"""Unique strings, planted in a cohort and looked for in whatever they must not reach."""

import base64
import csv
import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np

from sites.cohort import PATH_COLUMNS

SPLITS = ("train", "train", "validation", "test")


def new_canary() -> str:
    """Sixteen characters that nobody else writes; they fit into every field of a header."""
    return f"zq{secrets.token_hex(7)}"


def forms_of(canary: str) -> dict[str, bytes]:
    """The canary as it is, and as encodings and unsalted digests would show it."""
    raw = canary.encode()
    forms = {
        "plain": raw,
        "utf-16": canary.encode("utf-16-le"),
        "reversed": raw[::-1],
        "hex": raw.hex().encode(),
    }
    for shift in range(3):  # where it starts within a group of three bytes
        encoded = base64.b64encode(b"\0" * shift + raw)
        forms[f"base64 at {shift}"] = encoded[4 if shift else 0 : -4]
    for name in ("md5", "sha1", "sha256"):
        digest = hashlib.new(name, raw, usedforsecurity=False)
        forms[name] = digest.hexdigest().encode()
        forms[f"{name}, binary"] = digest.digest()
    return forms


def found(canaries: Mapping[str, str], places: Mapping[str, bytes]) -> list[str]:
    """Where a canary shows in any form; one line each."""
    lines = []
    for place, content in places.items():
        folded = content.lower()
        for label, canary in canaries.items():
            for form, pattern in forms_of(canary).items():
                if pattern in content or pattern in folded:
                    lines.append(f"{label} ({form}) in {place}")
    return lines


def plant(manifest: Path, target: Path) -> tuple[Path, dict[str, str]]:
    """Copy a phantom cohort of few patients with canaries in every place that has room for one.

    The scan of one more patient is truncated, and that of another is left out with a reason.

    Returns:
        The new manifest, and the canaries by where they are.
    """
    places = ("folder", "file", "manifest name", "patient", "scan", "sex", "disease", "reason")
    places += ("descrip", "aux_file", "db_name", "intent_name", "extension", "sidecar", "truncated")
    canaries = {place: new_canary() for place in places}
    folder = target / canaries["folder"]
    folder.mkdir(parents=True)
    with manifest.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    made = [
        _planted(row, manifest.parent, folder, number, canaries) for number, row in enumerate(rows)
    ]
    made.append({**_truncated(rows[0], manifest.parent, folder, canaries), "split": "train"})
    made.append({**made[0], "patient_id": "left-out", "exclude_reason": canaries["reason"]})
    path = folder / f"{canaries['manifest name']}.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(made[0]))
        writer.writeheader()
        writer.writerows(made)
    return path, canaries


def _planted(
    row: dict[str, str], source: Path, folder: Path, number: int, canaries: Mapping[str, str]
) -> dict[str, str]:
    patient = f"sub-{canaries['patient']}-{number}"
    made = row | {
        "patient_id": patient,
        "scan_id": f"{canaries['scan']}-{number}",
        "sex": canaries["sex"],
        "disease": canaries["disease"],
        "split": SPLITS[number % len(SPLITS)],
    }
    for column in PATH_COLUMNS:
        if row.get(column):
            made[column] = f"{patient}/{canaries['file']}-{column}.nii.gz"
            _copy(source / row[column], folder / made[column], canaries)
    return made


def _copy(source: Path, target: Path, canaries: Mapping[str, str]) -> None:
    image = nibabel.load(source)
    header = image.header.copy()
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        header[field] = canaries[field].encode()
    comment = nibabel.nifti1.Nifti1Extension("comment", canaries["extension"].encode())
    header.extensions.append(comment)
    target.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine, header), target)
    sidecar = {"PatientName": canaries["sidecar"], "InstitutionName": canaries["sidecar"]}
    name = target.name.removesuffix(".nii.gz")
    target.with_name(f"{name}.json").write_text(json.dumps(sidecar), encoding="utf-8")


def _truncated(
    row: dict[str, str], source: Path, folder: Path, canaries: Mapping[str, str]
) -> dict[str, str]:
    made = _planted(row, source, folder, 0, canaries | {"patient": canaries["truncated"]})
    for column in PATH_COLUMNS:
        if made.get(column):
            path = folder / made[column]
            path.write_bytes(path.read_bytes()[:1000])
    return made

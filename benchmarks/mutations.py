"""Damaged files and manifests against the reading code: a code or a sample, never another error.

    python benchmarks/mutations.py 10000

prints JSON: outcomes by code, CPU seconds, peak memory. Mutation N is the same in every run.
"""

import argparse
import gzip
import json
import logging
import re
import resource
import struct
import tempfile
import time
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np

from iedn.config import GridConfig
from iedn.errors import CohortError, ScanError
from iedn.modalities import Modality
from sites.checks import file_findings
from sites.cohort import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, ScanRecord, load_manifest
from sites.dataset import as_sample
from sites.identifying import header_findings, record_findings
from sites.preprocessing import prepare_scan

GRID = GridConfig(rows=16, columns=16, spacing_mm=10.0)
SHAPE = (16, 16, 6)
AFFINE = np.array([[10.0, 0, 0, -75], [0, 10.0, 0, -75], [0, 0, 15.0, -40], [0, 0, 0, 1]])
HEADER_BYTES = 352
# Numbers that break arithmetic when they stand where a size, a scale or a position belongs.
FLOATS = (0.0, -1.0, 1e-30, 1e-9, 1e30, np.inf, -np.inf, np.nan, 1e-6, 1e5)
SHORTS = (0, -1, 1, 2, 7, 8, 4096, 32767, -32768)
CELLS = ("", "?", "../x.nii", "/x.nii", "1e999", "nan", "-1", "train", "x" * 300, "\x00", '"', "é")


class Mutator:
    """A good scan in a folder, and damaged copies of its files and manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        x, y, _ = np.indices(SHAPE)
        self._brain = ((x - 7.5) ** 2 + (y - 7.5) ** 2) < 40
        self._plain = {
            "T1WI": self._image(self._brain * rng.uniform(300, 500, SHAPE)),
            "ASL": self._image(self._brain * rng.uniform(30, 60, SHAPE)),
            "CBV": self._image(self._brain * rng.uniform(2, 4, SHAPE)),
            "brain_mask": self._image(self._brain),
        }
        columns = REQUIRED_COLUMNS + OPTIONAL_COLUMNS
        good = {
            "patient_id": "sub-0001",
            "scan_id": "visit-1",
            "T1WI": "a.nii",
            "CBV": "c.nii",
            "brain_mask": "m.nii",
            "label": "recurrence",
            "age": "60",
            "asl_volume": "0",
        }
        other = good | {"patient_id": "sub-0002", "split": "train"}
        rows = [",".join(row.get(c, "") for c in columns) for row in (good, other)]
        self._manifest = "\n".join([",".join(columns), *rows]) + "\n"

    def outcome(self, number: int) -> str:
        """What becomes of mutation ``number``: a code, ``sample`` or ``manifest``."""
        rng = np.random.default_rng(number)
        if number % 4 == 3:
            return self._read_manifest(rng)
        return self._read_scan(rng)

    def _image(self, values: np.ndarray) -> bytes:
        image = nibabel.Nifti1Image(values.astype(np.float32), AFFINE)
        image.set_sform(AFFINE, code=1)
        image.set_qform(AFFINE, code=1)
        return image.to_bytes()

    def _read_scan(self, rng: np.random.Generator) -> str:
        target = str(rng.choice(list(self._plain)))
        paths = {}
        for column, content in self._plain.items():
            paths[column] = self.folder / f"{column}.nii.gz"
            packed = gzip.compress(content, 1, mtime=0)
            if column == target:
                packed = damaged_file(content, rng)
            paths[column].write_bytes(packed)
        record = ScanRecord(
            "sub-0001",
            "visit-1",
            {Modality.T1WI: paths["T1WI"], Modality.ASL: paths["ASL"]},
            cbv=paths["CBV"],
            brain_mask=paths["brain_mask"],
        )
        for finding in (*header_findings(record), *file_findings(record)):
            assert re.fullmatch(r"[EWI]\d{3}", finding.code)
        record_findings(record, self.folder)
        try:
            scan = prepare_scan(record, GRID)
        except ScanError as error:
            return error.code
        sample = as_sample(scan)
        assert all(bool(image.isfinite().all()) for image in sample.images.values())
        return scan.refused[0].code if scan.refused else "sample"

    def _read_manifest(self, rng: np.random.Generator) -> str:
        path = self.folder / ("manifest.tsv" if rng.random() < 0.1 else "manifest.csv")
        path.write_bytes(damaged_manifest(self._manifest, rng))
        try:
            cohort = load_manifest(path)
        except ScanError as error:
            return error.code
        except CohortError as error:
            return "E402" if "E402" in str(error) else "CohortError"
        for record in cohort.scans:
            record_findings(record, self.folder)
            file_findings(record)
        return "manifest"


def damaged_file(content: bytes, rng: np.random.Generator) -> bytes:
    """A gzipped NIfTI file with a damaged header, body or compression; some are left whole."""
    kind = rng.integers(0, 8)
    plain = damaged_plain(content, kind, rng)
    packed = bytearray(gzip.compress(plain, 1, mtime=0))
    if kind == 5:  # compressed bytes
        for place in rng.integers(0, len(packed), size=rng.integers(1, 5)):
            packed[place] = rng.integers(0, 256)
    elif kind == 6:
        packed = packed[: rng.integers(0, len(packed))]
    return plain if rng.random() < 0.05 else bytes(packed)


def damaged_plain(content: bytes, kind: int, rng: np.random.Generator) -> bytes:
    """The file before compression, damaged in header, voxels or length by kinds 0 to 4."""
    plain = bytearray(content)
    if kind == 0:  # any header bytes
        for place in rng.integers(0, HEADER_BYTES, size=rng.integers(1, 9)):
            plain[place] = rng.integers(0, 256)
    elif kind == 1:  # a float32 field: pixdim, vox_offset, scale, quaternion, sform
        place = int(rng.choice([*range(76, 120, 4), *range(256, 328, 4)]))
        plain[place : place + 4] = struct.pack("<f", rng.choice(FLOATS))
    elif kind == 2:  # a short: dim, datatype, bitpix, qform and sform code
        place = int(rng.choice([*range(40, 56, 2), 70, 72, 252, 254]))
        plain[place : place + 2] = struct.pack("<h", rng.choice(SHORTS))
    elif kind == 3:  # voxels
        values = np.frombuffer(plain, dtype=np.float32, offset=HEADER_BYTES)
        where = rng.integers(0, values.size, size=rng.integers(1, values.size))
        values[where] = rng.choice(FLOATS)
    elif kind == 4:  # cut off, or made longer
        return bytes(plain[: rng.integers(0, len(plain))]) + bytes(int(rng.integers(0, 64)))
    return bytes(plain)


def damaged_manifest(text: str, rng: np.random.Generator) -> bytes:
    """A manifest with wrong cells, characters, lines or bytes; some are left whole."""
    kind = rng.integers(0, 6)
    lines = [line.split(",") for line in text.splitlines()]
    if kind == 0:
        for _ in range(rng.integers(1, 4)):
            row = lines[rng.integers(0, len(lines))]
            row[rng.integers(0, len(row))] = str(rng.choice(CELLS))
    elif kind == 1:
        row = lines[rng.integers(0, len(lines))]
        del row[rng.integers(0, len(row))]
    elif kind == 2:
        lines.append(lines[rng.integers(0, len(lines))])
    content = bytearray("\n".join(",".join(row) for row in lines).encode())
    if kind == 3:
        for place in rng.integers(0, len(content), size=rng.integers(1, 6)):
            content[place] = rng.integers(0, 256)
    elif kind == 4:
        content = content[: rng.integers(0, len(content))]
    return bytes(content)


def run(count: int, folder: Path) -> dict[str, int]:
    """Outcomes of mutations 0 to ``count`` - 1; any other exception ends it, with its number."""
    mutator, outcomes = Mutator(folder), Counter[str]()
    for number in range(count):
        try:
            outcomes[mutator.outcome(number)] += 1
        except Exception as error:
            error.add_note(f"mutation {number}")
            raise
    return dict(sorted(outcomes.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    count = parser.parse_args().count
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)  # it tells of every repaired header
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(count, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = round(time.process_time() - start, 1)
    facts = {"mutations": count, "outcomes": outcomes, "cpu_s": seconds, "peak_rss_mb": round(peak)}
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()

"""Virtual sites from any one manifest: patients are dealt whole, scans are not copied.

Each site's manifest is written beside the original, since paths in a manifest are relative to it.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import tomli_w

from iedn.errors import ConfigError
from iedn.files import atomic_write_bytes
from iedn.modalities import Modality
from sites.cohort import load_manifest

from .scenario import load_scenario

Rule = Literal["patient", "modality", "label", "dirichlet"]


class SplitOptions(TypedDict):
    """Further choices: Dirichlet concentration, the one site that keeps ASL, preset, seed."""

    alpha: float
    asl_only_at: int | None
    preset: str
    seed: int


@dataclass(frozen=True)
class Patient:
    """A patient's rows of the manifest."""

    rows: tuple[dict[str, str], ...]

    @property
    def label(self) -> str:
        """The most frequent label of the patient's scans; empty if none has one."""
        return Counter(row.get("label", "") for row in self.rows).most_common(1)[0][0]

    @property
    def available(self) -> tuple[str, ...]:
        """Modalities that any of the patient's scans has."""
        return tuple(m for m in Modality if any(row.get(m) for row in self.rows))


Deal = Callable[[Sequence[Patient], int, np.random.Generator, float], list[int]]
"""(patients, sites, generator, alpha) -> index of each patient's site."""


def split_manifest(
    manifest: Path, out: Path, *, rule: Rule, num_sites: int, options: SplitOptions
) -> list[Path]:
    """Write a manifest a virtual site, and a scenario that uses them.

    Args:
        manifest: the cohort; read and checked like a hospital's.
        out: scenario file to write.
        rule: ``patient`` (at random), ``modality`` (like availability together), ``label`` (like
            outcome together) or ``dirichlet`` (shares of each outcome drawn from a Dirichlet).
        num_sites: virtual sites.
        options: further choices.

    Returns:
        The manifests, then the scenario file.

    Raises:
        ConfigError: fewer patients than sites, or ``asl_only_at`` beyond the sites.
    """
    load_manifest(manifest)
    columns, patients = read_patients(manifest)
    keeper = options["asl_only_at"]
    if len(patients) < num_sites or (keeper or 1) > num_sites:
        problem = f"{len(patients)} patients, {num_sites} sites, ASL only at {keeper}"
        allowed = "at least one patient a site; ASL kept at one of the sites"
        raise ConfigError(problem, where=str(manifest), allowed=allowed)
    generator = np.random.default_rng(options["seed"])
    sites = _RULES[rule](patients, num_sites, generator, options["alpha"])
    written = []
    for number in range(1, num_sites + 1):
        dealt = [p for p, site in zip(patients, sites, strict=True) if site == number - 1]
        rows = [_without_asl(r, number, keeper) for p in dealt for r in p.rows]
        path = manifest.with_name(f"{manifest.stem}.site-{number}.csv")
        atomic_write_bytes(path, table(columns, rows).encode())
        written.append(path)
    scenario = _scenario(out, written, options)
    atomic_write_bytes(out, tomli_w.dumps(scenario).encode())
    load_scenario(str(out))
    return [*written, out]


def _at_random(
    patients: Sequence[Patient], sites: int, generator: np.random.Generator, _: float
) -> list[int]:
    order = generator.permutation(len(patients))
    dealt = np.empty(len(patients), dtype=int)
    dealt[order] = np.arange(len(patients)) % sites
    return [int(s) for s in dealt]


def _by_availability(
    patients: Sequence[Patient], sites: int, generator: np.random.Generator, _: float
) -> list[int]:
    return _in_blocks([p.available for p in patients], sites, generator)


def _by_label(
    patients: Sequence[Patient], sites: int, generator: np.random.Generator, _: float
) -> list[int]:
    return _in_blocks([(p.label,) for p in patients], sites, generator)


def _in_blocks(
    keys: Sequence[tuple[str, ...]], sites: int, generator: np.random.Generator
) -> list[int]:
    """Sort by key (ties at random) and cut into blocks of equal size."""
    ties = generator.permutation(len(keys))
    order = sorted(range(len(keys)), key=lambda i: (keys[i], ties[i]))
    dealt = [0] * len(keys)
    for rank, index in enumerate(order):
        dealt[index] = rank * sites // len(keys)
    return dealt


def _by_dirichlet(
    patients: Sequence[Patient], sites: int, generator: np.random.Generator, alpha: float
) -> list[int]:
    """Shares of each label a site ~ Dirichlet(alpha); every site gets at least one patient."""
    dealt = [-1] * len(patients)
    order = [int(i) for i in generator.permutation(len(patients))]
    for site, index in enumerate(order[:sites]):
        dealt[index] = site
    rest = order[sites:]
    for label in sorted({patients[i].label for i in rest}):
        shares = generator.dirichlet([alpha] * sites)
        for index in (i for i in rest if patients[i].label == label):
            dealt[index] = int(generator.choice(sites, p=shares))
    return dealt


_RULES: dict[Rule, Deal] = {
    "patient": _at_random,
    "modality": _by_availability,
    "label": _by_label,
    "dirichlet": _by_dirichlet,
}


def read_patients(manifest: Path) -> tuple[list[str], list[Patient]]:
    """Columns of a manifest, and its patients sorted by id."""
    delimiter = "\t" if manifest.suffix == ".tsv" else ","
    with manifest.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter)
        rows: dict[str, list[dict[str, str]]] = {}
        for row in reader:
            rows.setdefault(row["patient_id"], []).append(row)
        columns = list(reader.fieldnames or [])
    return columns, [Patient(tuple(found)) for _, found in sorted(rows.items())]


def _without_asl(row: dict[str, str], number: int, keeper: int | None) -> dict[str, str]:
    if keeper is None or number == keeper:
        return row
    return {**row, Modality.ASL: ""}


def table(columns: list[str], rows: list[dict[str, str]]) -> str:
    """The text of a manifest."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _scenario(out: Path, manifests: list[Path], options: SplitOptions) -> dict[str, Any]:
    return {
        "name": out.stem,
        "seed": options["seed"],
        "preset": options["preset"],
        "rounds": {"count": 10, "quorum": len(manifests), "poll_interval_s": 0.05},
        "sites": {
            f"site-{number}": {"role": "train", "manifest": str(path.absolute())}
            for number, path in enumerate(manifests, start=1)
        },
    }

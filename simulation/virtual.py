"""Virtual sites that share one phantom cohort: a manifest each, no image copied.

Paths in a manifest are relative to its own folder, so the manifests stand beside the cohort's.
"""

from pathlib import Path

import numpy as np

from iedn.files import atomic_write_bytes

from .scenario import VirtualSites
from .split import read_patients, table


def write_manifests(cohort: Path, virtual: VirtualSites, *, seed: int) -> dict[str, Path]:
    """Write the manifest of every site; patients are drawn whole, at a site no one twice.

    Args:
        cohort: the shared cohort's manifest.
        virtual: how many sites, and how many patients each.
        seed: of the draw; a site's patients do not depend on the number of sites.

    Returns:
        The manifests by site.
    """
    columns, patients = read_patients(cohort)
    manifests = {}
    for number, name in enumerate(virtual.names):
        generator = np.random.default_rng([seed, number])
        drawn = sorted(generator.choice(len(patients), virtual.patients, replace=False))
        rows = [row for index in drawn for row in patients[index].rows]
        path = cohort.with_name(f"{name}-of-{virtual.patients}.csv")
        atomic_write_bytes(path, table(columns, rows).encode(), durable=False)  # made every time
        manifests[name] = path
    return manifests

"""What the privacy benchmarks share: a phantom hospital on the grid of the ``tiny`` preset."""

from pathlib import Path

from iedn.config import PRESETS
from simulation.phantom import PhantomCohort, write_cohort
from sites.config import SiteConfig, SplitConfig
from sites.dataset import PreparedCohort, prepare_cohort

GRID = PRESETS["tiny"].grid
PROTOCOL = {
    "rows": 32,
    "columns": 32,
    "slices": 8,
    "spacing_mm": GRID.spacing_mm,
    "slice_spacing_mm": 16.0,
}


def hospital(folder: Path, *, patients: int, train: float, seed: int) -> PreparedCohort:
    """A cohort of phantoms with a scan each; made at the first call."""
    cohort = PhantomCohort(patients=patients, min_visits=1, max_visits=1, protocol=PROTOCOL)
    manifest = write_cohort(folder / "cohort", cohort, seed=seed)
    config = SiteConfig(
        name="phantom",
        manifest=manifest,
        folder=folder,
        workers=1,
        split=SplitConfig(train=train, validation=0.0, test=1 - train),
    )
    return prepare_cohort(config, GRID)

"""From a scenario to a run folder: cohorts on disk, ``federation.toml``, a ``site.toml`` each.

The files are the ones a deployment has; both engines, and a real coordinator, read them alike.
"""

import hashlib
from pathlib import Path
from typing import Any

import tomli_w

from iedn import progress
from iedn.files import atomic_write_bytes
from server.config import FederationConfig
from server.run_folder import HISTORY
from sites.config import SITE_FILE

from .phantom import PhantomCohort, write_cohort
from .scenario import ScenarioConfig, ScenarioSite

FEDERATION_FILE = "federation.toml"

_SIMULATION_POLICY = {
    "min_patients": 1,
    "min_group_sites": 1,
    "releases": ["update", "metrics", "diagnostic"],
}


def prepare_run(
    scenario: ScenarioConfig, out: Path, *, cohorts: Path, seed: int | None, workers: int
) -> FederationConfig:
    """Make everything a run needs; what is already there and right is kept.

    Args:
        scenario: what to simulate.
        out: the run folder.
        cohorts: where phantom cohorts and prepared scans are kept, shared by runs.
        seed: replaces the scenario's seed if given.
        workers: processes that generate phantoms.
    """
    federation = scenario.federation(seed)
    out.mkdir(parents=True, exist_ok=True)
    _write_toml(out / FEDERATION_FILE, federation.model_dump(mode="json", exclude_none=True))
    for index, (name, site) in enumerate(sorted(scenario.sites.items())):
        manifest = site.manifest or _phantom(
            name, site, seed=scenario.cohort_seed + index, cohorts=cohorts, workers=workers
        )
        folder = out / "sites" / name
        folder.mkdir(parents=True, exist_ok=True)
        cache = cohorts.absolute() / "prepared" / manifest.parent.name
        _write_toml(folder / SITE_FILE, _site(name, site, manifest, cache))
    return federation


def is_finished(out: Path) -> bool:
    """Whether the folder holds a run that has come to its end."""
    path = out / HISTORY
    return path.exists() and '"event": "finished"' in path.read_text(encoding="utf-8")


def _phantom(name: str, site: ScenarioSite, *, seed: int, cohorts: Path, workers: int) -> Path:
    if site.phantom is None:  # the scenario's validator has ruled this out
        msg = f"site {name} has no phantom"
        raise ValueError(msg)
    folder = cohorts.absolute() / f"{name}-{_digest(site.phantom, seed)}"
    return write_cohort(
        folder,
        site.phantom,
        seed=seed,
        workers=workers,
        progress=progress.reporter(f"{name}: phantom scans"),
    )


def _site(name: str, site: ScenarioSite, manifest: Path, cache: Path) -> dict[str, Any]:
    return {
        "name": name,
        "role": site.role,
        "manifest": str(manifest.absolute()),
        "cache": str(cache),
        "policy": _SIMULATION_POLICY,
        "split": site.split.model_dump(mode="json"),
    }


def _digest(phantom: PhantomCohort, seed: int) -> str:
    text = f"{seed}\n{phantom.model_dump_json()}"
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _write_toml(path: Path, content: dict[str, Any]) -> None:
    atomic_write_bytes(path, tomli_w.dumps(content).encode())

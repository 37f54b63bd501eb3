"""From a scenario to a run folder: cohorts on disk, ``federation.toml``, a ``site.toml`` each.

The files are the ones a deployment has; both engines, and a real coordinator, read them alike.
"""

import hashlib
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import tomli_w

from client.identity import SIGNING_KEY, make_identity, read_private_key
from client.peers import PEERS
from iedn import progress
from iedn.errors import ConfigError
from iedn.files import atomic_write_bytes
from iedn.identity import public_line
from iedn.peers import PeerList
from server.config import FederationConfig
from server.provisioning import ADMITTED
from server.run_folder import HISTORY
from sites.config import SITE_FILE, Role

from .phantom import PhantomCohort, phantom_pool, write_bids, write_cohort
from .scenario import ScenarioConfig, ScenarioSite, VirtualSites
from .virtual import write_manifests

FEDERATION_FILE = "federation.toml"

Layout = Literal["manifest", "bids"]

_SIMULATION_POLICY = {
    "min_patients": 1,
    "min_group_sites": 1,
    "min_class_patients": 1,
    "min_cell": 1,
    "review": False,
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
    prepare_sites(scenario, out, cohorts=cohorts, workers=workers)
    if federation.secure_aggregation == "on":
        make_identities(federation, out)
    return federation


def prepare_sites(
    scenario: ScenarioConfig,
    out: Path,
    *,
    cohorts: Path,
    workers: int,
    role: Role | None = None,
) -> list[str]:
    """Make the cohorts and site files of a scenario; of one role only, if it is given.

    Args:
        scenario: whose sites.
        out: gets ``sites/NAME/site.toml``.
        cohorts: see ``prepare_run``.
        workers: processes that generate phantoms.
        role: leaves the sites of the other role out.

    Returns:
        Names of the sites.
    """
    names = sorted(n for n, s in scenario.sites.items() if role is None or s.role == role)
    manifests = _manifests(scenario, names, cohorts.absolute(), workers)
    sites = {name: (scenario.sites[name], manifests[name]) for name in names}
    if scenario.virtual is not None and role != "evaluate":
        sites |= _virtual_sites(scenario, scenario.virtual, cohorts.absolute(), workers)
    for number, (name, (site, manifest)) in enumerate(sites.items(), start=1):
        folder = out / "sites" / name
        folder.mkdir(parents=True, exist_ok=True)
        cache = cohorts.absolute() / "prepared" / manifest.parent.name
        _write_toml(folder / SITE_FILE, _site(name, site, manifest, cache))
        progress.report("site files", number, len(sites))
    return sorted(sites)


def make_identities(federation: FederationConfig, out: Path) -> None:
    """Give every training site a key, and all of them the list; keys that are there are kept.

    In a deployment people do this, and compare fingerprints.
    """
    folders = {
        name: out / "sites" / name
        for name, entry in federation.sites.items()
        if entry.role == "train"
    }
    for name, folder in folders.items():
        if not (folder / SIGNING_KEY).exists():
            make_identity(folder / SIGNING_KEY, name)
    keys = {n: read_private_key(f / SIGNING_KEY).public_key() for n, f in folders.items()}
    (out / ADMITTED).mkdir(exist_ok=True)
    listed = PeerList.of(federation.run, keys).to_bytes()
    for name, folder in folders.items():
        atomic_write_bytes(folder / PEERS, listed)
        atomic_write_bytes(
            out / ADMITTED / f"{name}.pub", public_line(keys[name], name).encode() + b"\n"
        )


def is_finished(out: Path) -> bool:
    """Whether the folder holds a run that has come to its end."""
    path = out / HISTORY
    return path.exists() and '"event": "finished"' in path.read_text(encoding="utf-8")


def write_phantoms(
    scenario: ScenarioConfig, out: Path, *, workers: int, layout: Layout = "manifest"
) -> dict[str, Path]:
    """Write the phantom cohorts of a scenario, one folder a site.

    Args:
        scenario: whose sites to write; those with a manifest of their own are left out.
        out: where the folders go; a cohort that is there already is kept.
        workers: processes, shared by the sites.
        layout: ``bids`` writes the same images once more as a BIDS dataset.

    Returns:
        Path of each site's ``manifest.csv``.

    Raises:
        ConfigError: no site is a phantom, or a folder holds something else.
    """
    seeds = _phantom_seeds(scenario)
    if not seeds:
        raise ConfigError("no site of this scenario is a phantom", where=scenario.name)
    manifests = {}
    with phantom_pool(workers) as pool:
        for name, (phantom, seed) in seeds.items():
            manifests[name] = _cohort(name, phantom, out / name, seed=seed, pool=pool)
            if layout == "bids":
                write_bids(manifests[name], phantom.protocol)
    return manifests


def _manifests(
    scenario: ScenarioConfig, names: list[str], cohorts: Path, workers: int
) -> dict[str, Path]:
    manifests = {n: s.manifest for n, s in scenario.sites.items() if s.manifest is not None}
    phantoms = {n: made for n, made in _phantom_seeds(scenario).items() if n in names}
    with phantom_pool(workers) as pool:
        for name, (phantom, seed) in phantoms.items():
            folder = cohorts / f"{name}-{_digest(phantom, seed)}"
            manifests[name] = _cohort(name, phantom, folder, seed=seed, pool=pool)
    return manifests


def _virtual_sites(
    scenario: ScenarioConfig, virtual: VirtualSites, cohorts: Path, workers: int
) -> dict[str, tuple[ScenarioSite, Path]]:
    seed = scenario.cohort_seed + len(scenario.sites)
    folder = cohorts / f"virtual-{_digest(virtual.phantom, seed)}"
    with phantom_pool(workers) as pool:
        cohort = _cohort("virtual sites", virtual.phantom, folder, seed=seed, pool=pool)
    return {
        name: (ScenarioSite(manifest=manifest, split=virtual.split), manifest)
        for name, manifest in write_manifests(cohort, virtual, seed=seed).items()
    }


def _phantom_seeds(scenario: ScenarioConfig) -> dict[str, tuple[PhantomCohort, int]]:
    """Cohort and seed of each phantom site; a site's seed is its place among all sites."""
    return {
        name: (site.phantom, scenario.cohort_seed + index)
        for index, (name, site) in enumerate(sorted(scenario.sites.items()))
        if site.phantom is not None
    }


def _cohort(
    name: str, phantom: PhantomCohort, folder: Path, *, seed: int, pool: Executor | None
) -> Path:
    return write_cohort(
        folder,
        phantom,
        seed=seed,
        progress=progress.reporter(f"{name}: phantom scans"),
        pool=pool,
    )


def _site(name: str, site: ScenarioSite, manifest: Path, cache: Path) -> dict[str, Any]:
    return {
        "name": name,
        "role": site.role,
        "manifest": str(manifest.absolute()),
        "cache": str(cache),
        "workers": 1,  # several sites prepare at once already
        "policy": _SIMULATION_POLICY,
        "split": site.split.model_dump(mode="json"),
        "privacy": site.privacy.model_dump(mode="json", exclude_none=True),
    }


def _digest(phantom: PhantomCohort, seed: int) -> str:
    text = f"{seed}\n{phantom.model_dump_json()}"
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _write_toml(path: Path, content: dict[str, Any]) -> None:
    # Made at every start, so that nothing is lost with the power.
    atomic_write_bytes(path, tomli_w.dumps(content).encode(), durable=False)

"""Facts about the privacy ledger, before a site joins: is it there, whole, and on a fit disk?"""

from pathlib import Path

from iedn.errors import CohortError, ConfigError, LedgerError
from sites.config import SiteConfig
from sites.hash_chain import Entry

from .fact import Fact, failed, ok, warning
from .ledger_command import places_of, site_ledger, up
from .ledger_entries import head_of, limits_of

NETWORK_DISKS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "beegfs", "glusterfs"}
)
"""File systems whose locks SQLite cannot rely on; as ``/proc/mounts`` calls them."""

_MOUNTS = Path("/proc/mounts")


def ledger_facts(config: SiteConfig) -> list[Fact]:
    """Nothing for a site that trains without noise and never did otherwise."""
    if config.role != "train":
        return []
    try:
        ledger = site_ledger(config)
        entries = ledger.entries() if ledger else []
    except (LedgerError, CohortError) as error:
        action = "docs/explanation/privacy-ledger.md says what to do after a restore"
        return [failed("ledger", str(error), action, error.exit_code)]
    if not entries and not config.privacy.is_on:
        return []
    return [_state(config, entries), *_disks(config)]


def _state(config: SiteConfig, entries: list[Entry]) -> Fact:
    if not entries:
        return ok("ledger", f"no privacy spent yet, of epsilon {config.privacy.budget:g}")
    head, limits = head_of(entries), limits_of(entries)
    found = (
        f"epsilon {up(head.epsilon)} of {limits.epsilon_max:g} spent (delta {limits.delta:g}), "
        f"{len(entries)} entries, second file in step"
    )
    if config.privacy.is_on and config.privacy.budget > limits.epsilon_max:
        action = f"set privacy.epsilon to {limits.epsilon_max:g} or less, or use ledger --raise-to"
        wanted = f"{found}; site.toml wants {config.privacy.budget:g}"
        return failed("ledger", wanted, action, ConfigError.exit_code)
    if config.privacy.is_on and config.privacy.delta != limits.delta:
        action = f"set privacy.delta to {limits.delta:g}; it was fixed with the first training"
        wanted = f"{found}; site.toml has delta {config.privacy.delta:g}"
        return failed("ledger", wanted, action, ConfigError.exit_code)
    return ok("ledger", found)


def _disks(config: SiteConfig) -> list[Fact]:
    places = places_of(config)
    ledger_disk, copy_disk = _standing(places.ledger), _standing(places.copy)
    kind = file_system_of(ledger_disk)
    if kind in NETWORK_DISKS:
        action = "set folder to a local disk: two clients could both spend what is left"
        return [failed("ledger", f"{ledger_disk} is {kind}", action, ConfigError.exit_code)]
    if ledger_disk.stat().st_dev == copy_disk.stat().st_dev:
        found = f"{places.copy} is on the ledger's own disk: one restore brings both back"
        return [warning("ledger", found, "set ledger_copy to a file on another disk")]
    return []


def file_system_of(folder: Path) -> str:
    """Kind of the file system that a folder is on; empty where the system does not say."""
    if not _MOUNTS.exists():
        return ""
    rows = [line.split() for line in _MOUNTS.read_text().splitlines()]
    kinds = {row[1].replace("\\040", " "): row[2] for row in rows}
    resolved = folder.resolve()
    return next((kinds[str(p)] for p in (resolved, *resolved.parents) if str(p) in kinds), "")


def _standing(path: Path) -> Path:
    """The nearest folder above a path that is there."""
    return next(folder for folder in path.absolute().parents if folder.exists())

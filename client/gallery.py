"""``iedn-client check --gallery DIR``: a picture of every scan, the most suspicious first.

It shows patients: for its owner only, and never in a folder that others are given.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iedn import progress
from iedn.errors import ConfigError, PolicyError
from iedn.files import atomic_write_bytes
from iedn.html_page import page_environment, picture
from sites.checks import BRAIN_ML
from sites.config import SiteConfig
from sites.dataset import PreparedCohort
from sites.registration import FIRST_LOOK_MM, LEAST_MOTION_MM
from sites.report import is_phantom
from sites.suspicion import ScanNumbers

PAGE, RECORD = "index.html", "gallery.json"
EMBEDDED = 60
"""Scans whose pictures are inside the page; those of all others are files beside it."""

_PUBLISHED = {
    ".git": "a repository",
    ".hg": "a repository",
    ".svn": "a repository",
    "federation.toml": "a coordinator's folder",
    "history.jsonl": "a coordinator's folder",
}
_SERVED = frozenset({"public_html", "htdocs", "wwwroot", "www"})


@dataclass(frozen=True)
class Entry:
    """A scan of the gallery.

    Attributes:
        scan: ``patient_id/scan_id``.
        file: its picture, relative to the folder.
        numbers: what it was judged by.
    """

    scan: str
    file: str
    numbers: ScanNumbers


def gallery_folder(folder: Path, config: SiteConfig) -> Path:
    """Make the folder, for its owner only, before anything else is done.

    Args:
        folder: as asked for; new, empty, or of an earlier gallery.
        config: the site's. Its own folder is private, wherever it lies.

    Raises:
        PolicyError: it lies in a folder whose content is given to others.
        ConfigError: it holds something else.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_relative_to(config.folder.resolve()):
        _refuse_published(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        allowed = "a new folder, an empty one, or that of an earlier gallery"
        raise ConfigError(f"{folder} holds other files", where="--gallery", allowed=allowed)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        problem = f"{folder} cannot be made: {error.strerror}"
        raise ConfigError(problem, where="--gallery", allowed="a folder") from error
    return folder


def write_gallery(config: SiteConfig, cohort: PreparedCohort, folder: Path) -> Path:
    """Draw every scan that is used; the pictures of an earlier gallery in the folder go.

    Args:
        config: the site's.
        cohort: its scans.
        folder: as ``gallery_folder`` gives it.

    Returns:
        The page.

    Raises:
        ScanError: a CBV file has become unreadable since it was prepared.
    """
    _remove_earlier(folder)
    _write_record(config, [], folder)  # should this one be interrupted, the folder is known as ours
    entries = ordered(_draw(config, cohort, folder))
    _write_record(config, entries, folder)
    page = folder / PAGE
    atomic_write_bytes(page, _page(config, entries, folder).encode(), mode=0o600)
    return page


def ordered(entries: Sequence[Entry]) -> list[Entry]:
    """The most suspicious first; of equal ones, as they came."""
    return sorted(entries, key=lambda entry: -entry.numbers.suspicion)


def _refuse_published(folder: Path) -> None:
    for place in (folder, *folder.parents):
        found = next((what for name, what in _PUBLISHED.items() if (place / name).exists()), "")
        if place.name in _SERVED:
            found = "a folder that web servers publish"
        if found:
            raise PolicyError(
                f"--gallery: {folder} lies in {place}, {found}, and the pictures show patients; "
                "name a folder that nobody else is given, e.g. one in the site's own"
            )


def _remove_earlier(folder: Path) -> None:
    """Pictures, and the folders of patients, whose names are identifiers."""
    (folder / PAGE).unlink(missing_ok=True)
    for old in folder.glob("*/*.png"):
        old.unlink()
    for patient in folder.iterdir():
        if patient.is_dir() and not any(patient.iterdir()):
            patient.rmdir()


def _write_record(config: SiteConfig, entries: Sequence[Entry], folder: Path) -> None:
    record = {"site": config.name, "scans": [_as_json(entry) for entry in entries]}
    atomic_write_bytes(folder / RECORD, json.dumps(record, indent=2).encode(), mode=0o600)


def _draw(config: SiteConfig, cohort: PreparedCohort, folder: Path) -> list[Entry]:
    # Slow to import, and of no use to the other commands.
    from sites.montage import montage
    from sites.overlay import shown_images
    from sites.suspicion import scan_numbers

    entries, records = [], cohort.records
    whose = "PHANTOM" if is_phantom(config.manifest) else "PATIENT"
    for index, record in enumerate(records):
        scan = cohort.all.prepared(index)
        images = shown_images(record, scan)
        numbers = scan_numbers(scan, images)
        path = folder / record.patient_id / f"{record.scan_id}.png"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        made = montage(f"{whose} {record.key}", scan, images, numbers)
        atomic_write_bytes(path, made, mode=0o600)
        entries.append(Entry(record.key, str(path.relative_to(folder)), numbers))
        progress.report(f"{config.name}: gallery", index + 1, len(records))
    return entries


def _as_json(entry: Entry) -> dict[str, Any]:
    numbers = entry.numbers
    facts = {"scan": entry.scan, "file": entry.file, "suspicion": round(numbers.suspicion, 3)}
    return facts | asdict(numbers)


def _page(config: SiteConfig, entries: Sequence[Entry], folder: Path) -> str:
    template = page_environment("client").get_template("gallery.html.j2")
    return template.render(
        config=config,
        entries=entries,
        shown=[(e, picture((folder / e.file).read_bytes())) for e in entries[:EMBEDDED]],
        is_phantom=is_phantom(config.manifest),
        brain_ml=BRAIN_ML,
        step_mm=FIRST_LOOK_MM,
        least_mm=LEAST_MOTION_MM,
    )

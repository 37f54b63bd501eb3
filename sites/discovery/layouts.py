"""The search itself: which layout, which scans."""

from pathlib import Path
from typing import Literal

from iedn.errors import CohortError, ConfigError, ScanError

from .bids import discover_bids, discover_session, is_bids
from .folders import discover_folders, discover_one
from .found import Discovery
from .participants import with_labels

Layout = Literal["auto", "folders", "bids"]
LAYOUTS: tuple[Layout, ...] = ("auto", "folders", "bids")


def discover(root: Path, layout: Layout = "auto") -> Discovery:
    """All scans below a folder, with the folders' names as identifiers and labels if known.

    Args:
        root: the folder.
        layout: ``folders``, ``bids``, or ``auto``: BIDS where there is a
            ``dataset_description.json`` or a subject with an ``anat`` folder.

    Raises:
        ConfigError: there is no such folder.
        CohortError: a folder in it may not be read.
    """
    if not root.is_dir():
        raise ConfigError("no such folder", where=f"--scan {root}", allowed="a folder with scans")
    root = root.resolve()
    try:
        bids = is_bids(root) if layout == "auto" else layout == "bids"
        found = discover_bids(root) if bids else discover_folders(root)
    except OSError as error:
        raise CohortError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return with_labels(found, root)


def discover_scan(folder: Path) -> Discovery:
    """The one scan in a folder, with the names of its files understood as in a whole search.

    A folder ``ses-Y`` of a subject, or a subject ``sub-X`` without sessions, is BIDS, and its
    derivatives are looked for in the dataset; any other is the ``SCAN`` of ``PATIENT/SCAN``.

    Raises:
        ConfigError: there is no such folder.
        ScanError: E210, there is no T1.
        CohortError: something in it may not be read.
    """
    place = f"--folder {folder}"
    if not folder.is_dir():
        raise ConfigError("no such folder", where=place, allowed="a folder with one scan")
    folder = folder.resolve()
    try:
        session = folder.name.startswith("ses-") and folder.parent.name.startswith("sub-")
        subject = folder.name.startswith("sub-") and (folder / "anat").is_dir()
        found = discover_session(folder) if session or subject else discover_one(folder)
    except OSError as error:
        raise CohortError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not found.scans:
        reasons = "; ".join(f"{f.code} {f.problem}" for f in found.findings)
        raise ScanError("E210", f"{folder} has no T1: {reasons or 'no image of a known name'}")
    return found

"""The search itself: which layout, which scans, which identifiers."""

from pathlib import Path
from typing import Literal

from iedn.errors import CohortError, ConfigError

from .bids import discover_bids, is_bids
from .folders import discover_folders
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

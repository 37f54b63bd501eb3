"""The Flower bundle: a manifest without code.

Flower ships an app as a bundle and, left to itself, runs what is in it. Ours holds a
``pyproject.toml`` that names installed modules, and the licence: nothing that could be run. Its
bytes depend on the installed version alone, so a site knows its hash without having been told.
"""

import hashlib
import io
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import tomli_w

from . import __version__
from .errors import ConfigError
from .files import atomic_write_bytes

FLOWER_TABLE: dict[str, Any] = {
    "app": {
        "publisher": "iedn",
        "fab-include": ["LICENSE"],
        "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
        "config": {"run-dir": "", "registry": "names"},
    }
}
"""What ``[tool.flwr]`` of the repository's own ``pyproject.toml`` holds too (tested)."""

_DATE = (2024, 10, 1, 0, 0, 0)


def bundle_files() -> dict[str, bytes]:
    """The bundle's two files by name.

    Raises:
        ConfigError: the installed package has no licence text.
    """
    licence = distribution("iedn").read_text("licenses/LICENSE")
    if licence is None:
        raise ConfigError("the installed package 'iedn' has no LICENSE; install it again")
    project = {"name": "iedn", "version": __version__, "license": "Apache-2.0"}
    manifest = {"project": project, "tool": {"flwr": FLOWER_TABLE}}
    return {"pyproject.toml": tomli_w.dumps(manifest).encode(), "LICENSE": licence.encode()}


def bundle_bytes() -> bytes:
    """The bundle as Flower's SuperLink takes it, stored without compression.

    Flower's own build compresses, and another zlib is another hash.
    """
    files = bundle_files()
    lines = [f"{n},{hashlib.sha256(c).hexdigest()},{len(c) * 8}" for n, c in files.items()]
    files[".info/CONTENT"] = "\n".join(lines).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), content)
    return buffer.getvalue()


def bundle_hash() -> str:
    """SHA-256 of the installed version's bundle, as 64 hexadecimal digits."""
    return hashlib.sha256(bundle_bytes()).hexdigest()


def write_bundle(folder: Path) -> Path:
    """Write the bundle's two files into ``folder``, ready for ``flwr run``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in bundle_files().items():
        atomic_write_bytes(folder / name, content)
    return folder

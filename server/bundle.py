"""The Flower bundle: a manifest without code.

Flower ships an app as a bundle and, left to itself, runs what is in it. Ours holds a
``pyproject.toml`` that names installed modules, and the licence: nothing that could be run.
"""

from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import tomli_w

from iedn import __version__
from iedn.errors import ConfigError
from iedn.files import atomic_write_bytes

FLOWER_TABLE: dict[str, Any] = {
    "app": {
        "publisher": "iedn",
        "fab-include": ["LICENSE"],
        "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
        "config": {"run-dir": "", "registry": "names"},
    }
}
"""What ``[tool.flwr]`` of the repository's own ``pyproject.toml`` holds too (tested)."""


def write_bundle(folder: Path) -> Path:
    """Write the bundle's two files into ``folder``, ready for ``flwr run``.

    Raises:
        ConfigError: the installed package has no licence text.
    """
    licence = distribution("iedn").read_text("licenses/LICENSE")
    if licence is None:
        raise ConfigError("the installed package 'iedn' has no LICENSE; install it again")
    project = {"name": "iedn", "version": __version__, "license": "Apache-2.0"}
    manifest = {"project": project, "tool": {"flwr": FLOWER_TABLE}}
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / "pyproject.toml", tomli_w.dumps(manifest).encode())
    atomic_write_bytes(folder / "LICENSE", licence.encode())
    return folder

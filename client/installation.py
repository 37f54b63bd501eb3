"""Facts about the machine and what is installed on it."""

import os
import platform
import shutil
import socket
import stat
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from iedn import __version__
from iedn.bundle import bundle_hash
from iedn.errors import ConfigError, IednError
from iedn.files import only_process
from sites.config import SiteConfig

from .fact import Fact, failed, ok, warning
from .site_folder import CLIENT_LOCK

SHOWN = ("flwr", "torch")
GIGABYTE = 1e9
LITTLE_SPACE, TOO_LITTLE_SPACE = 10 * GIGABYTE, 1 * GIGABYTE


def installation_facts(config: SiteConfig) -> list[Fact]:
    """Versions, device and disk."""
    folders = dict.fromkeys([config.folder, config.cache])
    return [
        version_fact(),
        bundle_fact(),
        device_fact(config.device),
        *map(disk_fact, folders),
        folder_fact(config.folder),
    ]


def version_fact() -> Fact:
    """Every package that ours needs is installed, in a version that it allows."""
    wrong = [text for text in map(_misfit, _requirements()) if text]
    if wrong:
        action = "install again with constraints.txt, flwr and torch in one command"
        return failed("versions", "; ".join(wrong), action, ConfigError.exit_code)
    shown = ", ".join(f"{name} {version(name)}" for name in SHOWN)
    return ok("versions", f"iedn {__version__}, Python {platform.python_version()}, {shown}")


def bundle_fact() -> Fact:
    """The hash of the one bundle that this installation accepts."""
    try:
        return ok("bundle", f"{bundle_hash()} (the coordinator's must be the same)")
    except IednError as error:
        return failed("bundle", str(error), "install the package again", ConfigError.exit_code)


def device_fact(device: str) -> Fact:
    """The device of the site file can be used."""
    import torch

    if device == "cpu":
        return ok("device", f"cpu, {os.cpu_count()} cores")
    if not torch.cuda.is_available():
        action = 'install a torch for this GPU\'s driver, or set device = "cpu"'
        return failed("device", f"{device}: torch sees no GPU", action, ConfigError.exit_code)
    number = int(device.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        found = f"{device}: there are {torch.cuda.device_count()} GPUs, counted from 0"
        return failed("device", found, "set device in the site file", ConfigError.exit_code)
    memory = torch.cuda.get_device_properties(number).total_memory / GIGABYTE
    return ok("device", f"{device}: {torch.cuda.get_device_name(number)}, {memory:.0f} GB")


def disk_fact(folder: Path) -> Fact:
    """There is room in a folder, and it can be written to."""
    place = folder
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        action = f"give the user {_user()} the right to write there"
        return failed("disk", f"{folder}: cannot be written", action, ConfigError.exit_code)
    free = shutil.disk_usage(place).free
    found = f"{folder}: {free / GIGABYTE:.0f} GB free"
    action = "make room, or set folder and cache to another disk; the cache may be deleted"
    if free < TOO_LITTLE_SPACE:
        return failed("disk", found, action, ConfigError.exit_code)
    return warning("disk", found, action) if free < LITTLE_SPACE else ok("disk", found)


def folder_fact(folder: Path) -> Fact:
    """Nobody else on this machine may look at what the site keeps."""
    if folder.exists() and folder.stat().st_mode & stat.S_IRWXO:
        found = f"{folder}: every user of this machine may look in; results of patients go there"
        return warning("folder", found, f"chmod 700 {folder}")
    return ok("folder", f"{folder}: closed to other users")


def port_fact(folder: Path, port: int) -> Fact:
    """The loopback port of the site's own processes is free, or theirs already.

    Args:
        folder: the site's.
        port: ``coordinator.node_port``.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return _taken_port(folder, port, error)
    return ok("port", f"127.0.0.1:{port} is free for this site's own processes")


def _taken_port(folder: Path, port: int, error: OSError) -> Fact:
    lock = folder / CLIENT_LOCK
    if lock.exists():
        with only_process(lock) as is_ours:
            if not is_ours:
                return ok("port", f"127.0.0.1:{port} is held by this site's running client")
    found = f"127.0.0.1:{port} cannot be had: {(error.strerror or str(error)).lower()}"
    action = "set coordinator.node_port in the site file to another port"
    return failed("port", found, action, ConfigError.exit_code)


def _requirements() -> list[Requirement]:
    found = [Requirement(text) for text in requires("iedn") or []]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def _misfit(requirement: Requirement) -> str:
    """Why a requirement is not met; empty if it is."""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(installed, prereleases=True):
        return ""
    return f"{requirement.name} {installed} is installed, {requirement.specifier} is needed"


def _user() -> str:
    return os.environ.get("USER", str(os.getuid()))

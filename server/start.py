"""``iedn-server start``: the same command at the start, after a stop and after any crash."""

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import httpx

from iedn.background import repeat_in_background
from iedn.errors import ConfigError, IdentityError, UnreachableError
from iedn.files import only_process
from iedn.process import bypass_proxies_on_loopback

from . import live
from .admission import admitted_names
from .config import FederationConfig, ListenConfig, load_federation
from .federation import Federation, Roster
from .link import Control, superlink
from .page.serving import page_beside
from .provisioning import FEDERATION_FILE, listening
from .register import follow
from .registry import NamedRegistry
from .release import release_model
from .run import RunResult, run_federation
from .run_folder import RunFolder
from .task import server_task

_log = logging.getLogger(__name__)

_FOLLOW_S = 2.0
_PAUSE_S = 5.0
_MOST_FAILURES = 10


def start(folder: Path, *, page_port: int | None = None) -> RunResult:
    """Serve sites and run the federation to its end.

    Args:
        folder: the coordinator's.
        page_port: of the live page on 127.0.0.1; 0 is any free one, None is no page.

    Raises:
        ConfigError: of ``federation.toml``; another coordinator works in the folder.
        IdentityError: a file of ``admitted/`` is no public key.
        QuorumError: too few sites; what was committed is kept, the same command goes on.
        UnreachableError: the SuperLink does not come up, or fails again and again.
    """
    with _page(folder, page_port):
        with _serving(folder) as (control, config, runs):
            result = _persistently(control, config, runs)
        from .report import write_report  # matplotlib is not what the sites' first join waits for

        write_report(runs, config)
    return result


def release(folder: Path) -> Roster:
    """Serve sites for as long as it takes to hand them the finished run's best model.

    Returns:
        ``received``, or why not, by site.

    Raises:
        ConfigError: as ``start``; or the run is not finished.
    """
    with _serving(folder) as (control, config, runs), server_task(control) as grid:
        federation = Federation(grid, _registry(config, folder), config)
        return release_model(federation, runs)


def _page(folder: Path, port: int | None) -> AbstractContextManager[None]:
    if port is None:
        return nullcontext()
    configuration(folder)  # what is wrong there is said before any page is
    return page_beside(folder, port)


@contextmanager
def _serving(folder: Path) -> Iterator[tuple[Control, FederationConfig, RunFolder]]:
    config, listen = configuration(folder)
    bypass_proxies_on_loopback()
    runs = RunFolder(folder, config)
    with only_process(folder / ".coordinator") as is_ours:
        if not is_ours:
            raise ConfigError("another coordinator is working here", where=str(folder))
        with superlink(folder, listen) as link:
            follow(folder, link.control)
            end_following = repeat_in_background(
                lambda: _follow_quietly(folder, link.control), _FOLLOW_S
            )
            try:
                with live.kept_in(folder):
                    yield link.control, config, runs
            finally:
                end_following()


def configuration(folder: Path) -> tuple[FederationConfig, ListenConfig]:
    """The folder's configuration, which must say where to listen.

    Raises:
        ConfigError: it does not, or is wrong, or TLS files are missing.
    """
    path = folder / FEDERATION_FILE
    listen = listening(folder)
    for key in ("certificate", "key"):
        if not (folder / getattr(listen, key)).is_file():
            problem = f"no file {folder / getattr(listen, key)}"
            allowed = "what `iedn-server init` or `renew` wrote"
            raise ConfigError(problem, where=f"{path}: listen.{key}", allowed=allowed)
    return load_federation(path), listen


def _registry(config: FederationConfig, folder: Path) -> NamedRegistry:
    return NamedRegistry(config.sites, lambda: admitted_names(folder))


def _persistently(control: Control, config: FederationConfig, runs: RunFolder) -> RunResult:
    """Go on from the last commit whenever Flower fails; give up if nothing comes of it."""
    failures, committed = 0, -1
    while True:
        try:
            with server_task(control) as grid:
                return run_federation(grid, _registry(config, runs.path), config, runs)
        except httpx.HTTPError as error:
            last = runs.last_commit()
            reached = -1 if last is None else int(last["round"])
            failures, committed = (failures + 1 if reached <= committed else 1), reached
            if failures >= _MOST_FAILURES:
                text = f"the SuperLink failed {failures} times in a row ({error})"
                raise UnreachableError(text) from error
            _log.warning("%s; going on from the last commit", error)
            time.sleep(_PAUSE_S)


def _follow_quietly(folder: Path, control: Control) -> None:
    try:
        follow(folder, control)
    except (httpx.HTTPError, IdentityError, OSError) as error:
        _log.warning("admissions not followed: %s", error)

"""``iedn-client --site NAME``: take part in a federation until told to stop.

This process answers; a child of it carries the messages. A child that is gone or refused is
started again, for as long as it takes: a coordinator that is away for a night costs nothing.
"""

import logging
import time
from pathlib import Path

from iedn.bundle import bundle_hash
from iedn.errors import ConfigError, IdentityError
from iedn.files import only_process
from iedn.process import (
    bypass_proxies_on_loopback,
    flower_environment,
    start_module,
    stop_child,
)
from sites.config import SiteConfig

from .activity import Activity, report
from .executor import Duties, Executor
from .node import NodeSettings, new_secret
from .screen import shown
from .site_folder import CLIENT_LOCK, HEARD, NODE

_log = logging.getLogger(__name__)

NODE_LOG = "node.log"

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 10.0
_STEADY_S = 60.0


def join(config: SiteConfig, site_file: Path, *, as_json: bool = False) -> None:
    """Answer the coordinator until interrupted, and show what is done meanwhile.

    Args:
        config: the site's configuration.
        site_file: where it came from.
        as_json: show it as JSON lines.

    Raises:
        ConfigError: it names no coordinator or no federation, or another client works here.
        IdentityError: the key or the authority's certificate is missing.
    """
    settings = _settings(config, site_file)
    bypass_proxies_on_loopback()
    config.folder.mkdir(parents=True, exist_ok=True)
    with only_process(config.folder / CLIENT_LOCK) as is_ours:
        if not is_ours:
            raise ConfigError("another client of this site is running", where=str(config.folder))
        _log.info("%s: joining %s", config.name, settings.address)
        with shown(config, as_json=as_json):
            _keep_answering(config, settings, site_file)


def _keep_answering(config: SiteConfig, settings: NodeSettings, site_file: Path) -> None:
    from .app import app

    allowed = config.coordinator.bundles if config.coordinator else ()
    duties = Duties(app, str(site_file.absolute()), frozenset({bundle_hash(), *allowed}))
    folder = config.folder / NODE
    folder.mkdir(mode=0o700, exist_ok=True)
    pause = _FIRST_PAUSE_S
    while True:
        started = time.monotonic()
        report(Activity("connecting"))
        _one_node(settings.with_new_secret(), folder, duties, trains=config.role == "train")
        pause = _FIRST_PAUSE_S if time.monotonic() - started > _STEADY_S else pause
        _log.warning(
            "%s: no connection to %s (%s says why); trying again in %.0f s",
            config.name,
            settings.address,
            folder / NODE_LOG,
            pause,
        )
        report(Activity("pausing", until=time.time() + pause))
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _one_node(settings: NodeSettings, folder: Path, duties: Duties, *, trains: bool) -> None:
    """Answer as long as one child lives."""
    from iedn.training import import_ahead

    child = start_module(
        "client.node",
        settings.model_dump_json().encode(),
        environment=flower_environment(folder / "home"),
        log=folder / NODE_LOG,
    )
    if trains:
        import_ahead()  # takes about as long as the child does to connect
    address = f"127.0.0.1:{settings.port}"
    executor = Executor(address, settings.secret, duties, lambda: child.poll() is None)
    try:
        executor.work()
    finally:
        executor.close()
        stop_child(child)


def _settings(config: SiteConfig, site_file: Path) -> NodeSettings:
    coordinator = config.coordinator
    if coordinator is None:
        problem, allowed = "names no coordinator to join", "a table [coordinator]"
        raise ConfigError(problem, where=f"{site_file}: coordinator", allowed=allowed)
    if not coordinator.federations:
        problem = "takes part in no federation"
        allowed = "names of runs, as agreed with the coordinator"
        raise ConfigError(problem, where=f"{site_file}: coordinator.federations", allowed=allowed)
    return NodeSettings(
        address=coordinator.address,
        ca=_existing(coordinator.ca, "ca", site_file),
        key=_existing(coordinator.key, "key", site_file),
        port=coordinator.node_port,
        secret=new_secret(),
        heartbeat_s=coordinator.heartbeat_s,
        heard=config.folder.absolute() / NODE / HEARD,
    )


def _existing(path: Path | None, name: str, site_file: Path) -> Path:
    if path is not None and path.is_file():
        return path
    raise IdentityError(
        f"{site_file}: coordinator.{name}: no file {path}. The certificate of the authority comes "
        "with the coordinator's kit; `iedn-client --site NAME init` makes the key"
    )

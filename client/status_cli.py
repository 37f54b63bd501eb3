"""``iedn-client status``: what a client that runs elsewhere on this machine does now."""

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from iedn.console import print_parts

if TYPE_CHECKING:
    from sites.config import SiteConfig

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

WATCH_S = 1.0


def status(
    context: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow a running client until interrupted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what this site's client does now, what has left, the privacy budget and the link.

    As its screen does, from the files of a client that runs as a service. Exit code 1 if none
    runs.
    """
    from .board import read_status
    from .status import SiteFiles, renderable, status_document

    config = context.obj.config
    if watch:
        _watch(config)
        return
    document = status_document(config, read_status(config.folder), SiteFiles(config))
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        print_parts([renderable(document)])
    if document["client"] != "running":
        raise typer.Exit(1)


def _watch(config: "SiteConfig") -> None:
    from rich.live import Live

    from .board import read_status
    from .status import SiteFiles, renderable, status_document

    files = SiteFiles(config)
    with Live(auto_refresh=False) as screen:
        while True:
            document = status_document(config, read_status(config.folder), files)
            screen.update(renderable(document), refresh=True)
            time.sleep(WATCH_S)

"""``iedn-client status``: what a client that runs elsewhere on this machine does now."""

import json
from typing import Annotated

import typer

from iedn.console import print_parts

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show what this site's client does now, what has left, the privacy budget and the link.

    As its screen does, from the files of a client that runs as a service; exit code 1 if none
    runs.
    """
    from .board import read_status
    from .status import SiteFiles, renderable, status_document

    config = context.obj.config
    document = status_document(config, read_status(config.folder), SiteFiles(config))
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        print_parts([renderable(document)])
    if document["client"] != "running":
        raise typer.Exit(1)

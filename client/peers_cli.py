"""``iedn-client peers``: the list of sites that this one has accepted, by key."""

import json
from pathlib import Path
from typing import Annotated

import typer

from iedn.console import new_app

# What is slow to import is imported where it is used, so that `--help` answers at once.

app = new_app(invoke_without_command=True)

AsJson = Annotated[bool, typer.Option("--json", help="Results and progress as JSON.")]


@app.callback(no_args_is_help=False)
def peers(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the sites that this one knows by key, for secure aggregation."""
    if context.invoked_subcommand is not None:
        return
    from iedn.peers import digest_of, peer_lines

    from .peers import accepted_list

    listed = accepted_list(context.obj.config)
    if as_json:
        prints = {name: peer.fingerprint for name, peer in listed.sites.items()}
        facts = {"run": listed.run, "sites": prints, "sha256": digest_of(listed)}
        print(json.dumps(facts, indent=2))
        return
    print("\n".join(peer_lines(listed)))


@app.command()
def accept(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="roster.json, from the coordinator.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Sites may have another key than before.")
    ] = False,
) -> None:
    """Take these sites for the federation, after comparing the fingerprints with each of them."""
    from iedn.peers import peer_lines

    from .peers import accept_peers

    outcome = accept_peers(context.obj.config, file, replace=replace)
    print("\n".join(peer_lines(outcome.listed)))
    changes = (f"{name} {what}" for name, what in outcome.changes.items() if what != "unchanged")
    print(f"accepted; {', '.join(changes) or 'nothing has changed'}")
    print("each fingerprint must be the one that this very hospital reads out by telephone;")
    print("if one is not, do not start the client, and call the coordinator")

"""``iedn-client ledger``: its words; what they do is in ``ledger_command``."""

import json
from typing import Annotated

import typer
from rich.console import Console

from iedn.console import print_parts

AsJson = Annotated[bool, typer.Option("--json", help="Results and progress as JSON.")]
Planned = Annotated[int, typer.Option(help="Of the planned run.")]


def ledger(
    context: typer.Context,
    verify: Annotated[bool, typer.Option("--verify", help="Check it and its second file.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="What a run would cost.")] = False,
    rounds: Planned = 0,
    steps: Planned = 0,
    noise: Annotated[float, typer.Option(help="Noise multiplier.")] = 0.0,
    patients: Planned = 0,
    batch: Planned = 0,
    record: Annotated[
        bool, typer.Option("--record", help="Count what it does not know of.")
    ] = False,
    raise_to: Annotated[float | None, typer.Option(help="Allow a larger epsilon_max.")] = None,
    recover: Annotated[
        bool, typer.Option("--recover", help="After a backup was restored.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Stays in the ledger.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show what privacy was spent on, check it, or say what a planned run would cost.

    --plan and --record take --rounds, --steps (a round), --noise, --patients and --batch.
    --record, --raise-to and --recover write to the ledger, and need a --reason.
    """
    from .ledger_command import Asked, Plan, answer

    planned = Plan(rounds, steps, noise, patients, batch)
    asked = Asked(verify, plan, record, recover, raise_to, reason)
    said = answer(context.obj.config, asked, planned, table=Console().is_terminal)
    if as_json:
        print(json.dumps(said.content, indent=2))
    else:
        print_parts(said.parts)

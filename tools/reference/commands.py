"""``docs/reference/commands.md``: every command, argument and option."""

import inspect
from collections.abc import Iterator

import click
from typer.main import get_command

import client.cli
import server.cli
import simulation.cli

APPS = {
    "iedn-client": client.cli.app,
    "iedn-server": server.cli.app,
    "iedn-simulate": simulation.cli.app,
}
HEAD = """# Commands

Made from the code by `python -m tools.reference`; a test keeps the two the same. Results go to
standard output, progress and errors to standard error. With `--json`, where there is one, both
are JSON. What the commands end with is in [exit codes](exit-codes.md).
"""


def page() -> str:
    """The page."""
    parts = [HEAD]
    for name, app in APPS.items():
        parts += _command(get_command(app), name, "##")
    return "\n".join(parts)


def _command(command: click.Command, name: str, level: str) -> Iterator[str]:
    yield f"{level} {name}\n"
    yield f"{_text(command)}\n"
    parameters = [p for p in command.params if not (isinstance(p, click.Option) and p.hidden)]
    shown = [p for p in parameters if p.name != "help"]
    if shown:
        yield "| word | value | default | what |\n|---|---|---|---|"
        yield from map(_row, shown)
        yield ""
    if isinstance(command, click.Group):
        for word in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), word)
            if inner is not None:
                yield from _command(inner, f"{name} {word}", "###")


def _row(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        word = ", ".join(f"`{opt}`" for opt in parameter.opts)
        meaning = parameter.help or ""
    else:
        word = f"`{parameter.human_readable_name}`"
        meaning = str(getattr(parameter, "help", "") or "")
    return f"| {word} | {_value(parameter)} | {_default(parameter)} | {_cell(meaning)} |"


def _value(parameter: click.Parameter) -> str:
    if getattr(parameter, "is_flag", False):
        return "-"
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    bounds = "".join(f" {w} {b}" for w, b in (("from", low), ("to", high)) if b is not None)
    return f"{kind.name.removesuffix(' range')}{bounds}"


def _default(parameter: click.Parameter) -> str:
    if parameter.required:
        return "needed"
    if getattr(parameter, "is_flag", False):
        return "off"
    value = parameter.default
    if parameter.name == "workers":
        return "processors"
    return "-" if value in (None, "") or callable(value) else f"`{value}`"


def _text(command: click.Command) -> str:
    text = inspect.cleandoc(command.help or "")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

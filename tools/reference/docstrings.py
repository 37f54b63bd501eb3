"""What a class says of its fields: the ``Attributes:`` of Google docstrings."""

import inspect
import re

_ENTRY = re.compile(r"^(\w+): (.*)$")


def attributes_of(kind: type) -> dict[str, str]:
    """Field -> what it is, from the docstrings of a class and its bases; one line each."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        found |= _attributes(base.__dict__.get("__doc__") or "")
    return found


def summary_of(kind: type) -> str:
    """The docstring before its first section, as one line of Markdown."""
    text = inspect.cleandoc(kind.__doc__ or "").split("\nAttributes:")[0]
    return markdown(" ".join(text.split()))


def markdown(text: str) -> str:
    """Text with ``code`` of reStructuredText, for a cell of a Markdown table."""
    return text.replace("``", "`").replace("|", "\\|")


def _attributes(docstring: str) -> dict[str, str]:
    _, _, section = inspect.cleandoc(docstring).partition("\nAttributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        text = line.removeprefix("    ")
        if entry := _ENTRY.match(text):
            name, said = entry[1], entry[2]
            found[name] = said
        elif name and text.strip():
            found[name] += f" {text.strip()}"
    return {name: markdown(_sentence(said)) for name, said in found.items()}


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] if text[:1].isalpha() else text

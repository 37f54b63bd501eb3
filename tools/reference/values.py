"""What may stand for a field, in a reader's words."""

import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, StringConstraints

# Bounds that a reader needs no number for: what an integer of so many bits can hold.
_HUGE = 2**31


def allowed(annotation: Any, limits: tuple[Any, ...]) -> str:
    """The values of a field as text for a table's cell.

    Args:
        annotation: the field's type.
        limits: pydantic's metadata about it.
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return allowed(inner, (*limits, *more))
    if origin is Literal:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        known = [a for a in get_args(annotation) if a is not type(None)]
        return " or ".join(allowed(a, limits) for a in known)
    if origin is tuple:
        return f"list of {allowed(get_args(annotation)[0], ())}"
    if origin is dict:
        key, value = get_args(annotation)
        return f"table of {allowed(value, ())} by {allowed(key, ())}"
    return _plain(annotation, limits)


def _plain(annotation: Any, limits: tuple[Any, ...]) -> str:
    if annotation is bool:
        return "`true`, `false`"
    if annotation is int:
        return f"integer{_range(limits)}"
    if annotation is float:
        return f"number{_range(limits)}"
    if isinstance(annotation, type) and issubclass(annotation, Path | BaseModel):
        return "path" if issubclass(annotation, Path) else annotation.__name__
    if hasattr(annotation, "__members__"):
        return ", ".join(f"`{json.dumps(str(m.value))}`" for m in annotation)
    pattern = next((p for limit in limits if (p := _pattern(limit))), None)
    return f"text like `{pattern}`" if pattern and "|" not in pattern else "text"


def _pattern(limit: Any) -> str | None:
    found = limit.pattern if isinstance(limit, StringConstraints) else getattr(limit, "pattern", "")
    return str(found) if found else None


def _range(limits: tuple[Any, ...]) -> str:
    words = []
    for limit in limits:
        for kind, word in ((annotated_types.Ge, "from"), (annotated_types.Gt, "above")):
            if isinstance(limit, kind):
                words.append(f"{word} {_number(getattr(limit, kind.__name__.lower()))}")
        for kind, word in ((annotated_types.Le, "to"), (annotated_types.Lt, "below")):
            if isinstance(limit, kind):
                bound = getattr(limit, kind.__name__.lower())
                words += [] if bound >= _HUGE else [f"{word} {_number(bound)}"]
    return f" {' '.join(words)}" if words else ""


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e5 or value != int(value) else f"{int(value)}"

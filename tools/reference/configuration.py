"""``docs/reference/configuration.md``: every key of the three files that people write."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from server.config import FederationConfig
from simulation.scenario import ScenarioConfig
from sites.config import SiteConfig

from .docstrings import attributes_of, summary_of
from .values import allowed

FILES: dict[str, tuple[type[BaseModel], str]] = {
    "site.toml": (SiteConfig, "What a hospital decides for itself. It never leaves the hospital."),
    "federation.toml": (FederationConfig, "What the coordinator decides for all."),
    "SCENARIO.toml": (ScenarioConfig, "A federation on one machine, for `iedn-simulate run`."),
}
HEAD = """# Configuration

Made from the code by `python -m tools.reference`; a test keeps the two the same. An unknown
key, a value out of range or a wrong type is refused with file, key, value and what is allowed
(exit code 3). A key without a default has to be given. Relative paths are taken from the folder
of the file.
"""


# Defaults that are computed.
COMPUTED: dict[tuple[type[BaseModel], str], str] = {
    (SiteConfig, "folder"): "that of the file",
    (SiteConfig, "cache"): "`cache` in `folder`",
    (SiteConfig, "ledger_copy"): "`ledger-copy.jsonl` in `folder`",
    (SiteConfig, "workers"): "processors, and 2 GiB of memory each, at most 4",
}

Written = dict[type[BaseModel], str]
"""Tables that stand on the page already, and the file they stand under."""


def page() -> str:
    """The page."""
    parts = [HEAD]
    written: Written = {}
    for name, (model, what) in FILES.items():
        parts += [f"## {name}\n", f"{what}\n", *_tables(model, "", name, written)]
    return "\n".join(parts)


def _tables(model: type[BaseModel], place: str, file: str, written: Written) -> Iterator[str]:
    written[model] = f"`[{place}]` of {file}"
    if place:
        yield f"### `[{place}]` of {file}\n"
    yield f"{summary_of(model)}\n"
    yield "| key | value | default | what |\n|---|---|---|---|"
    said = attributes_of(model)
    inner: list[tuple[str, type[BaseModel]]] = []
    for key, field in model.model_fields.items():
        table = _model_in(field.annotation)
        if table is not None:
            name = f"{place}.{key}".removeprefix(".")
            inner.append((f"{name}.NAME" if _is_mapping(field.annotation) else name, table))
        meaning = said[key] if key in said else _meaning_of_table(table, model, key)
        default = COMPUTED.get((model, key)) or _default(field, table)
        yield f"| `{key}` | {_value(field)} | {default} | {meaning} |"
    yield ""
    for name, table in inner:
        if table in written:
            yield f"`[{name}]` has the keys of {written[table]}.\n"
        else:
            yield from _tables(table, name, file, written)


def _meaning_of_table(table: type[BaseModel] | None, model: type[BaseModel], key: str) -> str:
    if table is None:
        msg = f"{model.__name__}.{key} is not described under Attributes of its class"
        raise ValueError(msg)
    return summary_of(table).split(". ")[0].rstrip(".") + "."


def _value(field: FieldInfo) -> str:
    table = _model_in(field.annotation)
    if table is not None:
        return "tables by name" if _is_mapping(field.annotation) else "table"
    return allowed(field.annotation, tuple(field.metadata))


def _default(field: FieldInfo, table: type[BaseModel] | None) -> str:
    if field.is_required():
        return "needed"
    if field.default is PydanticUndefined or table is not None:
        return "-"
    if field.default is None:
        return "absent"
    value = field.default
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        value = [getattr(item, "value", item) for item in value]
    return f"`{json.dumps(value)}`" if not isinstance(value, BaseModel) else "-"


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(a) for a in get_args(annotation))
    return next((found for found in inner if found is not None), None)

"""Reading TOML files that a user writes, and saying plainly what is wrong in them.

Both configuration trees (the coordinator's and the site's) go through here, so that every
mistake is reported in one form: file, dotted key, the value that came, what is allowed.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from .errors import ConfigError

_SHOWN_CHARACTERS = 80
_PREFIXES = ("Input should be ", "Value error, ", "Assertion failed, ")


def load_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8, or not TOML (with the line).
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("the file does not exist", where=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from error
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"line {line} is not UTF-8 text", where=str(path), allowed="TOML saved as UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(path)) from error


def config_error_from(
    error: ValidationError, file: Path | str, *, model: type[BaseModel] | None = None
) -> ConfigError:
    """Pydantic's finding as an error of ours; the first one in full, further ones by key.

    Args:
        error: what pydantic raised.
        file: the file the values came from.
        model: the model that was validated; with it, an unknown key is answered with the keys
            that exist at that place.
    """
    first, *others = error.errors(include_url=False)
    problem, allowed = _describe(first, model)
    if others:
        problem += f" (also wrong: {', '.join(_dotted(o['loc']) for o in others)})"
    key = _dotted(first["loc"])
    return ConfigError(problem, where=f"{file}: {key}" if key else str(file), allowed=allowed)


def _describe(detail: Mapping[str, Any], model: type[BaseModel] | None) -> tuple[str, str]:
    kind, loc = detail["type"], detail["loc"]
    if kind == "missing":
        return "is missing", "a value must be given"
    if kind == "extra_forbidden":
        return f"unknown key, value {_shown(detail['input'])}", ", ".join(_keys_at(model, loc[:-1]))
    message = str(detail["msg"])
    for prefix in _PREFIXES:
        message = message.removeprefix(prefix)
    return f"got {_shown(detail['input'])}", message


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _dotted(loc: Sequence[int | str]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).removeprefix(".")


def _keys_at(model: type[BaseModel] | None, loc: Sequence[int | str]) -> list[str]:
    """Keys that the model knows at ``loc``; empty where the place cannot be followed."""
    for part in loc:
        if model is None:
            return []
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation)
    return [] if model is None else list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model inside an annotation such as ``tuple[Site, ...]`` or ``Site | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in get_args(annotation))
    return next((found for found in inner if found is not None), None)

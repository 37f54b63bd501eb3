"""A run's history as TensorBoard's event files: one TensorBoard run a site, and one of all.

The same aggregates as in the report. Needs the extra ``tensorboard``; nothing else does.
"""

import calendar
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from iedn.errors import ConfigError

from .history import Event
from .standing import costs, privacy_reported, rounds, validations

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

ALL = "federation"
"""The TensorBoard run of what is not one site's."""

_MEAN = "_mean"


class Scalar(NamedTuple):
    """One point of one curve.

    Attributes:
        source: a site, or ``federation``.
        tag: name of the curve.
        value: of the point.
        round_number: its place.
        seconds: since 1970; None if the history does not say when.
    """

    source: str
    tag: str
    value: float
    round_number: int
    seconds: float | None


def export(events: list[Event], out: Path) -> int:
    """Write event files into a new or empty folder, all of them or none; returns how many points.

    Raises:
        ConfigError: TensorBoard is not installed, or the folder is not empty.
    """
    writer = _writer()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("is not empty", where=str(out), allowed="a new or an empty folder")
    points = list(scalars(events))
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        for source in sorted({point.source for point in points}):
            with writer(str(temporary / source)) as stream:
                for point in points:
                    if point.source == source:
                        stream.add_scalar(*point[1:4], walltime=point.seconds)
        temporary.mkdir(parents=True, exist_ok=True)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(points)


def scalars(events: list[Event]) -> Iterator[Scalar]:
    """Every point: validation and privacy by site; time, bytes, updates and scans a round."""
    times = {e["round"]: _seconds(e.get("time")) for e in rounds(events)}
    for event in validations(events):
        number = event["round"]
        for site, result in event["sites"].items():
            for name, value in result["metrics"].items():
                if name.endswith(_MEAN):
                    tag = f"validation/{name.removesuffix(_MEAN)}"
                    yield Scalar(site, tag, value, number, times.get(number))
    for commit in rounds(events):
        yield from _of_round(commit, times[commit["round"]])


def _of_round(commit: Event, seconds: float | None) -> Iterator[Scalar]:
    number, facts = commit["round"], costs(commit)
    for name in ("seconds", "bytes", "bytes_down", "accepted"):
        if facts[name] is not None:
            yield Scalar(ALL, f"round/{name}", facts[name], number, seconds)
    for group, total in commit["contributions"].items():
        yield Scalar(ALL, f"scans/{group}", total["scans"], number, seconds)
    for site, told in privacy_reported([commit]).items():
        yield Scalar(site, "privacy/epsilon", told["epsilon"], number, seconds)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")))


def _writer() -> "type[SummaryWriter]":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        problem = f"TensorBoard is not installed ({error})"
        allowed = 'pip install --constraint constraints.txt "iedn[tensorboard]"'
        raise ConfigError(problem, where="export-tensorboard", allowed=allowed) from error
    return SummaryWriter

"""One line of the doctor: what was looked at, what was found, what to do."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Fact:
    """Something that ``check`` has found out about the site's environment.

    Attributes:
        name: what was looked at.
        status: ``failed`` stops the site from taking part; a ``warning`` does not yet.
        found: what was found.
        action: what to do; empty where there is nothing to do.
        exit_code: of the command, if this is the first line that failed.
    """

    name: str
    status: Status
    found: str
    action: str = ""
    exit_code: int = 0


def ok(name: str, found: str) -> Fact:
    """A line without anything to do."""
    return Fact(name, "ok", found)


def warning(name: str, found: str, action: str) -> Fact:
    """A line to look at."""
    return Fact(name, "warning", found, action)


def failed(name: str, found: str, action: str, exit_code: int) -> Fact:
    """A line that has to be mended."""
    return Fact(name, "failed", found, action, exit_code)

"""Adding readers to a study: two of first readings, one who decides."""

from datetime import datetime
from pathlib import Path

from iedn.errors import ConfigError
from sites.cohort import IDENTIFIER
from sites.identifying import reads_like_a_name
from sites.readers import NUM_READERS

from .score_log import Reader, Record, Role, ScoreLog
from .session import new_token, token_hash
from .study import load_study


def enrol(folder: Path, name: str, role: Role, *, renew: bool, now: datetime) -> str:
    """Add a reader, or give one a new token.

    Args:
        folder: the study's.
        name: made up, such as ``reader-1``.
        role: reads first, or decides.
        renew: the reader is there, and the old token ends.
        now: UTC.

    Returns:
        The token; only its hash is kept.

    Raises:
        ConfigError: a name that is no pseudonym, or a reader too many, or an adjudicator of a
            study without one.
    """
    design = load_study(folder).design
    if role == "adjudicator" and design.decision != "adjudicator":
        problem = "the readers of this study decide in a discussion"
        raise ConfigError(problem, where="--adjudicator", allowed="--decision adjudicator in init")
    if not IDENTIFIER.fullmatch(name) or reads_like_a_name(name):
        allowed = "a made-up name of letters, digits, '.', '_', '-', e.g. reader-1"
        raise ConfigError("cannot be a reader", where=name, allowed=allowed)
    log = ScoreLog(folder)
    _check(log.record(), name, role, renew=renew)
    token = new_token()
    log.add_reader(Reader(name, role, token_hash(token)), now)
    return token


def _check(record: Record, name: str, role: Role, *, renew: bool) -> None:
    present = record.readers.get(name)
    if renew:
        if present is None or present.role != role:
            raise ConfigError(f"no {role} of this name", where=name, allowed=_names(record))
        return
    if present is not None:
        raise ConfigError("is there already", where=name, allowed="--new-link for another link")
    having = sum(reader.role == role for reader in record.readers.values())
    most = NUM_READERS if role == "reader" else 1
    if having >= most:
        raise ConfigError(f"a {role} too many", where=name, allowed=f"{most} ({_names(record)})")


def _names(record: Record) -> str:
    return ", ".join(f"{r.name} ({r.role})" for r in record.readers.values()) or "nobody yet"

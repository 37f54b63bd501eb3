"""Who is at the page: a personal token opens a session, which ends after some idle time.

Tokens are long and random, so that guessing one is hopeless; only their hashes are on disk.
Sessions live in memory: after a restart readers open their personal links again.
"""

import hashlib
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from .score_log import Reader

TOKEN_BYTES = 16


def new_token() -> str:
    """A reader's secret."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_hash(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def reader_of(token: str, readers: Mapping[str, Reader]) -> Reader | None:
    """Whose token this is; as slow for a wrong one as for a right one."""
    digest = token_hash(token)
    found = None
    for reader in readers.values():
        if secrets.compare_digest(digest, reader.token_sha256):
            found = reader
    return found


@dataclass
class Session:
    """One window of one reader.

    Attributes:
        reader: name.
        expires: after this it is no more; put off by every request.
        partner: the second reader in a discussion; empty before.
        drawn: when the maps of each page item were drawn.
    """

    reader: str
    expires: datetime
    partner: str = ""
    drawn: dict[str, datetime] = field(default_factory=dict)


class Sessions:
    """The sessions that are open.

    Args:
        idle: how long one lasts without a request.
        now: the time, UTC.
    """

    def __init__(self, idle: timedelta, now: Callable[[], datetime]) -> None:
        self._idle, self._now = idle, now
        self._open: dict[str, Session] = {}
        self._lock = threading.Lock()

    def begin(self, reader: str) -> str:
        """A new session's id, for the cookie."""
        key = secrets.token_urlsafe(24)
        with self._lock:
            self._drop_expired()
            self._open[key] = Session(reader, self._now() + self._idle)
        return key

    def get(self, key: str | None) -> Session | None:
        """The session, its end put off; None if there is none or it has expired."""
        with self._lock:
            self._drop_expired()
            session = self._open.get(key or "")
            if session is not None:
                session.expires = self._now() + self._idle
            return session

    def end(self, key: str | None) -> None:
        """Close a session."""
        with self._lock:
            self._open.pop(key or "", None)

    def _drop_expired(self) -> None:
        now = self._now()
        self._open = {key: s for key, s in self._open.items() if s.expires > now}

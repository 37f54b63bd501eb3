"""Ask sites and stream their replies, whatever drops out meanwhile.

Flower's ``send_and_receive`` holds all replies and polls nodes that are offline, which consumes
their messages. Here each reply is handed on and dropped as it comes, and only nodes that are
online are polled, so that a link that was down for a while costs nothing but time. A site whose
process was started again is asked again.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import httpx
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from iedn.protocol.messages import safe_code

from . import live
from .registry import OnlineNode, SiteRegistry

_log = logging.getLogger(__name__)

_LOST_ON_THE_WAY = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    }
)
_MOST_ASKED = 8

OnReply = Callable[[str, RecordDict], bool | None]
"""Takes a site's reply; True if the site has to be asked again."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for sites.

    Attributes:
        deadline_s: for a reply, counted from the start of the exchange.
        offline_grace_s: for a site that is not online and not needed.
        poll_interval_s: between two looks.
    """

    deadline_s: float
    offline_grace_s: float
    poll_interval_s: float


@dataclass(frozen=True)
class Question:
    """What is asked of whom.

    Attributes:
        sites: whom to ask.
        build: makes a site's message when it is sent; the message is not kept.
        message_type: ``train``, ``evaluate`` or ``query``.
        label: Flower's group id, e.g. ``round 3``.
        needed: sites that are waited for until the deadline even if offline.
    """

    sites: frozenset[str]
    build: Callable[[str], RecordDict]
    message_type: str
    label: str
    needed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Pending:
    """A message that has no reply yet."""

    message_id: str
    session: str


@dataclass
class _Exchange:
    """An open question."""

    grid: Grid
    question: Question
    patience: Patience
    started: float = field(default_factory=time.monotonic)
    unsent: set[str] = field(default_factory=set)
    pending: dict[str, _Pending] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    missing: dict[str, str] = field(default_factory=dict)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def push(self, nodes: Mapping[str, OnlineNode]) -> None:
        for site in sorted(self.unsent & set(nodes)):
            remaining = max(self.patience.deadline_s - self.elapsed(), 1.0)
            message = Message(
                self.question.build(site),
                nodes[site].node_id,
                self.question.message_type,
                ttl=remaining,
                group_id=self.question.label,
            )
            message_id = next(iter(self.grid.push_messages([message])), "")
            if message_id == "":  # shut out between the look and now
                _log.warning("%s: %s could not be asked", self.question.label, site)
                continue
            self.unsent.discard(site)
            self.asked[site] += 1
            self.pending[site] = _Pending(message_id, nodes[site].session)

    def pull(self, nodes: Mapping[str, OnlineNode], on_reply: OnReply) -> None:
        for site in sorted(set(self.pending) & set(nodes)):
            sent = self.pending[site]
            self._pull_one(site, sent, on_reply)
            if self.pending.get(site) is sent and sent.session != nodes[site].session:
                _log.warning("%s: %s was restarted", self.question.label, site)
                self._ask_again(site, "restarted")

    def _pull_one(self, site: str, sent: _Pending, on_reply: OnReply) -> None:
        """Its own function, so that a reply is gone before the next one is fetched."""
        for reply in self._replies(sent):
            if self.pending.get(site) is sent:  # the first reply counts, a second one does not
                self._take(site, reply, on_reply)

    def _replies(self, sent: _Pending) -> list[Message | None]:
        """What came; None for bytes that are no message, which the site made up."""
        try:
            return list(self.grid.pull_messages([sent.message_id]))
        except httpx.HTTPError:
            raise
        except Exception as error:  # Flower decodes with whatever the bytes lead it to
            _log.warning("%s: a reply does not decode: %r", self.question.label, error)
            return [None]

    def _take(self, site: str, reply: Message | None, on_reply: OnReply) -> None:
        if reply is None or not reply.has_error():
            sent = self.pending.pop(site)
            if on_reply(site, _content(reply)):
                self.pending[site] = sent
                self._ask_again(site, "asked-too-often")
            return
        code = safe_code(f"transport-{reply.error.code}")
        if reply.error.code in _LOST_ON_THE_WAY:
            self._ask_again(site, code)
            return
        del self.pending[site]
        self.missing[site] = code

    def _ask_again(self, site: str, code: str) -> None:
        """The message or its reply is lost; the site answers a repeat from what it kept."""
        del self.pending[site]
        if self.asked[site] < _MOST_ASKED:
            self.unsent.add(site)
        else:
            self.missing[site] = code

    def give_up(self, is_admitted: Callable[[str], bool]) -> None:
        """Stop waiting for sites that were shut out after they had been asked."""
        for site in sorted(set(self.asked) & (self.unsent | set(self.pending))):
            if not is_admitted(site):
                self.unsent.discard(site)
                self.pending.pop(site, None)
                self.missing[site] = "revoked"

    def is_over(self) -> bool:
        if self.elapsed() >= self.patience.deadline_s:
            return True
        if self.pending or self.unsent & (self.question.needed | set(self.asked)):
            return False
        return not self.unsent or self.elapsed() >= self.patience.offline_grace_s

    def snapshot(self, online: Collection[str]) -> live.Snapshot:
        return live.Snapshot(
            self.question.label,
            round(self.elapsed(), 1),
            self.patience.deadline_s,
            {site: self._state(site, online) for site in sorted(self.question.sites)},
            dict(sorted(self.missing.items())),
            tuple(sorted(online)),
        )

    def _state(self, site: str, online: Collection[str]) -> live.SiteState:
        if site in self.missing:
            return "missing"
        if site not in self.unsent and site not in self.pending:
            return "replied"
        if site not in online:
            return "offline"
        return "working" if site in self.pending else "waiting"

    def close(self) -> dict[str, str]:
        self.missing.update(dict.fromkeys(self.unsent, "offline"))
        self.missing.update(dict.fromkeys(self.pending, "late"))
        return self.missing


def _content(reply: Message | None) -> RecordDict:
    """The reply's record; an empty one, which no message parses from, if it has none."""
    try:
        content = None if reply is None else reply.content
    except ValueError:  # Flower's word for a message without
        content = None
    return content if isinstance(content, RecordDict) else RecordDict()


@runtime_checkable
class WakingGrid(Protocol):
    """A grid that says when a reply has come, so that nobody has to look again and again."""

    def wait_for_reply(self, seconds: float) -> None:
        """Return when a reply has come since the last call, at the latest after ``seconds``."""
        ...


def _pause(grid: Grid, seconds: float) -> None:
    if isinstance(grid, WakingGrid):
        grid.wait_for_reply(seconds)
    else:
        time.sleep(seconds)


def ask(
    grid: Grid,
    registry: SiteRegistry,
    question: Question,
    on_reply: OnReply,
    patience: Patience,
) -> dict[str, str]:
    """Send one message to each site and hand each reply on as it comes.

    Args:
        grid: Flower's grid.
        registry: who is online.
        question: what to ask of whom.
        on_reply: takes (site, record), which is dropped afterwards; True asks the site again.
        patience: deadlines.

    Returns:
        Why each site that did not reply is missing: ``offline``, ``late``, ``revoked``
        or ``transport-N``.
    """
    exchange = _Exchange(grid, question, patience, unsent=set(question.sites))
    while True:
        nodes = registry.online(grid)
        exchange.push(nodes)
        exchange.pull(nodes, on_reply)
        exchange.give_up(registry.is_admitted)
        if live.is_watched():
            live.report(exchange.snapshot(nodes))
        if exchange.is_over():
            break
        _pause(grid, patience.poll_interval_s)
    missing = exchange.close()
    for site, reason in sorted(missing.items()):
        _log.warning("%s: no reply from %s (%s)", question.label, site, reason)
    return missing

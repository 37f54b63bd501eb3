"""Ask sites and stream their replies, whatever drops out meanwhile.

Flower's ``send_and_receive`` holds all replies and polls nodes that are offline, which consumes
their messages. Here each reply is handed on and dropped as it comes, and only nodes that are
online are polled, so that a link that was down for a while costs nothing but time.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from iedn.protocol.messages import safe_code

from .registry import SiteRegistry

_log = logging.getLogger(__name__)

OnReply = Callable[[str, RecordDict], None]


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


@dataclass
class _Exchange:
    """An open question."""

    grid: Grid
    question: Question
    patience: Patience
    started: float = field(default_factory=time.monotonic)
    unsent: set[str] = field(default_factory=set)
    pending: dict[str, str] = field(default_factory=dict)  # site -> message id
    missing: dict[str, str] = field(default_factory=dict)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def push(self, nodes: Mapping[str, int]) -> None:
        for site in sorted(self.unsent & set(nodes)):
            remaining = max(self.patience.deadline_s - self.elapsed(), 1.0)
            message = Message(
                self.question.build(site),
                nodes[site],
                self.question.message_type,
                ttl=remaining,
                group_id=self.question.label,
            )
            (message_id,) = self.grid.push_messages([message])
            self.unsent.discard(site)
            self.pending[site] = message_id

    def pull(self, nodes: Mapping[str, int], on_reply: OnReply) -> None:
        for site in sorted(set(self.pending) & set(nodes)):
            for reply in self.grid.pull_messages([self.pending[site]]):
                self._take(site, reply, on_reply)

    def _take(self, site: str, reply: Message, on_reply: OnReply) -> None:
        if not reply.has_error():
            del self.pending[site]
            on_reply(site, reply.content)
            return
        if reply.error.code == ErrorCode.NODE_UNAVAILABLE:
            return  # not final: the node may come back before the deadline
        del self.pending[site]
        self.missing[site] = safe_code(f"transport-{reply.error.code}")

    def is_over(self) -> bool:
        if self.elapsed() >= self.patience.deadline_s:
            return True
        if self.pending or self.unsent & self.question.needed:
            return False
        return not self.unsent or self.elapsed() >= self.patience.offline_grace_s

    def close(self) -> dict[str, str]:
        self.missing.update(dict.fromkeys(self.unsent, "offline"))
        self.missing.update(dict.fromkeys(self.pending, "late"))
        return self.missing


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
        on_reply: takes (site, record); the record is dropped afterwards.
        patience: deadlines.

    Returns:
        Why each site that did not reply is missing: ``offline``, ``late`` or ``transport-N``.
    """
    exchange = _Exchange(grid, question, patience, unsent=set(question.sites))
    while True:
        nodes = {site: node for node, site in registry.online(grid).items()}
        exchange.push(nodes)
        exchange.pull(nodes, on_reply)
        if exchange.is_over():
            break
        time.sleep(patience.poll_interval_s)
    missing = exchange.close()
    for site, reason in sorted(missing.items()):
        _log.warning("%s: no reply from %s (%s)", question.label, site, reason)
    return missing

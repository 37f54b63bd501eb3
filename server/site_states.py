"""What each site does now, and why, in words that status and page share.

From the last snapshot of a coordinator at work and from what the history says of a site.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .config import FederationConfig
from .history import Event
from .standing import GONE, Facts, last_seen, reason_of, rounds

HERE = frozenset({"working", "replied", "waiting", "idle", "took part"})
"""States of a site that is there, or was at the last look."""

_WELL = ("accepted", "joined", "received")
_TURNED_DOWN = ("refused", "failed")


@dataclass(frozen=True)
class Past:
    """What the history says of a site.

    Attributes:
        place: where it is mentioned last; empty if nowhere.
        entry: what became of it there.
        accepted: rounds that hold its update.
        has_joined: whether it ever did.
    """

    place: str
    entry: Mapping[str, Any]
    accepted: tuple[int, ...]
    has_joined: bool

    @property
    def status(self) -> str:
        """What became of it last; empty if nothing."""
        return str(self.entry.get("status", ""))

    @property
    def said(self) -> str:
        """Where that was, and why it was not accepted."""
        return f"{self.place}: {reason_of(self.entry)}"


def site_states(
    config: FederationConfig, pasts: Mapping[str, Past], now: Mapping[str, Any], *, is_running: bool
) -> dict[str, Facts]:
    """State and reason of every site of the federation, and its share in the rounds so far.

    Args:
        config: names the sites.
        pasts: of ``pasts_of``.
        now: the last snapshot; empty if nobody has been asked yet.
        is_running: whether a coordinator is at work; if not, states are those of its last look.

    Returns:
        By site: ``role``, ``required``, ``state``, ``why``, ``rounds`` (that hold its update),
        ``last_round`` (the last of them, or None).
    """
    found = {}
    for site, past in pasts.items():
        state, why = _now(site, now, past) if is_running else _before(past)
        found[site] = {
            "role": config.sites[site].role,
            "required": config.sites[site].required,
            "state": state,
            "why": why,
            "rounds": len(past.accepted),
            "last_round": max(past.accepted, default=None),
        }
    return found


def pasts_of(config: FederationConfig, events: list[Event]) -> dict[str, Past]:
    """What the history says of every site of the federation, by name."""
    seen = last_seen(events)
    accepted: dict[str, list[int]] = {site: [] for site in config.sites}
    for commit in rounds(events):
        for site, entry in commit["roster"].items():
            if entry["status"] == "accepted" and site in accepted:
                accepted[site].append(commit["round"])
    joined = {
        site
        for event in events
        if event["event"] == "join"
        for site, entry in event["roster"].items()
        if entry["status"] == "joined"
    }
    return {
        site: Past(*seen.get(site, ("", {})), tuple(accepted[site]), site in joined)
        for site in sorted(config.sites)
    }


def _now(site: str, now: Mapping[str, Any], past: Past) -> tuple[str, str]:
    """A site's state while a coordinator is at work."""
    label, state = now.get("label", ""), now.get("sites", {}).get(site)
    if state is None:
        return _not_asked(site, now, past)
    if state == "offline":
        if not past.has_joined:
            return "never seen", "has not joined yet: is it admitted, and its client started?"
        return "missing", f"{label}: {GONE['offline']}; waited for until the deadline at most"
    if state == "missing":
        return "missing", f"{label}: {reason_of({'status': now.get('reasons', {}).get(site)})}"
    words = {"working": "asked, at work", "replied": "has replied"}
    return state, f"{label}: {words.get(state, 'online, about to be asked')}"


def _not_asked(site: str, now: Mapping[str, Any], past: Past) -> tuple[str, str]:
    is_online = site in now["online"] if "online" in now else None
    if past.status in _TURNED_DOWN:
        return "refused", past.said
    if past.status in _WELL:
        if is_online is False:
            return "missing", f"{GONE['offline']}; not asked now"
        return "idle", "joined; not asked now"
    if is_online:
        return "waiting", "online; asked at the next round"
    return _before(past)


def _before(past: Past) -> tuple[str, str]:
    """A site's state at the last look of a coordinator that is not at work any more."""
    if not past.place:
        return "never seen", "nothing has been heard of it yet"
    if past.status in _WELL:
        return "took part", f"{past.place}: {past.status}"
    return ("refused" if past.status in _TURNED_DOWN else "missing"), past.said

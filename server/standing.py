"""How a run stands, from the events of its history alone: what reports, status and page say.

Everything here is aggregates that sites released, and names of sites; nothing of a patient.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from .history import Event

CURVES = ("psnr_db", "ssim_percent")
"""Metrics that are followed round by round; of both, more is better."""

GONE = {
    "offline": "offline: no sign of life",
    "late": "no reply before the deadline",
    "revoked": "its admission was revoked",
}
"""Why a site has not replied, by what a roster says of it."""

Facts = dict[str, Any]


def validations(events: list[Event]) -> list[Event]:
    """Validation results, one a round (the last one said)."""
    found = [e for e in events if e["event"] == "evaluation" and e["split"] == "validation"]
    return [e for _, e in sorted({e["round"]: e for e in found}.items())]


def finished(events: list[Event]) -> Event:
    """The ``finished`` line; empty if the run has not ended, or has gone on since."""
    for event in reversed(events):
        if event["event"] == "finished":
            return event
        if event["event"] in ("commit", "incomplete"):
            break
    return {}


def incomplete(events: list[Event]) -> Event:
    """Why the run stands still: its last line, if that says that sites are missing; or empty."""
    return events[-1] if events and events[-1]["event"] == "incomplete" else {}


def joined(events: list[Event]) -> Event | None:
    """The last declarations of all sites, with what became of each site's joining."""
    joins = [e for e in events if e["event"] == "join"]
    if not joins:
        return None
    roster: dict[str, Any] = {}
    for event in joins:  # a later line tells of the sites that were asked again, or of all
        roster |= event["roster"]
    return {**joins[-1], "roster": roster}


def worst_site(evaluation: Event) -> str:
    """Name of the site with the lowest mean PSNR; empty if there is none."""
    scored = {
        site: result["metrics"]["psnr_db_mean"]
        for site, result in evaluation["sites"].items()
        if "psnr_db_mean" in result["metrics"]
    }
    return min(scored, key=lambda site: scored[site]) if scored else ""


def rounds(events: list[Event]) -> list[Event]:
    """The commit lines of trained rounds, one a round (the last one said), in order."""
    found = {e["round"]: e for e in events if e["event"] == "commit" and e["round"] > 0}
    return [e for _, e in sorted(found.items())]


def costs(commit: Event) -> Facts:
    """What a round has cost: seconds, and bytes of updates that came and of models that went.

    What a history does not hold is None: an older one has no seconds.
    """
    entries = commit["roster"]
    slowest = max(entries, key=lambda site: entries[site].get("duration_s", -1), default=None)
    return {
        "round": commit["round"],
        "time": commit.get("time"),
        "seconds": commit.get("seconds"),
        "slowest_site": slowest if slowest and "duration_s" in entries[slowest] else None,
        "bytes": _total(entries, "bytes"),
        "bytes_down": _total(entries, "bytes_down"),
        "accepted": sum(e["status"] == "accepted" for e in entries.values()),
        "sites": len(entries),
    }


def curves(events: list[Event]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Validation by metric and site: pairs of round and mean."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {metric: {} for metric in CURVES}
    for event in validations(events):
        for site, result in event["sites"].items():
            for metric in CURVES:
                value = result["metrics"].get(f"{metric}_mean")
                if value is not None:
                    found[metric].setdefault(site, []).append((event["round"], value))
    return found


def worst_now(events: list[Event]) -> dict[str, Facts]:
    """The site with the lowest mean of each metric in the last validated round, and the round."""
    done = validations(events)
    found: dict[str, Facts] = {}
    for metric in CURVES if done else ():
        scored = {
            site: result["metrics"][f"{metric}_mean"]
            for site, result in done[-1]["sites"].items()
            if f"{metric}_mean" in result["metrics"]
        }
        if len(set(scored.values())) > 1:  # of one site, or of equal ones, none is the worst
            worst = min(scored, key=lambda site: scored[site])
            found[metric] = {"round": done[-1]["round"], "site": worst, "value": scored[worst]}
    return found


def group_contributions(commits: list[Event]) -> Facts:
    """Who moved each group in the last round, with how many declared scans, and in how many rounds.

    Returns:
        ``round`` and ``groups``: by name ``sites``, ``scans``, ``by_site``, ``held`` (sites whose
        policy kept it back), ``void`` (why it stayed as it was; None) and ``rounds`` (that moved
        it). Empty before the first round.
    """
    if not commits:
        return {}
    last = commits[-1]
    accepted = {s: e for s, e in last["roster"].items() if e["status"] == "accepted"}
    groups = {
        group: {
            **total,
            "by_site": {s: e["weights"][group] for s, e in accepted.items() if _has(e, group)},
            "held": [s for s, e in accepted.items() if group in e.get("held", ())],
            "void": last.get("void", {}).get(group),
            "rounds": sum(c["contributions"].get(group, {}).get("sites", 0) > 0 for c in commits),
        }
        for group, total in last["contributions"].items()
    }
    return {"round": last["round"], "groups": groups}


def privacy_reported(events: list[Event]) -> dict[str, Facts]:
    """The privacy each site has said it has spent, and in which round it said so last."""
    return {
        site: {"epsilon": entry["epsilon"], "round": commit["round"]}
        for commit in rounds(events)
        for site, entry in commit["roster"].items()
        if entry.get("epsilon") is not None
    }


def not_accepted(events: list[Event]) -> list[Facts]:
    """Whatever was refused, failed or did not come: when, where, whose, why; oldest first."""
    return [
        {
            "time": event.get("time"),
            "place": place,
            "site": site,
            "status": entry["status"],
            "why": reason_of(entry),
        }
        for event, place in _places(events)
        for site, entry in event["roster"].items()
        if entry["status"] not in ("accepted", "joined", "received")
    ]


def reason_of(entry: Mapping[str, Any]) -> str:
    """Why a roster's entry is not accepted, as one phrase."""
    said = ": ".join(str(entry[key]) for key in ("code", "reason") if entry.get(key))
    status = str(entry["status"])
    return said or GONE.get(status, f"its message was lost ({status})")


def last_seen(events: list[Event]) -> dict[str, tuple[str, Facts]]:
    """Where each site was mentioned last, and what became of it there."""
    return {
        site: (place, entry)
        for event, place in _places(events)
        for site, entry in event["roster"].items()
    }


def _places(events: list[Event]) -> Iterator[tuple[Event, str]]:
    """Events with a roster, and what they are about in words."""
    committed = 0
    for event in events:
        if event["event"] == "commit":
            committed = event["round"]
        if event.get("roster"):
            yield event, _place(event, committed)


def _place(event: Event, committed: int) -> str:
    if event["event"] == "commit":
        return f"round {event['round']}"
    if event["event"] == "evaluation":
        kind = "external" if event["evaluation"] == "diagnostic" else event["split"]
        return f"round {event['round']}, {kind} evaluation"
    return f"{event['event']} after round {committed}"


def _has(entry: Mapping[str, Any], group: str) -> bool:
    return group in entry.get("weights", {})


def _total(entries: Mapping[str, Mapping[str, Any]], name: str) -> int | None:
    values = [entry[name] for entry in entries.values() if entry.get(name) is not None]
    return sum(values) if values else None

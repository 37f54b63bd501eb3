"""Before any scan: can this machine take part? And, with the scans: what would leave?"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from sites.config import SiteConfig
from sites.dataset import PreparedCohort

from .credentials import credential_facts
from .fact import Fact, ok
from .installation import installation_facts, port_fact
from .leaving import what_leaves
from .ledger_facts import ledger_facts
from .peers import peers_fact
from .reachability import connection_facts
from .session import count

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


def environment_facts(config: SiteConfig, *, offline: bool = False) -> list[Fact]:
    """Everything that can be said without a scan.

    Args:
        config: the site's.
        offline: leave out what needs the network.
    """
    facts = [*installation_facts(config), *ledger_facts(config)]
    coordinator = config.coordinator
    if coordinator is None:
        found = "the site file has no [coordinator]: for local commands only, it cannot join"
        return [*facts, ok("coordinator", found)]
    facts.append(port_fact(config.folder, coordinator.node_port))
    facts += credential_facts(coordinator)
    if config.policy.require_secure_aggregation:
        facts.append(peers_fact(config))
    return facts if offline else [*facts, *connection_facts(coordinator)]


def exit_code_of(facts: Sequence[Fact]) -> int:
    """Of the first line that failed; 0 if none did."""
    return next((fact.exit_code for fact in facts if fact.status == "failed"), 0)


def leaving_lines(config: SiteConfig, cohort: PreparedCohort) -> list[str]:
    """What would leave, with this cohort's numbers."""
    names = ("train", "validation", "test", "all")
    return what_leaves(config, {name: count(getattr(cohort, name)) for name in names})


def facts_as_json(facts: Sequence[Fact]) -> list[dict[str, Any]]:
    """For scripts; the same lines."""
    return [asdict(fact) for fact in facts]


def fact_lines(facts: Sequence[Fact]) -> Iterator[RenderableType]:
    """For people: a line each, and below it what to do."""
    for fact in facts:
        line = Text(f"{fact.status:8}", style=_STYLES[fact.status])
        yield line.append(f"{fact.name:12} {fact.found}", style="default")
        if fact.action:
            yield Text(f"{'':8}{'':12} -> {fact.action}", style="bold")


def leaving_text(lines: Sequence[str]) -> Iterator[RenderableType]:
    """For people: what leaves, as a list."""
    yield Text("What would leave this site", style="bold")
    for line in lines:
        yield Text(f"  {line}")

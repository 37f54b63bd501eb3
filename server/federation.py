"""Who takes part: joining, roles, ownership of groups, and the quorum."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from iedn import progress
from iedn.errors import IednError, ProtocolError, RefusedError
from iedn.parameters import groups_for
from iedn.protocol.messages import CapabilitiesRequest, SiteCapabilities
from iedn.protocol.records import parse, to_record

from .config import FederationConfig
from .downlink import Holdings
from .exchange import Patience, Question, ask
from .gate import declared_weight
from .registry import SiteRegistry

_log = logging.getLogger(__name__)

_ENDING = "Nothing was committed; start again with the same command to go on from here"

Roster = dict[str, dict[str, Any]]
"""What became of each site in a round: ``status`` and facts; a refusal carries its code."""


class QuorumError(IednError):
    """Too few sites; the run stops here and goes on from here when started again.

    Args:
        text: how many there are, and why each other site is missing.
        roster: what became of each site.
    """

    def __init__(self, text: str, roster: Roster) -> None:
        self.roster = roster
        super().__init__(text)


@dataclass(frozen=True)
class Owners:
    """What a site is told of all who train its groups.

    Attributes:
        sites: how many train each group.
        shares: percent, rounded up, of a group's declared scans that the site with most of them
            has.
    """

    sites: Mapping[str, int]
    shares: Mapping[str, int]


@dataclass(frozen=True)
class Federation:
    """What does not change during a run.

    Attributes:
        grid: Flower's grid.
        registry: who is online.
        config: the coordinator's configuration.
        capabilities: what each site that joined has declared.
        holdings: which model each site holds; changes as replies come.
    """

    grid: Grid
    registry: SiteRegistry
    config: FederationConfig
    capabilities: Mapping[str, SiteCapabilities] = field(default_factory=dict)
    holdings: Holdings = field(default_factory=Holdings)

    @property
    def patience(self) -> Patience:
        """How long the exchanges of a round wait."""
        rounds = self.config.rounds
        return Patience(rounds.deadline_s, rounds.offline_grace_s, rounds.poll_interval_s)

    def groups_of(self, site: str) -> tuple[str, ...]:
        """The groups a site owns (or, if it only evaluates, needs), decoder last."""
        network = self.config.effective_preset.network
        if network.architecture != "iedn":
            return groups_for(())
        known = self.capabilities[site].scans_by_modality
        return groups_for(m for m in network.modalities if m in known)

    def trainers(self) -> list[str]:
        """The training sites that joined."""
        return [s for s, c in sorted(self.capabilities.items()) if c.role == "train"]

    def owners(self, sites: Mapping[str, Sequence[str]]) -> Owners:
        """Numbers and shares of the sites that train each group; ``sites`` have joined."""
        weights = {
            group: [declared_weight(self.capabilities[site], group) for site in names]
            for group, names in sites.items()
        }
        shares = {g: -(-100 * max(w) // sum(w)) for g, w in weights.items() if sum(w)}
        return Owners({group: len(names) for group, names in sites.items()}, shares)

    def evaluators(self) -> list[str]:
        """The evaluating sites that joined."""
        return [s for s, c in sorted(self.capabilities.items()) if c.role == "evaluate"]


@dataclass(frozen=True)
class Call:
    """Whom to ask to join, and how long to wait.

    Attributes:
        sites: who is asked.
        needed: who is waited for until ``wait_s`` has passed, even if offline.
        wait_s: seconds in all.
    """

    sites: frozenset[str]
    needed: frozenset[str]
    wait_s: float


def join(federation: Federation, call: Call) -> tuple[Federation, Roster]:
    """Ask sites what they can contribute; those that answer well are part of what is returned."""
    config = federation.config
    preset = config.effective_preset
    request = CapabilitiesRequest(run=config.run, grid=preset.grid, network=preset.network)
    joined = dict(federation.capabilities)
    roster: Roster = {}

    def on_reply(site: str, record: RecordDict) -> None:
        try:
            joined[site] = _checked(site, parse(record, SiteCapabilities), config)
        except ProtocolError as error:
            roster[site] = refusal(site, error)
            return
        federation.holdings.note(site, joined[site].holds)
        roster[site] = {"status": "joined"}
        progress.report("sites joined", len(joined), len(config.sites))

    question = Question(
        call.sites, lambda _: to_record(request), "query", "join", needed=call.needed
    )
    progress.report("sites joined", len(joined), len(config.sites))
    rounds = config.rounds
    patience = Patience(call.wait_s, rounds.offline_grace_s, rounds.poll_interval_s)
    missing = ask(federation.grid, federation.registry, question, on_reply, patience)
    roster.update({site: {"status": why} for site, why in missing.items()})
    return replace(federation, capabilities=dict(sorted(joined.items()))), roster


def refusal(site: str, error: ProtocolError) -> dict[str, Any]:
    """The roster's entry for a reply that was not accepted."""
    _log.warning("%s: reply not accepted: %s", site, error)
    status = "failed" if error.code == "failure" else "refused"
    return {"status": status, "code": error.code, "reason": error.problem}


def _checked(
    site: str, capabilities: SiteCapabilities, config: FederationConfig
) -> SiteCapabilities:
    entry = config.sites[site]
    if capabilities.role != entry.role:
        text = f"declares role {capabilities.role!r}; the federation has {entry.role!r}"
        raise RefusedError("wrong-role", text)
    if not capabilities.scans_by_modality:
        raise RefusedError("no-modality", "declares no modality")
    if capabilities.role == "train" and capabilities.num_training_scans < 1:
        raise RefusedError("no-scans", "declares no training scans")
    return capabilities


def check_quorum(
    config: FederationConfig,
    present: list[str],
    roster: Roster,
    label: str,
    *,
    ending: str = _ENDING,
) -> None:
    """Stop the run unless enough training sites, and every required one, are present.

    Args:
        config: says how many, and which.
        present: sites that are.
        roster: what became of the others.
        label: what they were needed for.
        ending: what the stop means for the run, as a sentence without a full stop.

    Raises:
        QuorumError: says how many there are, and why each other site is missing.
    """
    required = {s for s, entry in config.sites.items() if entry.required}
    absent = sorted(required - set(present) - {s for s in required if _is_evaluator(config, s)})
    if len(present) >= config.rounds.quorum and not absent:
        return
    reasons = ", ".join(
        f"{site}: {entry.get('code', entry['status'])}"
        for site, entry in sorted(roster.items())
        if entry["status"] not in ("accepted", "joined")
    )
    text = (
        f"{label}: {len(present)} of {config.rounds.quorum} needed sites"
        + (f"; required but missing: {', '.join(absent)}" if absent else "")
        + (f" ({reasons})" if reasons else "")
        + f". {ending}"
    )
    raise QuorumError(text, dict(sorted(roster.items())))


def _is_evaluator(config: FederationConfig, site: str) -> bool:
    return config.sites[site].role == "evaluate"

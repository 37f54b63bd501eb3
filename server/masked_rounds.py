"""A round under secure aggregation: keys, masked updates, sums that are opened whole or not at all.

A member that drops out between the two voids the groups it signed for: they stay at their value in
this round, and the history says why. Their masked updates are worth nothing to anybody, and no site
sends another one for this round.
"""

import logging
from dataclasses import dataclass, field

from flwr.app import RecordDict

from iedn.masking import MaskRound, members_of
from iedn.protocol.checks import Shapes, shapes_of
from iedn.protocol.messages import TrainReply, TrainRequest
from iedn.protocol.records import parse

from .aggregation import Float64Groups, Means
from .federation import Federation, QuorumError, Roster, check_quorum
from .gate import Expectation, admit_masked
from .intake import Intake
from .mask_keys import SPENT, Agreement, agreed_before, ask_for_keys, remember
from .masked_sum import MaskedSum
from .outgoing import Outgoing
from .rounds import (
    Facts,
    RoundState,
    accepted_entry,
    contributions,
    next_state,
    train_request,
)
from .run_folder import RunFolder
from .uplink import masked_update

_log = logging.getLogger(__name__)

_SPENT_ENDING = (
    "The model stays as it is in this round, whose masks are used up; start again with the same "
    "command to go on with the next round"
)


class SpentRoundError(QuorumError):
    """Too few sites, after masked updates may have left: the round can never be done again.

    Args:
        error: how many sites there are.
        state: the same model, one round further.
        facts: for the history.
    """

    def __init__(self, error: QuorumError, state: RoundState, facts: Facts) -> None:
        self.state, self.facts = state, facts
        super().__init__(str(error), error.roster)


def masked_round(
    federation: Federation, folder: RunFolder, state: RoundState
) -> tuple[RoundState, Facts]:
    """One round up to the commit: the next state, and the facts for the history.

    Raises:
        QuorumError: too few sites gave a key; nothing has left any site.
        SpentRoundError: too few sites sent what they had given a key for.
    """
    round_ = MaskRound(federation.config.run, state.number + 1, state.model_hash)
    agreement = agreed_before(folder, round_)
    if agreement is None:
        agreement = ask_for_keys(federation, folder, round_)
        _check_agreed(_MaskedUpdates.open(federation, state, agreement))
        remember(folder, round_, agreement)
    updates = _MaskedUpdates.open(federation, state, agreement)
    _collect(updates)
    return updates.close()


def _check_agreed(updates: "_MaskedUpdates") -> None:
    agreement = updates.agreement
    is_spent = any(entry.get("code") == SPENT for entry in agreement.roster.values())
    if is_spent:  # an older copy of this folder: sites have done this round, and never do it twice
        updates.check_quorum(sorted(agreement.keys))
        return
    config = updates.federation.config
    check_quorum(config, sorted(agreement.keys), agreement.roster, updates.label)


def _collect(updates: "_MaskedUpdates") -> None:
    federation = updates.federation
    members = frozenset(updates.agreement.keys)
    sites = members & frozenset(federation.trainers())
    updates.roster.update({site: {"status": "offline"} for site in members - sites})
    Intake(
        updates.label,
        sites,
        updates.outgoing,
        request=updates.request,
        admit=updates.admit,
        roster=updates.roster,
    ).collect(federation)
    updates.check_quorum(sorted(updates.weights))


@dataclass
class _MaskedUpdates:
    """The running sum of a masked round and what became of each site."""

    federation: Federation
    state: RoundState
    agreement: Agreement
    shapes: Shapes
    total: MaskedSum
    outgoing: Outgoing
    roster: Roster = field(default_factory=dict)
    weights: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def open(
        cls, federation: Federation, state: RoundState, agreement: Agreement
    ) -> "_MaskedUpdates":
        shapes = shapes_of(state.model)
        members = {group: members_of(agreement.keys, group) for group in shapes}
        total = MaskedSum(shapes, members)
        outgoing = Outgoing(federation, state.offer)
        return cls(federation, state, agreement, shapes, total, outgoing, dict(agreement.roster))

    @property
    def label(self) -> str:
        return f"round {self.state.number + 1}"

    def request(self, site: str) -> TrainRequest:
        agreement = self.agreement
        hashes = self.outgoing.hashes(site)
        return train_request(
            self.federation, self.state, site, agreement.owners, hashes, agreement.keys
        )

    def admit(self, site: str, record: RecordDict) -> Facts:
        reply = parse(record, TrainReply)
        self.federation.holdings.note(site, reply.holds)
        groups = self.federation.groups_of(site)
        shapes = {g: self.shapes[g] for g in groups if g in self.shapes}
        tensors = masked_update(record, shapes)
        expected = Expectation(
            self.request(site),
            self.federation.capabilities[site],
            shapes,
            self._norm_bound(),
            self.state.ledgers.get(site),
        )
        admit_masked(reply, tensors, expected, site)
        self.total.add(site, tensors, reply.weights)
        self.weights[site] = dict(reply.weights)
        return accepted_entry(reply, record, self.outgoing.sent_bytes[site])

    def check_quorum(self, present: list[str]) -> None:
        """Stop the run if too few are present; this round's masks are used up all the same."""
        try:
            check_quorum(
                self.federation.config, present, self.roster, self.label, ending=_SPENT_ENDING
            )
        except QuorumError as error:
            void = {group: "quorum" for group, sites in self.total.members.items() if sites}
            raise SpentRoundError(error, *self._closed({}, void)) from None

    def close(self) -> tuple[RoundState, Facts]:
        means, void = self.total.open(self._norm_bound())
        for group, sites in self.total.missing().items():
            void[group] = "; ".join(f"{site}: {self._why(site)}" for site in sites)
        for group, reason in sorted(void.items()):
            _log.warning("%s: %s stays as it is: %s", self.label, group, reason)
        return self._closed(means, void)

    def _closed(self, means: Float64Groups, void: dict[str, str]) -> tuple[RoundState, Facts]:
        moved = {
            site: {g: w for g, w in weights.items() if g in means}
            for site, weights in self.weights.items()
        }
        state = next_state(self.federation, self.state, _drained(means), self.roster, [])
        return state, {
            "base_hash": self.state.model_hash,
            "roster": dict(sorted(self.roster.items())),
            "contributions": contributions(self.shapes, moved),
            "accepted_norms": [],
            "void": dict(sorted(void.items())),
        }

    def _norm_bound(self) -> float:
        return self.federation.config.aggregation.gate.max_update_norm

    def _why(self, site: str) -> str:
        entry = self.roster.get(site, {"status": "not asked"})
        if entry["status"] == "accepted":
            return "held back by its policy"
        return str(entry.get("code", entry["status"]))


def _drained(means: Float64Groups) -> Means:
    """One tensor after the other; each is let go."""
    for group in list(means):
        tensors = means.pop(group)
        for name in list(tensors):
            yield group, name, tensors.pop(name)

"""One round: ask, let pass or refuse, sum.

Nothing is written here; ``run`` commits what a round returns.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flwr.app import RecordDict

from iedn.errors import RefusedError
from iedn.parameters import SHARED_GROUP, flatten, state_hash
from iedn.protocol.checks import Shapes, shapes_of
from iedn.protocol.messages import MaskKey, TrainReply, TrainRequest
from iedn.protocol.records import array_bytes, parse

from .aggregation import Float32Groups, Means, StreamingSum, Update
from .downlink import LastStep, Offer, next_model
from .federation import Federation, Owners, Roster, check_quorum
from .gate import Expectation, SeenLedger, admit, declared_weight
from .intake import Intake
from .optimizers import Moments
from .outgoing import Outgoing
from .uplink import decoded_update

Facts = dict[str, Any]


@dataclass
class RoundState:
    """The global model between rounds.

    Attributes:
        number: last committed round.
        model: float32 tensors by group.
        model_hash: its hash.
        moments: server-optimiser state.
        accepted_norms: norms of the updates of each committed round.
        ledgers: where the privacy ledger of each site stood at its last update.
        last_step: how the model came from the one before it, unless this process was not there.
    """

    number: int
    model: Float32Groups
    model_hash: str
    moments: Moments
    accepted_norms: list[list[float]]
    ledgers: Mapping[str, SeenLedger] = field(default_factory=dict)
    last_step: LastStep | None = None

    @cached_property
    def offer(self) -> Offer:
        """The model as it is offered to sites."""
        return Offer(self.model, self.model_hash, self.last_step)


def seen_ledgers(roster: Roster) -> dict[str, SeenLedger]:
    """Where the privacy ledgers of the sites in a round's roster stood."""
    told = {site: entry for site, entry in roster.items() if entry.get("ledger_count")}
    return {s: SeenLedger(e["ledger_count"], e["ledger_hash"]) for s, e in told.items()}


def train_round(federation: Federation, state: RoundState) -> tuple[RoundState, Facts]:
    """One round up to the commit: the next state, and the facts for the history.

    Raises:
        QuorumError: fewer accepted updates than the quorum, or a required site is missing.
    """
    summed = _PlainSum.open(federation, state)
    label = f"round {state.number + 1}"
    intake = Intake(
        label, federation.trainers(), summed.outgoing, request=summed.request, admit=summed.admit
    )
    intake.collect(federation)
    check_quorum(federation.config, summed.accepted(), intake.roster, label)
    return summed.close(intake.roster)


def train_request(
    federation: Federation,
    state: RoundState,
    site: str,
    owners: Owners,
    group_hashes: dict[str, str],
    mask_keys: dict[str, MaskKey] | None = None,
) -> TrainRequest:
    """What a site is asked in the round after ``state``.

    Args:
        federation: the run's.
        state: what the round starts from.
        site: who is asked.
        owners: of each group, in this round.
        group_hashes: of the groups that the site needs.
        mask_keys: the mask roster of a masked round.
    """
    config = federation.config
    preset = config.effective_preset
    groups = federation.groups_of(site)
    return TrainRequest(
        run=config.run,
        round=state.number + 1,
        base_hash=state.model_hash,
        grid=preset.grid,
        network=preset.network,
        training=config.training,
        seed=config.seed,
        group_sites={g: owners.sites[g] for g in groups if g in owners.sites},
        group_shares={g: owners.shares[g] for g in groups if g in owners.shares},
        privacy=config.privacy,
        mask_keys=mask_keys,
        group_hashes=group_hashes,
        transfer=config.transfer,
    )


def next_state(
    federation: Federation,
    state: RoundState,
    means: Means,
    roster: Roster,
    norms: list[float],
) -> RoundState:
    """The state after a round; groups without a mean delta stay as they are.

    Args:
        federation: the run's.
        state: before the round.
        means: mean deltas; used up.
        roster: what became of each site.
        norms: of the accepted updates, where they can be seen.
    """
    config = federation.config
    model, moments, last_step = next_model(
        state.offer, means, state.moments, config.aggregation.optimizer, config.transfer
    )
    return RoundState(
        state.number + 1,
        model,
        state_hash(flatten(model)),
        moments,
        [*state.accepted_norms, norms],
        {**state.ledgers, **seen_ledgers(roster)},
        last_step,
    )


def contributions(
    groups: Iterable[str], weights: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    """Sites and declared scans behind each group, from each site's weights."""
    return {
        group: {
            "sites": sum(group in w for w in weights.values()),
            "scans": sum(w.get(group, 0) for w in weights.values()),
        }
        for group in groups
    }


def accepted_entry(reply: TrainReply, record: RecordDict, bytes_down: int) -> Facts:
    """The roster's entry for an accepted update.

    Args:
        reply: the update's message.
        record: that it came in.
        bytes_down: of arrays that the site was sent for it.
    """
    return {
        "status": "accepted",
        "weights": dict(sorted(reply.weights.items())),
        "held": sorted(reply.held_groups),
        "duration_s": reply.duration_s,
        "epsilon": reply.epsilon,
        "ledger_count": reply.ledger_count,
        "ledger_hash": reply.ledger_hash,
        "bytes": array_bytes(record),
        "bytes_down": bytes_down,
    }


@dataclass
class _PlainSum:
    """The running sum of a round, and what has gone into it."""

    federation: Federation
    state: RoundState
    owners: Owners
    shapes: Shapes
    total: StreamingSum
    outgoing: Outgoing
    norm_bound: float
    norms: dict[str, float] = field(default_factory=dict)
    weights: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def open(cls, federation: Federation, state: RoundState) -> "_PlainSum":
        shapes = shapes_of(state.model)
        owned = {site: federation.groups_of(site) for site in federation.trainers()}
        aggregation = federation.config.aggregation
        return cls(
            federation,
            state,
            owners=federation.owners(
                {g: [site for site, groups in owned.items() if g in groups] for g in shapes}
            ),
            shapes=shapes,
            total=StreamingSum(shapes, aggregation.method),
            outgoing=Outgoing(federation, state.offer),
            norm_bound=aggregation.gate.norm_bound(state.accepted_norms),
        )

    def accepted(self) -> list[str]:
        return sorted(self.norms)

    def request(self, site: str) -> TrainRequest:
        hashes = self.outgoing.hashes(site)
        return train_request(self.federation, self.state, site, self.owners, hashes)

    def admit(self, site: str, record: RecordDict) -> Facts:
        reply = parse(record, TrainReply)
        self.federation.holdings.note(site, reply.holds)
        capabilities = self.federation.capabilities[site]
        groups = self.federation.groups_of(site)
        shapes = {g: self.shapes[g] for g in groups if g in self.shapes}
        deltas = decoded_update(record, shapes, self.federation.config.transfer)
        expected = Expectation(
            self.request(site),
            capabilities,
            shapes,
            self.norm_bound,
            self.state.ledgers.get(site),
        )
        norm = admit(reply, deltas, expected)
        update = Update(deltas, reply.weights, declared_weight(capabilities, SHARED_GROUP))
        if self.total.would_overflow(update):
            raise RefusedError("wrong-weight", "the total weight of a group exceeds 2^20")
        self.total.add(update)
        self.norms[site] = norm
        self.weights[site] = dict(reply.weights)
        entry = accepted_entry(reply, record, self.outgoing.sent_bytes[site])
        return {**entry, "norm": round(norm, 6)}

    def close(self, roster: Roster) -> tuple[RoundState, Facts]:
        norms = [self.norms[site] for site in self.accepted()]
        state = next_state(self.federation, self.state, self.total.drain(), roster, norms)
        return state, {
            "base_hash": self.state.model_hash,
            "roster": dict(sorted(roster.items())),
            "contributions": contributions(self.shapes, self.weights),
            "accepted_norms": norms,
        }

"""One round: ask, let pass or refuse, sum.

Nothing is written here; ``run`` commits what a round returns.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

from flwr.app import RecordDict

from iedn import progress
from iedn.errors import ProtocolError, RefusedError
from iedn.parameters import SHARED_GROUP, flatten, state_hash
from iedn.protocol.checks import Shapes, shapes_of
from iedn.protocol.messages import TrainReply, TrainRequest
from iedn.protocol.records import array_bytes, parse, to_record

from .aggregation import Float32Groups, StreamingSum, Update
from .downlink import LastStep, Offer, committed_step, hashes_of
from .exchange import Question, ask
from .federation import Federation, Roster, check_quorum, refusal
from .gate import Expectation, admit, declared_weight
from .optimizers import Moments, server_step
from .uplink import decoded_update

_log = logging.getLogger(__name__)

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
        last_step: how the model came from the one before it, unless this process was not there.
    """

    number: int
    model: Float32Groups
    model_hash: str
    moments: Moments
    accepted_norms: list[list[float]]
    last_step: LastStep | None = None

    @property
    def offer(self) -> Offer:
        """The model as it is offered to sites."""
        return Offer(self.model, self.model_hash, self.last_step)


def train_round(federation: Federation, state: RoundState) -> tuple[RoundState, Facts]:
    """One round up to the commit: the next state, and the facts for the history.

    Raises:
        QuorumError: fewer accepted updates than the quorum, or a required site is missing.
    """
    intake = _Intake.open(federation, state)
    sites = frozenset(federation.trainers())
    required = frozenset(s for s in sites if federation.config.sites[s].required)
    label = f"round {state.number + 1}"
    question = Question(sites, intake.build, "train", label, needed=required)
    missing = ask(federation.grid, federation.registry, question, intake.take, federation.patience)
    intake.roster.update({site: {"status": why} for site, why in missing.items()})
    check_quorum(federation.config, intake.accepted(), intake.roster, label)
    return intake.close()


@dataclass
class _Intake:
    """The running sum of a round and what became of each site."""

    federation: Federation
    state: RoundState
    owners: dict[str, int]
    shapes: Shapes
    total: StreamingSum
    norm_bound: float
    group_hashes: dict[str, str]
    roster: Roster = field(default_factory=dict)
    sent_bytes: dict[str, int] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    weights: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def open(cls, federation: Federation, state: RoundState) -> "_Intake":
        shapes = shapes_of(state.model)
        owned = [federation.groups_of(site) for site in federation.trainers()]
        aggregation = federation.config.aggregation
        return cls(
            federation,
            state,
            owners={g: sum(g in groups for groups in owned) for g in shapes},
            shapes=shapes,
            total=StreamingSum(shapes, aggregation.method),
            norm_bound=aggregation.gate.norm_bound(state.accepted_norms),
            group_hashes=hashes_of(state.model, federation.config.transfer),
        )

    def accepted(self) -> list[str]:
        return sorted(self.norms)

    def request(self, site: str) -> TrainRequest:
        config = self.federation.config
        preset = config.effective_preset
        groups = self.federation.groups_of(site)
        return TrainRequest(
            run=config.run,
            round=self.state.number + 1,
            base_hash=self.state.model_hash,
            grid=preset.grid,
            network=preset.network,
            training=config.training,
            seed=config.seed,
            group_sites={g: self.owners[g] for g in groups if g in self.owners},
            group_hashes={g: h for g, h in self.group_hashes.items() if g in groups},
            transfer=config.transfer,
        )

    def build(self, site: str) -> RecordDict:
        federation = self.federation
        held = federation.holdings.of(site)
        groups = self.state.offer.to_send(federation.groups_of(site), held)
        record = to_record(self.request(site), groups)
        self.sent_bytes[site] = self.sent_bytes.get(site, 0) + array_bytes(record)
        return record

    def take(self, site: str, record: RecordDict) -> bool:
        if self.federation.holdings.must_send_all(site, record):
            return True
        try:
            self._admit(site, record)
        except ProtocolError as error:
            self.roster[site] = refusal(site, error)
        else:
            _log.info("round %d: %s: update accepted", self.state.number + 1, site)
        done = len(self.roster)
        total = len(self.federation.trainers())
        progress.report(f"round {self.state.number + 1}: replies", done, total)
        return False

    def _admit(self, site: str, record: RecordDict) -> None:
        reply = parse(record, TrainReply)
        self.federation.holdings.note(site, reply.holds)
        capabilities = self.federation.capabilities[site]
        groups = self.federation.groups_of(site)
        shapes = {g: self.shapes[g] for g in groups if g in self.shapes}
        deltas = decoded_update(record, shapes, self.federation.config.transfer)
        expected = Expectation(self.request(site), capabilities, shapes, self.norm_bound)
        norm = admit(reply, deltas, expected)
        update = Update(deltas, reply.weights, declared_weight(capabilities, SHARED_GROUP))
        if self.total.would_overflow(update):
            raise RefusedError("wrong-weight", "the total weight of a group exceeds 2^20")
        self.total.add(update)
        self.norms[site] = norm
        self.weights[site] = dict(reply.weights)
        self.roster[site] = {
            "status": "accepted",
            "norm": round(norm, 6),
            "weights": dict(sorted(reply.weights.items())),
            "held": sorted(reply.held_groups),
            "duration_s": reply.duration_s,
            "epsilon": reply.epsilon,
            "bytes": array_bytes(record),
            "bytes_down": self.sent_bytes[site],
        }

    def close(self) -> tuple[RoundState, Facts]:
        config = self.federation.config
        step, moments = server_step(
            self.total.mean_deltas(), self.state.moments, config.aggregation.optimizer
        )
        model, moments, last_step = committed_step(self.state.offer, step, moments, config.transfer)
        norms = [self.norms[site] for site in self.accepted()]
        state = RoundState(
            self.state.number + 1,
            model,
            state_hash(flatten(model)),
            moments,
            [*self.state.accepted_norms, norms],
            last_step,
        )
        return state, {
            "base_hash": self.state.model_hash,
            "roster": dict(sorted(self.roster.items())),
            "contributions": self._contributions(),
            "accepted_norms": norms,
        }

    def _contributions(self) -> dict[str, dict[str, int]]:
        return {
            group: {
                "sites": sum(group in w for w in self.weights.values()),
                "scans": sum(w.get(group, 0) for w in self.weights.values()),
            }
            for group in self.shapes
        }

"""The gate an update passes on its way into the sum.

Every bound is a fixed number or rests on committed rounds only, never on the order in which
replies arrive, so that the same replies are always judged the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from iedn.config import FrozenModel
from iedn.errors import RefusedError
from iedn.masking import MaskRound, roster_digest
from iedn.protocol.checks import (
    MAX_ABS_DELTA,
    Shapes,
    check_ring_tensors,
    check_tensors,
    update_norm,
)
from iedn.protocol.messages import SiteCapabilities, TrainReply, TrainRequest


class GateConfig(FrozenModel):
    """Bounds on an update.

    Attributes:
        max_update_norm: largest Euclidean norm of an update.
        norm_factor: if set, also refuse a norm above this multiple of the median norm of the
            updates accepted in committed rounds.
        norm_history: committed rounds that the median looks back on.
    """

    max_update_norm: float = Field(default=1000.0, gt=0.0)
    norm_factor: float | None = Field(default=None, gt=1.0)
    norm_history: int = Field(default=5, ge=1, le=100)

    def norm_bound(self, committed_norms: list[list[float]]) -> float:
        """The bound for the next round, from the accepted norms of each committed round."""
        recent = [n for norms in committed_norms[-self.norm_history :] for n in norms]
        if self.norm_factor is None or not recent:
            return self.max_update_norm
        return min(self.max_update_norm, self.norm_factor * median(recent))


@dataclass(frozen=True)
class SeenLedger:
    """Where a site's privacy ledger stood when this run last had an update of it.

    Attributes:
        count: entries.
        hash: of the last one.
    """

    count: int
    hash: str


@dataclass(frozen=True)
class Expectation:
    """What one site may answer in one round.

    Attributes:
        request: the request it was sent.
        capabilities: what it declared; weights must match it.
        shapes: tensors of the groups it was sent.
        norm_bound: largest accepted norm.
        ledger: what its privacy ledger must continue; None if none was seen yet.
    """

    request: TrainRequest
    capabilities: SiteCapabilities
    shapes: Shapes
    norm_bound: float
    ledger: SeenLedger | None = None


def admit(
    reply: TrainReply,
    deltas: Mapping[str, Mapping[str, NDArray[np.float32]]],
    expected: Expectation,
) -> float:
    """Let an update pass and return its Euclidean norm.

    Raises:
        RefusedError: with a code for the roster: ``wrong-run``, ``wrong-round``, ``wrong-base``,
            ``wrong-group``, ``wrong-key``, ``wrong-dtype``, ``wrong-shape``, ``not-finite``,
            ``too-large``, ``wrong-weight``, ``norm`` or ``ledger-rolled-back``.
    """
    _check_round(reply, expected.request)
    _check_groups(reply, expected)
    sent = {g: expected.shapes[g] for g in reply.weights}
    check_tensors(deltas, sent, max_abs=MAX_ABS_DELTA)
    _check_weights(reply, expected.capabilities)
    _check_ledger(reply, expected.ledger)
    norm = update_norm(deltas)
    if norm > expected.norm_bound:
        text = f"the update's norm {norm:.4g} exceeds {expected.norm_bound:.4g}"
        raise RefusedError("norm", text)
    return norm


def admit_masked(
    reply: TrainReply,
    tensors: Mapping[str, Mapping[str, NDArray[np.generic]]],
    expected: Expectation,
    site: str,
) -> None:
    """Let a masked update into the sum, as far as its form says; what it holds, nobody can see.

    Raises:
        RefusedError: as ``admit`` but for values; or ``mask-roster``: masked for other sites or
            keys, or not at all.
    """
    request = expected.request
    keys = request.mask_keys or {}
    _check_round(reply, request)
    if reply.mask_roster != roster_digest(MaskRound.of(request), keys):
        raise RefusedError("mask-roster", "is not masked for the sites and keys of this round")
    _check_groups(reply, expected)
    unsigned = sorted(set(reply.weights) - set(keys[site].groups))
    if unsigned:
        raise RefusedError("wrong-group", f"sent {unsigned}, which its mask key was not signed for")
    check_ring_tensors(tensors, {g: expected.shapes[g] for g in reply.weights})
    _check_weights(reply, expected.capabilities)
    _check_ledger(reply, expected.ledger)


def declared_weight(capabilities: SiteCapabilities, group: str) -> int:
    """The declared number of training scans behind a group; 0 if the site cannot train it."""
    if group == "decoder":
        return capabilities.num_training_scans
    by_name = {f"encoder.{m}": n for m, n in capabilities.scans_by_modality.items()}
    return by_name.get(group, 0)


def _check_round(reply: TrainReply, request: TrainRequest) -> None:
    if reply.run != request.run:
        raise RefusedError("wrong-run", f"answers run {reply.run!r}, not {request.run!r}")
    if reply.round != request.round:
        raise RefusedError("wrong-round", f"answers round {reply.round}, not {request.round}")
    if reply.base_hash != request.base_hash:
        text = f"starts from model {reply.base_hash[:12]}, not {request.base_hash[:12]}"
        raise RefusedError("wrong-base", text)


def _check_groups(reply: TrainReply, expected: Expectation) -> None:
    sent, held = set(reply.weights), set(reply.held_groups)
    if sent & held or sent | held != set(expected.shapes):
        text = f"sent {sorted(sent)}, held {sorted(held)}, expected {sorted(expected.shapes)}"
        raise RefusedError("wrong-group", text)
    if not sent:
        raise RefusedError("all-held", "the site's policy held every group back")


def _check_weights(reply: TrainReply, capabilities: SiteCapabilities) -> None:
    for group, weight in reply.weights.items():
        declared = declared_weight(capabilities, group)
        if weight != declared:
            text = f"weight {weight} of {group} is not the declared {declared}"
            raise RefusedError("wrong-weight", text)


def _check_ledger(reply: TrainReply, seen: SeenLedger | None) -> None:
    """A ledger only grows: one with fewer entries, or another last one, has forgotten some."""
    if seen is None or reply.ledger_count is None:
        return
    came = (reply.ledger_count, reply.ledger_hash)
    if came[0] < seen.count or (came[0] == seen.count and came != (seen.count, seen.hash)):
        text = (
            f"its privacy ledger has {reply.ledger_count} entries up to {reply.ledger_hash}; "
            f"{seen.count} up to {seen.hash} were seen before"
        )
        raise RefusedError("ledger-rolled-back", text)

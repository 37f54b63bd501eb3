"""The way of the model to the sites: only what a site does not hold, quantised if so configured.

With a quantised downlink the coordinator quantises the step of a round, *commits the model that
decodes from it* and keeps what was lost for the next step, beside the optimiser's moments: sites
and coordinator hold the same bits, and a coordinator that was killed goes on with the same ones.

A site says with every reply which model it holds. What it is sent differs with that; the model it
ends up with, and the message itself, do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from operator import itemgetter

from flwr.app import RecordDict

from iedn.config import TransferConfig
from iedn.errors import ProtocolError
from iedn.parameters import state_hash
from iedn.protocol.encoding import apply_delta, encode
from iedn.protocol.messages import MISSING_BASE, FailureReply
from iedn.protocol.records import Sendable, parse

from .aggregation import Float32Groups, Means
from .optimizers import Moments, ServerOptimizerConfig, advance, steps

_RESIDUAL = "residual"


@dataclass(frozen=True)
class LastStep:
    """How a committed model came from the one before it.

    Attributes:
        base_hash: of the model before.
        changed: groups that are not what they were.
        payloads: their quantised steps; empty where models travel in float32.
    """

    base_hash: str
    changed: frozenset[str]
    payloads: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Offer:
    """A committed model that sites are to work on.

    Attributes:
        model: float32 tensors by group.
        model_hash: its hash.
        last_step: how it came from the one before, if that is known.
    """

    model: Float32Groups
    model_hash: str
    last_step: LastStep | None = None

    @cached_property
    def group_hashes(self) -> dict[str, str]:
        """Hash of each group."""
        return {group: state_hash(tensors) for group, tensors in self.model.items()}

    def to_send(self, groups: tuple[str, ...], held: str | None) -> Sendable:
        """What a site needs of these groups if it holds the model ``held``."""
        own = {g: self.model[g] for g in groups if g in self.model}
        if held is None:
            return own
        if held == self.model_hash:
            return {}
        step = self.last_step
        if step is None or held != step.base_hash:
            return own
        return {g: step.payloads.get(g, t) for g, t in own.items() if g in step.changed}


class Holdings:
    """Which model each site holds, as it said with its last reply."""

    def __init__(self) -> None:
        self._by_site: dict[str, str] = {}

    def of(self, site: str) -> str | None:
        """The hash of what a site holds; None if it holds nothing, or has not said."""
        return self._by_site.get(site)

    def note(self, site: str, model_hash: str | None) -> None:
        """Remember what a site says."""
        if model_hash is None:
            self._by_site.pop(site, None)
        else:
            self._by_site[site] = model_hash

    def must_send_all(self, site: str, record: RecordDict) -> bool:
        """Whether a reply says that the site lacks what it was thought to hold.

        It then counts as holding nothing, so that the same answer again is a failure.
        """
        if self.of(site) is None or not _lacks_base(record):
            return False
        self.note(site, None)
        return True


def next_model(
    offer: Offer,
    means: Means,
    moments: Moments,
    optimizer: ServerOptimizerConfig,
    transfer: TransferConfig,
) -> tuple[Float32Groups, Moments, LastStep]:
    """The model after a round, as every site will hold it.

    Args:
        offer: the model before.
        means: mean deltas, group after group; used up. Groups without stay as they are.
        moments: optimiser state before, and what quantising had left over; not changed.
        optimizer: what becomes of a mean delta.
        transfer: how models travel.

    Returns:
        The model, the state with what quantising has left over now, and the step as it travels.
    """
    if transfer.down == "fp32":
        changed: set[str] = set()
        model, after = advance(offer.model, _noted(means, changed), moments, optimizer)
        return model, after, LastStep(offer.model_hash, frozenset(changed))
    model, after, payloads = dict(offer.model), dict(moments), {}
    for group, tensors in groupby(steps(means, after, optimizer), itemgetter(0)):
        step = {name: values for _, name, values in tensors}
        before = _residual(moments, group, step)
        encoded = encode(step, before, transfer.down, entropy_coding=transfer.entropy_coding)
        model[group] = apply_delta(offer.model[group], encoded.decoded)
        payloads[group] = encoded.payload
        after |= {f"{_RESIDUAL}/{group}/{n}": lost for n, lost in encoded.residual.items()}
    return model, after, LastStep(offer.model_hash, frozenset(payloads), payloads)


def _noted(means: Means, groups: set[str]) -> Means:
    for group, name, mean in means:
        groups.add(group)
        yield group, name, mean


def _residual(moments: Moments, group: str, tensors: Mapping[str, object]) -> Moments:
    keys = {name: f"{_RESIDUAL}/{group}/{name}" for name in tensors}
    return {name: moments[key] for name, key in keys.items() if key in moments}


def _lacks_base(record: RecordDict) -> bool:
    try:
        return parse(record, FailureReply).code == MISSING_BASE
    except ProtocolError:
        return False

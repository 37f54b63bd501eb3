"""A train request at a site: from global tensors to the update that leaves."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from iedn import progress
from iedn.config import NetworkConfig
from iedn.errors import PolicyError, RefusedError
from iedn.modalities import in_order
from iedn.model import Network, empty_network, set_recompute
from iedn.parameters import Array, load_groups, shapes_of_network, state_by_group
from iedn.protocol.checks import check_tensors, shapes_of
from iedn.protocol.messages import TrainReply, TrainRequest
from iedn.protocol.records import Groups, Sendable
from iedn.seeding import derive_seed
from iedn.training import TrainingSummary, train
from sites.privacy import check_demand

from .kept_reply import keep_reply, kept_reply
from .masked_training import MaskedRelease, forget_mask_key
from .quantised_update import Quantiser
from .session import SiteSession
from .spending import note_repeat, spend_before_training

if TYPE_CHECKING:
    from .private_training import PrivateRound

_log = logging.getLogger(__name__)


def answer_training(
    session: SiteSession, request: TrainRequest, groups: Groups
) -> tuple[TrainReply, Sendable]:
    """Train one round, or repeat the answer to a request that came before.

    What can be refused without training is refused before anything is spent.

    Args:
        session: the site's.
        request: what is asked.
        groups: the global model's tensors.

    Raises:
        PolicyError: the site does not train, its policy holds the update back, the run asks for
            more privacy than the site has, or the privacy budget does not allow it.
        ConfigError: the site's ``[privacy]`` does not fit its cohort.
        RefusedError: the request's tensors are not what its network demands; its mask keys are
            not those of the round's sites; or a masked update of the round has left before.
    """
    session.egress.check_mode(request)
    kept = kept_reply(session.config.folder, request)
    if kept is not None:
        note_repeat(session, request)
        session.egress.repeat(*kept)
        forget_mask_key(session, request)
        return kept
    if session.config.role != "train":
        raise PolicyError("this site only evaluates; it was asked to train")
    session.egress.masked_rounds.check_unspent(request.run, request.round)
    masked = None if request.mask_keys is None else MaskedRelease(session, request)
    model = network_from(groups, request.network)
    check_demand(session.config.privacy, request.privacy)
    sent = session.egress.check_update(request, groups, session.counts(request.grid))
    private = _private_round(session, request, sent)
    event = None if private is None else private.event
    with spend_before_training(session, request, event) as ledger:
        summary = _train(session, request, model, private)
        trained = groups if private is None else {g: groups[g] for g in sorted(private.groups)}
        after = state_by_group(model)
        quantiser = Quantiser(session.config.folder, request, is_noised=private is not None)
        reply, checked = session.egress.checked_update(
            request,
            quantiser.changes({g: _changes(after[g], base) for g, base in trained.items()}),
            session.counts(request.grid),
            shapes=shapes_of(after),
            duration_s=summary.seconds,
            ledger=ledger,
        )
        if masked is not None:
            return masked.release(reply, checked)
        leaving = session.egress.update(reply, checked)
        keep_reply(session.config.folder, request, reply, leaving, quantiser.residuals(checked))
    return reply, leaving


def network_from(groups: Groups, config: NetworkConfig) -> Network:
    """The part of the network that was sent, with its weights.

    Raises:
        RefusedError: keys, shapes, dtypes or values that the network does not allow.
    """
    own = config
    if config.architecture == "iedn":
        sent = [g.removeprefix("encoder.") for g in groups if g.startswith("encoder.")]
        if not sent:
            raise RefusedError("wrong-group", "no encoder was sent")
        own = config.model_copy(update={"modalities": in_order(sent)})
    model = empty_network(own)
    check_tensors(groups, shapes_of_network(model))
    load_groups(model, groups)
    return model


def _private_round(
    session: SiteSession, request: TrainRequest, sent: Sequence[str]
) -> "PrivateRound | None":
    """What training with noise will do; None where the site trains without."""
    if not session.config.privacy.is_on:
        return None
    from .private_training import plan_round  # Opacus takes seconds to import

    return plan_round(session, request, sent)


def _train(
    session: SiteSession, request: TrainRequest, model: Network, private: "PrivateRound | None"
) -> TrainingSummary:
    """Train in place."""
    config, settings = session.config, request.training
    if config.threads is not None:
        settings = settings.model_copy(update={"threads": config.threads})
    set_recompute(model, config.recompute)
    device = torch.device(config.device)
    task = f"{config.name}: training steps of round {request.round}"

    def report(step: int, _: float) -> None:
        progress.report(task, step, settings.local_steps)

    if private is None:
        summary = train(
            model,
            session.cohort(request.grid).train,
            settings,
            seed=derive_seed(
                request.seed, round_number=request.round, site=config.name, purpose="training"
            ),
            device=device,
            progress=report,
        )
    else:
        summary = private.train(model, settings, device=device, progress=report)
    _log.info(
        "%s: round %d: mean loss %.4f in %.1f s",
        config.name,
        request.round,
        summary.mean_loss,
        summary.seconds,
    )
    return summary


def _changes(after: Mapping[str, Array], base: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.asarray(after[name] - array) for name, array in base.items()}

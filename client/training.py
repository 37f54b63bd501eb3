"""A train request at a site: from global tensors to the update that leaves."""

import logging

import numpy as np
import torch

from iedn import progress
from iedn.config import NetworkConfig
from iedn.errors import PolicyError, RefusedError
from iedn.modalities import in_order
from iedn.model import Network, build_network, set_recompute
from iedn.parameters import load_groups, state_by_group
from iedn.protocol.checks import check_tensors, shapes_of
from iedn.protocol.messages import TrainReply, TrainRequest
from iedn.protocol.records import Groups, Sendable
from iedn.seeding import derive_seed
from iedn.training import train

from .kept_reply import Residuals, keep_reply, kept_reply, residual_before
from .quantised_update import quantised, residuals_after
from .session import SiteSession

_log = logging.getLogger(__name__)


def answer_training(
    session: SiteSession, request: TrainRequest, groups: Groups
) -> tuple[TrainReply, Sendable]:
    """Train one round, or repeat the answer to a request that came before.

    Raises:
        PolicyError: the site does not train, or its policy holds the update back.
        RefusedError: the request's tensors are not what its network demands.
    """
    kept = kept_reply(session.config.folder, request)
    if kept is not None:
        session.egress.repeat(*kept)
        return kept
    if session.config.role != "train":
        raise PolicyError("this site only evaluates; it was asked to train")
    reply, sent, residuals = _train(session, request, groups)
    keep_reply(session.config.folder, request, reply, sent, residuals)
    return reply, sent


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
    model = build_network(own, 0)
    check_tensors(groups, shapes_of(state_by_group(model)))
    load_groups(model, groups)
    return model


def _train(
    session: SiteSession, request: TrainRequest, groups: Groups
) -> tuple[TrainReply, Sendable, Residuals]:
    config = session.config
    model = network_from(groups, request.network)
    set_recompute(model, config.recompute)
    settings = request.training
    if config.threads is not None:
        settings = settings.model_copy(update={"threads": config.threads})
    task = f"{config.name}: training steps of round {request.round}"
    summary = train(
        model,
        session.cohort(request.grid).train,
        settings,
        seed=derive_seed(
            request.seed, round_number=request.round, site=config.name, purpose="training"
        ),
        device=torch.device(config.device),
        progress=lambda step, _: progress.report(task, step, settings.local_steps),
    )
    _log.info(
        "%s: round %d: mean loss %.4f in %.1f s",
        config.name,
        request.round,
        summary.mean_loss,
        summary.seconds,
    )
    after = state_by_group(model)
    deltas = {
        g: {n: np.asarray(after[g][n] - base) for n, base in t.items()} for g, t in groups.items()
    }
    before = residual_before(config.folder, request)
    encoded = quantised(deltas, before, request.transfer)
    reply, sent = session.egress.update(
        request,
        {g: e.decoded for g, e in encoded.items()} or deltas,
        session.counts(request.grid),
        shapes=shapes_of(after),
        duration_s=summary.seconds,
        payloads={g: e.payload for g, e in encoded.items()} or None,
    )
    return reply, sent, residuals_after(before, encoded, sent)

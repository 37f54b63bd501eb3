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
from iedn.protocol.records import Groups
from iedn.seeding import derive_seed
from iedn.training import TrainingSummary, train
from sites.egress import Deltas, PrivateWork
from sites.privacy import check_demand

from .kept_reply import keep_reply, kept_reply
from .session import SiteSession

_log = logging.getLogger(__name__)


def answer_training(
    session: SiteSession, request: TrainRequest, groups: Groups
) -> tuple[TrainReply, Deltas]:
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
    reply, deltas = _train(session, request, groups)
    keep_reply(session.config.folder, request, reply, deltas)
    return reply, deltas


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
) -> tuple[TrainReply, Deltas]:
    config = session.config
    model = network_from(groups, request.network)
    set_recompute(model, config.recompute)
    summary, private = _trained(session, request, model)
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
    return session.egress.update(
        request,
        deltas,
        session.counts(request.grid),
        shapes=shapes_of(after),
        duration_s=summary.seconds,
        private=private,
    )


def _trained(
    session: SiteSession, request: TrainRequest, model: Network
) -> tuple[TrainingSummary, PrivateWork | None]:
    """Train in place, with noise if the site's policy says so."""
    config, settings = session.config, request.training
    if config.threads is not None:
        settings = settings.model_copy(update={"threads": config.threads})
    task = f"{config.name}: training steps of round {request.round}"

    def report(step: int, _: float) -> None:
        progress.report(task, step, settings.local_steps)

    if config.privacy.is_on:
        from .private_training import train_with_noise

        return train_with_noise(session, request, model, settings, report)
    check_demand(config.privacy, request.privacy)
    seed = derive_seed(
        request.seed, round_number=request.round, site=config.name, purpose="training"
    )
    device, scans = torch.device(config.device), session.cohort(request.grid).train
    return train(model, scans, settings, seed=seed, device=device, progress=report), None

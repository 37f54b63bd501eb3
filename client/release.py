"""A release at a site: the finished model, whole, with its card, kept for the site's own use."""

from pathlib import Path

from iedn.checkpoint import save_checkpoint
from iedn.errors import RefusedError
from iedn.files import atomic_write_bytes
from iedn.model import build_network
from iedn.parameters import flatten, state_by_group, state_hash
from iedn.protocol.checks import check_tensors, shapes_of
from iedn.protocol.messages import ReleaseReceipt, ReleaseRequest
from iedn.protocol.records import Groups

from .session import SiteSession

MODELS = "models"
"""Folder of the released models, in the site's folder."""


def answer_release(session: SiteSession, request: ReleaseRequest, groups: Groups) -> ReleaseReceipt:
    """Check a released model, write it and its card, and acknowledge it.

    Raises:
        PolicyError: the site takes no part in this run.
        RefusedError: the tensors are not the whole network, or not those the card names.
    """
    session.check_run(request.run)
    check_tensors(groups, shapes_of(state_by_group(build_network(request.network, 0))))
    tensors = flatten(groups)
    found = state_hash(tensors)
    if found != request.base_hash:
        raise RefusedError("wrong-base", f"the tensors hash to {found}, not {request.base_hash}")
    path = model_path(session.config.folder, request)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "run": request.run,
        "round": str(request.round),
        "grid": request.grid.model_dump_json(),
        "trained_on": request.card.trained_on,
    }
    save_checkpoint(path, tensors, request.network, metadata=metadata)
    card = request.card.model_dump_json(indent=2) + "\n"
    atomic_write_bytes(path.with_suffix(".card.json"), card.encode())
    return session.egress.receipt(request)


def model_path(folder: Path, request: ReleaseRequest) -> Path:
    """``models/RUN-<first 12 digits of the hash>.safetensors`` in the site's folder."""
    return folder / MODELS / f"{request.run}-{request.base_hash[:12]}.safetensors"

"""The site's Flower ``ClientApp``: messages in, messages out, nothing else.

An error never reaches Flower, which would send its text to the coordinator: it becomes a code
and an incident id.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from iedn.protocol.messages import (
    CapabilitiesRequest,
    EvaluateRequest,
    MaskKeyRequest,
    ReleaseRequest,
    RoundRequest,
    TrainRequest,
)
from iedn.protocol.records import parse, parse_groups, to_record
from sites.config import SITE_FILE, find_site
from sites.failure import failure_of

from .activity import Activity, report
from .diagnostic import answer_diagnostic
from .evaluation import answer_metrics
from .held_model import held_hash, received_groups
from .masked_training import answer_mask_key
from .release import answer_release
from .session import SiteSession, session_for
from .training import answer_training

app = ClientApp()

Request = TypeVar("Request", bound=CapabilitiesRequest | RoundRequest)
Handler = Callable[[SiteSession, Message], RecordDict]


@app.query()
def capabilities(message: Message, context: Context) -> Message:
    """Answer with the site's role and coarsened counts."""
    return _answer(message, context, _capabilities)


@app.query("partition")
def partition(message: Message, context: Context) -> Message:
    """Answer which partition of a simulation this node plays."""
    number = int(str(context.node_config["partition-id"]))
    return Message(RecordDict({"node": ConfigRecord({"id": number})}), reply_to=message)


@app.query("release")
def release(message: Message, context: Context) -> Message:
    """Keep the finished model and answer with a receipt."""
    return _answer(message, context, _release)


@app.query("mask_key")
def mask_key(message: Message, context: Context) -> Message:
    """Answer with the site's signed key for the masks of a round."""
    return _answer(message, context, _mask_key)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with an update."""
    return _answer(message, context, _train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer with aggregates."""
    return _answer(message, context, _evaluate)


def _answer(message: Message, context: Context, handle: Handler) -> Message:
    try:
        record = _handled(session_for(_site_file(context)), handle, message)
    except Exception as error:  # no session, or its release log cannot be written
        record = to_record(failure_of(error))
    return Message(record, reply_to=message)


def _handled(session: SiteSession, handle: Handler, message: Message) -> RecordDict:
    try:
        return handle(session, message)
    except Exception as error:
        return to_record(session.egress.failure(error))


def _begun(message: Message, expected: type[Request]) -> Request:
    """The request, which is now worked on; an answer counts as long as its message lives."""
    request = parse(message.content, expected)
    report(
        Activity(
            "working",
            asked=request.kind.removesuffix("-request"),
            run=request.run,
            round=request.round if isinstance(request, RoundRequest) else None,
            deadline=message.metadata.created_at + message.metadata.ttl,
        )
    )
    return request


def _capabilities(session: SiteSession, message: Message) -> RecordDict:
    request = _begun(message, CapabilitiesRequest)
    session.check_run(request.run)
    counts = session.counts(request.grid)
    holds = held_hash(session.config.folder, request.run)
    return to_record(session.egress.capabilities(session.config.role, counts, request.run, holds))


def _mask_key(session: SiteSession, message: Message) -> RecordDict:
    request = _begun(message, MaskKeyRequest)
    session.check_run(request.run)
    return to_record(answer_mask_key(session, request))


def _train(session: SiteSession, message: Message) -> RecordDict:
    request = _begun(message, TrainRequest)
    session.check_run(request.run)
    groups = received_groups(session.config.folder, request, message.content)
    return to_record(*answer_training(session, request, groups))


def _evaluate(session: SiteSession, message: Message) -> RecordDict:
    request = _begun(message, EvaluateRequest)
    session.check_run(request.run)
    answer = answer_metrics if request.evaluation == "metrics" else answer_diagnostic
    groups = received_groups(session.config.folder, request, message.content)
    return to_record(answer(session, request, groups))


def _release(session: SiteSession, message: Message) -> RecordDict:
    request = _begun(message, ReleaseRequest)
    return to_record(answer_release(session, request, parse_groups(message.content)))


def _site_file(context: Context) -> Path:
    """The site this node plays: named by its own node configuration, or by its partition."""
    if "site" in context.node_config:
        return find_site(str(context.node_config["site"]))
    folders = sorted(p.parent for p in _sites_folder(context).glob(f"*/{SITE_FILE}"))
    return folders[int(str(context.node_config["partition-id"]))] / SITE_FILE


def _sites_folder(context: Context) -> Path:
    return Path(str(context.run_config["run-dir"])) / "sites"

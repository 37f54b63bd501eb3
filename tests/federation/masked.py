"""A federation under secure aggregation, for tests: real coordinator, real sites, no scans.

Only the training itself is played: it moves every parameter by a random step that derives from the
request's seed, as real training derives from it. Keys, masks, gates and files are the real ones.
"""

import json
from types import SimpleNamespace

import numpy as np
import tomli_w
import torch
from flwr.app import Context, Message, RecordDict

import client.app
import client.training
import server.app
from client.session import SiteSession, forget_sessions
from iedn.checkpoint import load_checkpoint
from iedn.modalities import Modality
from iedn.parameters import group_of
from iedn.protocol.messages import TrainRequest
from iedn.protocol.records import parse, parse_encoded, parse_groups, to_record
from server.config import load_federation
from simulation.grid import LocalGrid
from simulation.prepare import make_identities
from sites.config import SITE_FILE
from sites.egress import TrainingCounts
from sites.metrics_release import ScanRow

T1, ASL = Modality.T1WI, Modality.ASL
SCANS = {
    "site-a": {T1: 20, ASL: 20},
    "site-b": {T1: 35, ASL: 5},
    "site-c": {T1: 10, ASL: 10},
    "site-d": {T1: 60},
}
SITES = tuple(SCANS)


def play(monkeypatch):
    """Put the played training and evaluation in the place of the real ones."""

    def train(model, dataset, settings, *, seed, device, progress):
        generator = torch.Generator().manual_seed(seed % 2**63)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
        return SimpleNamespace(mean_loss=0.5, seconds=1.2)

    def counts(session, grid):
        found = SCANS[session.config.name]
        return TrainingCounts(max(found.values()), max(found.values()), found, found)

    def metrics(session, request, groups):
        values = {"psnr_db": 20.0 + request.round}
        rows = [ScanRow(f"sub-{n:04d}", "ses-1", frozenset({T1}), values) for n in range(10)]
        return session.egress.metrics(request, rows)

    monkeypatch.setattr(client.training, "train", train)
    monkeypatch.setattr(SiteSession, "counts", counts)
    monkeypatch.setattr(SiteSession, "cohort", lambda *_: SimpleNamespace(train=None))
    monkeypatch.setattr(client.app, "answer_metrics", metrics)
    monkeypatch.setattr(server.app, "write_report", lambda *_: None)  # pictures take their time


def federation(folder, *, mode="on", count=2, quorum=3, policies=None, noise=None, **changes):
    """Write the files of a coordinator and of its sites; returns the folder.

    ``policies`` and ``noise`` are ``[policy]`` and ``[privacy]`` of single sites.
    """
    folder.mkdir(exist_ok=True)
    rounds = {"count": count, "quorum": quorum, "poll_interval_s": 0.01, "deadline_s": 20.0}
    rounds |= {"join_timeout_s": 5.0, "offline_grace_s": 0.1}
    content = {"run": "run-1", "seed": 1, "preset": "tiny", "simulation": True, "rounds": rounds}
    content |= {"secure_aggregation": mode, "sites": {s: {} for s in SITES}, **changes}
    (folder / "federation.toml").write_bytes(tomli_w.dumps(content).encode())
    for site in SITES:
        own = folder / "sites" / site
        own.mkdir(parents=True, exist_ok=True)
        policy = {"min_patients": 1, "min_group_sites": 3, **(policies or {}).get(site, {})}
        told = {"name": site, "manifest": "manifest.csv", "policy": policy}
        told |= {"privacy": (noise or {}).get(site, {})}
        (own / SITE_FILE).write_text(tomli_w.dumps(told))
    make_identities(load_federation(folder / "federation.toml"), folder)
    return folder


class Wire(LocalGrid):
    """A grid whose coordinator may be a liar.

    Attributes:
        tamper: changes what a site is asked; takes site, request, groups; None: it is not asked.
        answered: every reply to a train request, by (site, round).
    """

    def __init__(self, folder):
        nodes = {s: {"site": str(folder / "sites" / s / SITE_FILE)} for s in SITES}
        super().__init__(client.app.app, nodes, {"run-dir": str(folder), "registry": "names"})
        self.tamper = lambda site, request, groups: (request, groups)
        self.answered = {}

    def push_messages(self, messages):
        return [i for m in messages for i in super(Wire, self).push_messages(self._told(m))]

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if reply.metadata.message_type == "train" and "decoder" in reply.content:
                number = json.loads(str(reply.content["message"]["json"]))["round"]
                site = self._names[reply.metadata.src_node_id]
                self.answered[site, number] = parse_groups(reply.content)
        return replies

    def ask(self, site, request, groups):
        """Ask one site now; returns its record."""
        (node,) = (n for n, name in self._names.items() if name == site)
        message = Message(to_record(request, groups), node, "train")
        (reply,) = self.send_and_receive([message])
        return reply.content

    def _told(self, message):
        if message.metadata.message_type == "train" and self.tamper is not None:
            site = self._names[message.metadata.dst_node_id]
            request = parse(message.content, TrainRequest)
            groups = {**parse_groups(message.content), **parse_encoded(message.content)}
            told = self.tamper(site, request, groups)
            if told is None:
                self.offline.add(site)
                return []
            message.__dict__["_content"] = to_record(*told)
        return [message]


def run(folder, tamper=None, *, grid=None):
    """Run the federation to its end; returns the grid that has seen it all."""
    wire = grid or Wire(folder)
    if tamper is not None:
        wire.tamper = tamper
    config = {"run-dir": str(folder), "registry": "names"}
    try:
        server.app.app(wire, Context(1, 1, {}, RecordDict(), config))
    finally:
        wire.close()
        forget_sessions()
    return wire


def events(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def commits(folder):
    return {e["round"]: e for e in events(folder) if e["event"] == "commit"}


def moved(folder, number):
    """Groups that differ between two committed rounds."""
    before = load_checkpoint(folder / f"round-{number - 1:04d}.safetensors").tensors
    after = load_checkpoint(folder / f"round-{number:04d}.safetensors").tensors
    return {group_of(n) for n in before if not np.array_equal(before[n], after[n])}

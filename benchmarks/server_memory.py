"""Peak memory of the coordinator with few and with many sites.

The real round loop (exchange, gate, exact sum, commit) with stub sites that own every group and
make their reply only when it is fetched. Each case is a process of its own; prints one JSON
object: the peak resident set by number of sites, and the largest over the smallest.

    python benchmarks/server_memory.py --sites 2 16 64
    python benchmarks/server_memory.py --sites 2 16 64 --base-channels 35 --rounds 1    # ~700 MB
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from iedn import __version__
from iedn.config import PRESETS, Preset
from iedn.modalities import Modality
from iedn.parameters import groups_for
from iedn.protocol.checks import Shapes, shapes_of
from iedn.protocol.messages import (
    CapabilitiesRequest,
    EvaluateReply,
    EvaluateRequest,
    MaskKeyRequest,
    SiteCapabilities,
    TrainReply,
    TrainRequest,
)
from iedn.protocol.records import parse, parse_groups, to_record
from server.config import FederationConfig
from server.registry import NamedRegistry
from server.run import run_federation
from server.run_folder import RunFolder

SCANS = 20
STEP = 1e-3
MEGABYTE = 10**6
REQUESTS = {
    "query": CapabilitiesRequest,
    "query.mask_key": MaskKeyRequest,
    "train": TrainRequest,
    "evaluate": EvaluateRequest,
}
Request = CapabilitiesRequest | MaskKeyRequest | TrainRequest | EvaluateRequest


class StubGrid(Grid):
    """Keeps a request without its tensors, and makes the reply when it is fetched."""

    def __init__(self, sites: Iterable[str]) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self._names = dict(enumerate(sites, start=100))
        self._open: dict[str, tuple[str, Request]] = {}
        self._shapes: Shapes = {}
        self._number = 0
        self._run = Run.create_empty(1)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *_: object, **__: object) -> Message:
        raise NotImplementedError("the round loop makes its messages itself")

    def get_node_ids(self) -> list[int]:
        return list(self._names)

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=n, name=name) for n, name in self._names.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._asked(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [Message(self._reply(*self._open.pop(i)), 1, "train") for i in message_ids]

    def send_and_receive(self, *_: object, **__: object) -> list[Message]:
        raise NotImplementedError("the round loop streams")

    def _asked(self, message: Message) -> str:
        self._number += 1
        key = str(self._number)
        site = self._names[message.metadata.dst_node_id]
        self._open[key] = site, parse(message.content, REQUESTS[message.metadata.message_type])
        if message.metadata.message_type == "train" and not self._shapes:
            self._shapes = shapes_of(parse_groups(message.content))
        return key

    def _reply(self, site: str, request: Request) -> RecordDict:
        if isinstance(request, TrainRequest):
            return self._update(site, request)
        if isinstance(request, EvaluateRequest):
            common = request.model_dump(include={"run", "round", "base_hash", "split"})
            metrics = {"psnr_db_mean": 20.0 + request.round}
            evaluation = request.evaluation
            reply = EvaluateReply(**common, evaluation=evaluation, metrics=metrics, num_scans=SCANS)
            return to_record(reply)
        counts = dict.fromkeys(Modality, SCANS)
        return to_record(
            SiteCapabilities(
                role="train",
                num_training_scans=SCANS,
                scans_by_modality=counts,
                code_version=__version__,
            )
        )

    def _update(self, site: str, request: TrainRequest) -> RecordDict:
        """Group by group, so that the stub holds one group besides the reply itself."""
        common = request.model_dump(include={"run", "round", "base_hash"})
        weights = dict.fromkeys(groups_for(Modality), SCANS)
        reply = TrainReply(**common, weights=weights, duration_s=1)
        record = to_record(reply)
        for group, shapes in self._shapes.items():
            deltas = {n: np.full(shape, STEP, np.float32) for n, shape in shapes.items()}
            record[group] = to_record(reply, {group: deltas})[group]
        return record


def measure(preset: Preset, num_sites: int, rounds: int) -> dict[str, object]:
    """One run in this process, and the most memory it has had resident."""
    sites = [f"site-{i:02d}" for i in range(num_sites)]
    config = FederationConfig.model_validate(
        {
            "run": "memory",
            "seed": 1,
            "custom_preset": preset.model_dump(),
            "simulation": True,
            "rounds": {"count": rounds, "quorum": num_sites, "poll_interval_s": 0.01, "keep": 2},
            "sites": {site: {} for site in sites},
        }
    )
    before, started = resident("VmRSS"), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        runs = RunFolder(Path(folder), config)
        result = run_federation(StubGrid(sites), NamedRegistry(sites), config, runs)
        commits = [e for e in runs.events() if e["event"] == "commit"]
        model_bytes = commits[-1]["roster"][sites[0]]["bytes"]
    accepted = sum(len(e["accepted_norms"]) for e in commits)
    return {
        "sites": num_sites,
        "updates_accepted": accepted,
        "model_hash": result.model_hash,
        "model_mb": round(model_bytes / MEGABYTE, 1),
        "before_the_run_mb": round(before, 1),
        "peak_mb": round(resident("VmHWM"), 1),
        "seconds": round(time.monotonic() - started, 1),
    }


def preset_of(arguments: argparse.Namespace) -> Preset:
    """The preset that was named, with another width if one was given."""
    preset = PRESETS[arguments.preset]
    if not arguments.base_channels:
        return preset
    wider = {"base_channels": arguments.base_channels}
    return preset.model_copy(update={"network": preset.network.model_copy(update=wider)})


def resident(key: str) -> float:
    """Resident set now (VmRSS) or at its peak (VmHWM) of this process, MB; Linux."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, status
    return int(found[1]) * 1024 / MEGABYTE


def in_fresh_process(arguments: argparse.Namespace, num_sites: int) -> dict[str, object]:
    words = ["--case", str(num_sites), "--preset", arguments.preset]
    if arguments.base_channels:
        words += ["--base-channels", str(arguments.base_channels)]
    command = [sys.executable, __file__, *words, "--rounds", str(arguments.rounds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603  (this script)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 16, 64])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="paper")
    parser.add_argument("--base-channels", type=int, help="width, in place of the preset's")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--case", type=int, help="measure this process with so many sites")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(preset_of(arguments), arguments.case, arguments.rounds)))
        return
    cases = [in_fresh_process(arguments, n) for n in arguments.sites]
    peaks = [float(str(case["peak_mb"])) for case in cases]
    ratio = round(max(peaks) / min(peaks), 3)
    report = {"preset": arguments.preset, "rounds": arguments.rounds, "ratio": ratio}
    print(json.dumps({**report, "cases": cases}, indent=1))


if __name__ == "__main__":
    main()

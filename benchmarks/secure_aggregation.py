"""What secure aggregation costs, as ratios to the plain sum: server memory, seconds, bytes a site.

The real round loop (exchange, gate, sum, commit) with stub sites that own every group, plain and
masked by turns, each in a process of its own; and, in one process, what a site does with an update
after training (gate, masks, kept reply, release log, record). Prints one JSON object. The models of
both kinds must have the same hash.

    python benchmarks/secure_aggregation.py --table docs/results/secure-aggregation.md
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import ArrayRecord, Message, RecordDict
from server_memory import MEGABYTE, SCANS, STEP, Request, StubGrid, resident
from speed_work import machine

from client.kept_reply import keep_reply
from iedn.config import PRESETS, Preset, TrainingConfig
from iedn.files import atomic_write_bytes
from iedn.identity import public_line
from iedn.masking import MaskRound, OwnMaskKey, masked, roster_digest, signed_mask_key
from iedn.modalities import Modality
from iedn.model import build_network
from iedn.parameters import groups_for, state_by_group
from iedn.protocol.checks import shapes_of
from iedn.protocol.messages import MaskKey, MaskKeyReply, MaskKeyRequest, TrainReply, TrainRequest
from iedn.protocol.records import to_record
from server.config import FederationConfig
from server.provisioning import ADMITTED
from server.registry import NamedRegistry
from server.run import run_federation
from server.run_folder import RunFolder
from sites.changes import Deltas, decoded
from sites.config import PolicyConfig
from sites.egress import Egress, TrainingCounts
from sites.release_log import ReleaseLog

GROUPS = groups_for(Modality)


class MaskingGrid(StubGrid):
    """Stub sites that mask if they are asked to; knows how long they took."""

    def __init__(self, sites: Iterable[str]) -> None:
        super().__init__(sites)
        self.identities = {s: ec.generate_private_key(ec.SECP384R1()) for s in self._names.values()}
        self.own: dict[str, OwnMaskKey] = {}
        self.seconds = 0.0
        self.bytes_down = self.bytes_up = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        asked = [m for m in messages if m.metadata.message_type in ("train", "query.mask_key")]
        self.bytes_down += sum(size_of(m.content) for m in asked)
        return super().push_messages(messages)

    def _reply(self, site: str, request: Request) -> RecordDict:
        started = time.perf_counter()
        is_key = isinstance(request, MaskKeyRequest)
        record = self._mask_key(site, request) if is_key else super()._reply(site, request)
        if isinstance(request, MaskKeyRequest | TrainRequest):
            self.bytes_up += size_of(record)
        self.seconds += time.perf_counter() - started
        return record

    def _mask_key(self, site: str, request: MaskKeyRequest) -> RecordDict:
        own = OwnMaskKey(site, X25519PrivateKey.generate(), MaskRound.of(request))
        self.own[site] = own
        key = signed_mask_key(own, GROUPS, self.identities[site])
        return to_record(MaskKeyReply(**_round(request), mask_key=key))

    def _update(self, site: str, request: TrainRequest) -> RecordDict:
        if request.mask_keys is None:
            return super()._update(site, request)
        digest = roster_digest(MaskRound.of(request), request.mask_keys)
        weights = dict.fromkeys(GROUPS, SCANS)
        reply = TrainReply(**_round(request), weights=weights, duration_s=1, mask_roster=digest)
        record = to_record(reply)
        for group, shapes in self._shapes.items():
            deltas = {group: {n: np.full(s, STEP, np.float32) for n, s in shapes.items()}}
            tensors = masked(deltas, weights, self.own[site], request.mask_keys)
            record[group] = to_record(reply, tensors)[group]
        return record


def _round(request: MaskKeyRequest | TrainRequest) -> dict[str, object]:
    return request.model_dump(include={"run", "round", "base_hash"})


def size_of(record: RecordDict) -> int:
    """Bytes of a record's tensors and of its message."""
    tensors = sum(
        len(array.data)
        for r in record.values()
        if isinstance(r, ArrayRecord)
        for array in r.values()
    )
    return tensors + len(str(record["message"]["json"]))


def measure_server(preset: str, num_sites: int, rounds: int, mode: str) -> dict[str, object]:
    """One run in this process: its peak memory, and its seconds without those of the stubs."""
    sites = [f"site-{i:02d}" for i in range(num_sites)]
    loop = {"count": rounds, "quorum": num_sites, "poll_interval_s": 0.01, "keep": 2}
    content = {"run": "masks", "seed": 1, "preset": preset, "simulation": True, "rounds": loop}
    content |= {"sites": {site: {} for site in sites}, "secure_aggregation": mode}
    config = FederationConfig.model_validate(content)
    grid = MaskingGrid(sites)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / ADMITTED).mkdir()
        for site, identity in grid.identities.items():
            line = public_line(identity.public_key(), site)
            atomic_write_bytes(folder / ADMITTED / f"{site}.pub", line.encode())
        started = time.perf_counter()
        result = run_federation(grid, NamedRegistry(sites), config, RunFolder(folder, config))
        seconds = time.perf_counter() - started - grid.seconds
    return {
        "model_hash": result.model_hash,
        "peak_mb": round(resident("VmHWM"), 1),
        "server_seconds_a_round": round(seconds / rounds, 3),
        "mb_down_a_site_and_round": round(grid.bytes_down / MEGABYTE / num_sites / rounds, 2),
        "mb_up_a_site_and_round": round(grid.bytes_up / MEGABYTE / num_sites / rounds, 2),
    }


class Site:
    """A site with an update that is ready, in a folder of its own."""

    def __init__(self, preset: Preset, num_sites: int, folder: Path) -> None:
        self.folder = folder
        self.egress = Egress(PolicyConfig(), ReleaseLog(folder / "releases.jsonl"))
        groups = state_by_group(build_network(preset.network, 1))
        self.shapes = shapes_of(groups)
        self.deltas: Deltas = {
            g: {n: np.full_like(x, STEP) for n, x in tensors.items()}
            for g, tensors in groups.items()
        }
        present = dict.fromkeys(Modality, SCANS)
        self.counts = TrainingCounts(SCANS, SCANS, present, present)
        self.request = TrainRequest(
            run="masks",
            round=1,
            base_hash="0" * 64,
            grid=preset.grid,
            network=preset.network,
            training=TrainingConfig(),
            seed=1,
            group_sites=dict.fromkeys(GROUPS, num_sites),
            group_shares=dict.fromkeys(GROUPS, -(-100 // num_sites)),
        )
        self.peers = [f"site-{i:02d}" for i in range(num_sites)]

    def plain(self, number: int) -> RecordDict:
        request = self.request.model_copy(update={"round": 2 * number + 1})
        reply, passed = self.egress.checked_update(
            request, self.deltas, self.counts, shapes=self.shapes, duration_s=1.0
        )
        sent = self.egress.update(reply, passed)
        keep_reply(self.folder, request, reply, sent)
        return to_record(reply, sent)

    def masked(self, number: int) -> RecordDict:
        own, keys = self._keys(MaskRound("masks", 2 * number + 2, "0" * 64))
        update = {"round": 2 * number + 2, "mask_keys": keys}
        request = self.request.model_copy(update=update)
        reply, passed = self.egress.checked_update(
            request, self.deltas, self.counts, shapes=self.shapes, duration_s=1.0
        )
        tensors = masked(decoded(passed), reply.weights, own, keys)
        keep_reply(self.folder, request, reply, tensors)
        self.egress.masked_update(reply, tensors)
        return to_record(reply, tensors)

    def _keys(self, round_: MaskRound) -> tuple[OwnMaskKey, dict[str, MaskKey]]:
        own = {s: OwnMaskKey(s, X25519PrivateKey.generate(), round_) for s in self.peers}
        identity = ec.generate_private_key(ec.SECP384R1())
        keys = {s: signed_mask_key(own[s], GROUPS, identity) for s in self.peers}
        return own[self.peers[0]], keys


def measure_site(preset: str, num_sites: int, repeats: int) -> dict[str, object]:
    """Median seconds from the trained update to the record that leaves, by turns."""
    seconds: dict[str, list[float]] = {"plain": [], "masked": []}
    with tempfile.TemporaryDirectory() as name:
        site = Site(PRESETS[preset], num_sites, Path(name))
        for number in range(repeats):
            for kind, release in (("plain", site.plain), ("masked", site.masked)):
                started = time.perf_counter()
                release(number)
                seconds[kind].append(time.perf_counter() - started)
    found = {kind: round(median(times), 3) for kind, times in seconds.items()}
    ratio = median(m / p for m, p in zip(seconds["masked"], seconds["plain"], strict=True))
    return {"seconds": found, "masked_over_plain": round(ratio, 2)}


def in_fresh_process(arguments: argparse.Namespace, mode: str) -> dict[str, object]:
    words = ["--case", mode, "--preset", arguments.preset, "--sites", str(arguments.sites)]
    command = [sys.executable, __file__, *words, "--rounds", str(arguments.rounds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603  (this script)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="paper")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of a site's release")
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    parser.add_argument("--case", choices=["off", "on"], help="measure this process in this mode")
    arguments = parser.parse_args()
    if arguments.case:
        rounds = arguments.rounds
        case = measure_server(arguments.preset, arguments.sites, rounds, arguments.case)
        print(json.dumps(case))
        return
    cases = {mode: in_fresh_process(arguments, mode) for mode in ("off", "on")}
    assert cases["off"]["model_hash"] == cases["on"]["model_hash"], "the sums differ"
    ratios = {
        key: round(float(str(cases["on"][key])) / float(str(cases["off"][key])), 3)
        for key in cases["on"]
        if key != "model_hash"
    }
    site = measure_site(arguments.preset, arguments.sites, arguments.repeats)
    report = {
        "machine": machine(),
        "preset": arguments.preset,
        "sites": arguments.sites,
        "masked_over_plain": ratios,
        "site_release": site,
        "server": cases,
    }
    print(json.dumps(report, indent=1))
    if arguments.table:
        arguments.table.write_text(_table(report))


def _table(report: dict[str, object]) -> str:
    titles = {
        "peak_mb": "coordinator: peak resident memory, MB",
        "server_seconds_a_round": "coordinator: seconds a round, without the sites",
        "mb_down_a_site_and_round": "to a site, MB a round",
        "mb_up_a_site_and_round": "from a site, MB a round",
    }
    plain, on = report["server"]["off"], report["server"]["on"]
    rows = [
        [title, plain[key], on[key], report["masked_over_plain"][key]]
        for key, title in titles.items()
    ]
    seconds = report["site_release"]["seconds"]
    ratio = report["site_release"]["masked_over_plain"]
    title = "a site: seconds from trained update to what leaves"
    rows.append([title, seconds["plain"], seconds["masked"], ratio])
    parts = [
        "# What secure aggregation costs",
        "",
        "`python benchmarks/secure_aggregation.py --table docs/results/secure-aggregation.md` on "
        f"{report['machine']['cpu']}. Model of the `{report['preset']}` preset, "
        f"{report['sites']} stub sites that own every group; the real round loop, each way in a "
        f"process of its own, and one site's release by turns. Both models have the hash "
        f"`{on['model_hash'][:16]}…`.",
        "",
        "| | plain | masked | ratio |",
        "|---|---|---|---|",
        *(f"| {' | '.join(map(str, cells))} |" for cells in rows),
    ]
    return "\n".join([*parts, ""])


if __name__ == "__main__":
    main()

"""A site that has joined is warm: its first round imports nothing, and no scan is read twice."""

import json
import subprocess
import sys

import pytest

COHORT = """
name = "site-a"
manifest = "manifest.csv"
workers = 1
[policy]
min_patients = 1
min_group_sites = 1
[split]
train = 0.6
validation = 0.2
test = 0.2
"""
PROGRAM = """
import json
import sys

imported, read = [], []
sys.addaudithook(lambda event, what: imported.append(what[0]) if event == "import" else None)

from client.app import app
from flwr.app import Message
from iedn.config import PRESETS, TrainingConfig
from iedn.modalities import Modality
from iedn.model import build_network
from iedn.parameters import groups_for, state_by_group
from iedn.protocol.messages import CapabilitiesRequest, TrainRequest
from iedn.protocol.records import to_record
from iedn.training import import_ahead
from simulation.grid import LocalGrid
from sites.cache import ScanCache

load = ScanCache.load
ScanCache.load = lambda self, key: (read.append(key), load(self, key))[1]
preset = PRESETS["tiny"]
model = {"grid": preset.grid, "network": preset.network}
state = state_by_group(build_network(preset.network, 1))
groups = {g: state[g] for g in groups_for([Modality.T1WI, Modality.ASL])}
grid = LocalGrid(app, {"site-a": {"site": sys.argv[1]}}, {})
(node,) = grid.get_node_ids()


def ask(request, kind, *tensors):
    (reply,) = grid.send_and_receive([Message(to_record(request, *tensors), node, kind)])
    return json.loads(reply.content["message"]["json"])


def train(number):
    imported.clear()
    reply = ask(
        TrainRequest(
            run="run-1",
            round=number,
            base_hash=f"{number:064x}",
            **model,
            training=TrainingConfig(local_steps=4),
            seed=1,
            group_sites=dict.fromkeys(groups, 3),
        ),
        "train",
        groups,
    )
    return {"weights": reply["weights"], "imported": list(imported), "read": list(read)}


import_ahead()
ask(CapabilitiesRequest(run="run-1", **model), "query")
json.dump([train(1), train(2)], sys.stdout)
"""


@pytest.fixture(scope="module")
def rounds(bad, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    bad.Site(folder, patients=6).write()
    (folder / "site.toml").write_text(COHORT)
    command = [sys.executable, "-c", PROGRAM, str(folder / "site.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_both_rounds_have_trained(rounds):
    assert all(r["weights"]["decoder"] > 0 for r in rounds)


def test_no_round_imports_anything(rounds):
    assert [r["imported"] for r in rounds] == [[], []]


def test_each_scan_is_read_from_the_cache_once(rounds):
    first, second = (r["read"] for r in rounds)
    assert first, "the first round has to read its scans"
    assert len(set(second)) == len(second)
    assert set(first) <= set(second)

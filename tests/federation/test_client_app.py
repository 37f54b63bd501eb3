"""The real ClientApp: whatever goes wrong at a site, only a code and an incident leave."""

import time

import numpy as np
import pytest
from flwr.app import RecordDict

from client import activity
from client.app import app
from client.session import forget_sessions
from iedn.config import PRESETS, TrainingConfig
from iedn.errors import ProtocolError
from iedn.model import build_network
from iedn.parameters import state_by_group
from iedn.protocol.messages import CapabilitiesRequest, FailureReply, TrainReply, TrainRequest
from iedn.protocol.records import parse, to_record
from simulation.grid import LocalGrid
from sites.config import SITE_FILE

PRESET = PRESETS["tiny"]
MODEL = {"grid": PRESET.grid, "network": PRESET.network}
JOIN = CapabilitiesRequest(run="run-1", **MODEL)
PATIENT = "sub-0007"


@pytest.fixture
def ask(tmp_path):
    """Ask the real ClientApp of a site whose files are at ``tmp_path``."""
    from flwr.app import Message

    grid = LocalGrid(app, {"site-a": {"site": str(tmp_path / SITE_FILE)}}, {})

    def asked(record, kind="query"):
        (node,) = grid.get_node_ids()
        (reply,) = grid.send_and_receive([Message(record, node, kind)])
        assert not reply.has_error(), "an exception reached Flower"
        return reply.content

    yield asked
    grid.close()
    forget_sessions()


def failure(record):
    text = str(record["message"]["json"])
    assert PATIENT not in text
    assert "/" not in text
    return parse(record, FailureReply)


def write_site(folder, manifest="manifest.csv"):
    (folder / SITE_FILE).write_text(f'name = "site-a"\nmanifest = "{manifest}"\n')


def test_missing_site_file(ask):
    assert failure(ask(to_record(JOIN))).code == "ConfigError"


def test_what_is_asked_is_reported_with_its_deadline(ask, tmp_path):
    write_site(tmp_path)
    reported = []
    end = activity.add_sink(reported.append)
    before = time.time()
    ask(to_record(JOIN))
    end()
    (found,) = reported
    assert (found.state, found.asked, found.run, found.round) == (
        "working",
        "capabilities",
        "run-1",
        None,
    )
    # Flower's messages live for 12 hours unless they say otherwise.
    assert 12 * 3600 <= found.deadline - before <= 12 * 3600 + 60


def test_missing_manifest(ask, tmp_path):
    write_site(tmp_path, f"{PATIENT}/manifest.csv")
    assert failure(ask(to_record(JOIN))).code == "CohortError"


def test_nonsense(ask, tmp_path):
    write_site(tmp_path)
    assert failure(ask(RecordDict())).code == "malformed"
    assert failure(ask(to_record(JOIN), "train")).code == "wrong-message"


def test_release_log_that_cannot_be_trusted(ask, tmp_path):
    write_site(tmp_path)
    (tmp_path / "releases.jsonl").write_text('{"kind": "forged"}\n')
    assert failure(ask(to_record(JOIN))).code == "CohortError"


def with_nan(groups):
    next(iter(groups["decoder"].values())).flat[0] = np.nan


def with_inf(groups):
    next(iter(groups["decoder"].values())).flat[0] = np.inf


def with_a_foreign_key(groups):
    groups["decoder"]["decoder.intruder"] = np.zeros(1, np.float32)


def without_a_key(groups):
    groups["decoder"].popitem()


def with_a_foreign_group(groups):
    groups["hook"] = {"hook.code": np.zeros(1, np.float32)}


def with_integers(groups):
    name = next(iter(groups["decoder"]))
    groups["decoder"][name] = groups["decoder"][name].astype(np.int64)


def with_another_shape(groups):
    name = next(iter(groups["decoder"]))
    groups["decoder"][name] = groups["decoder"][name][None]


POISONED = [
    (with_nan, "not-finite"),
    (with_inf, "not-finite"),
    (with_a_foreign_key, "wrong-key"),
    (without_a_key, "wrong-key"),
    (with_a_foreign_group, "wrong-group"),
    (with_integers, "wrong-dtype"),
    (with_another_shape, "wrong-shape"),
]


@pytest.mark.parametrize(("poison", "code"), POISONED, ids=[p.__name__ for p, _ in POISONED])
def test_poisoned_global_model_is_refused_by_the_site(ask, tmp_path, poison, code):
    write_site(tmp_path)
    groups = state_by_group(build_network(PRESET.network, 1))
    groups = {g: dict(groups[g]) for g in ("encoder.T1WI", "decoder")}
    poison(groups)
    request = TrainRequest(
        run="run-1",
        round=1,
        base_hash="a" * 64,
        **MODEL,
        training=TrainingConfig(),
        seed=1,
        group_sites={"encoder.T1WI": 1, "decoder": 1},
    )
    record = ask(to_record(request, groups), "train")
    assert failure(record).code == code
    with pytest.raises(ProtocolError, match="incident"):
        parse(record, TrainReply)

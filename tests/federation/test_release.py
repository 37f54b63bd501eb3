"""The finished model reaches every site, whole; the real ClientApp keeps nothing else."""

import json

import numpy as np
import pytest
from flwr.app import Message

from client.app import app
from client.model_file import load_model_file
from client.session import forget_sessions
from iedn.checkpoint import load_checkpoint
from iedn.errors import ConfigError
from iedn.model import build_network
from iedn.parameters import flatten, state_by_group, state_hash
from iedn.protocol.messages import (
    FailureReply,
    ModelCard,
    ReleaseReceipt,
    ReleaseRequest,
)
from iedn.protocol.records import parse, to_record
from server.config import FederationConfig
from server.federation import Federation
from server.registry import NamedRegistry
from server.release import release_model
from server.run_folder import RunFolder
from simulation.grid import LocalGrid
from sites.config import SITE_FILE
from sites.release_log import verify

RUN = "glioma-cbv"
SITES = {"site-a": "train", "site-b": "train", "qilu": "evaluate"}
CONFIG = FederationConfig.model_validate(
    {
        "run": RUN,
        "seed": 1,
        "preset": "tiny",
        "rounds": {
            "count": 2,
            "quorum": 1,
            "poll_interval_s": 0.01,
            "deadline_s": 20.0,
            "offline_grace_s": 0.1,
        },
        "sites": {site: {"role": role} for site, role in SITES.items()},
    }
)
PRESET = CONFIG.effective_preset


def accepted(*groups):
    return {"status": "accepted", "weights": dict.fromkeys(groups, 10)}


def quality(psnr, mae, scans):
    metrics = {"psnr_db_mean": psnr, "psnr_db_sd": 1.0, "mae_mean": mae}
    return {"metrics": metrics, "num_scans": scans}


@pytest.fixture
def folder(tmp_path):
    """A run of two rounds whose best model is that of round 1."""
    folder = RunFolder(tmp_path / "run", CONFIG)
    asl, t1 = "encoder.ASL", "encoder.T1WI"
    rosters = {
        1: {"site-a": accepted(asl, t1, "decoder"), "site-b": accepted(t1, "decoder")},
        2: {"site-a": {"status": "late"}, "site-b": accepted(t1, "encoder.ADC", "decoder")},
    }
    for number, roster in rosters.items():
        model = state_by_group(build_network(PRESET.network, number))
        commit = folder.commit(number, model, {}, {"roster": roster, "accepted_norms": []})
        if number == 1:
            folder.save_best(commit)
            sites = {"site-a": quality(20.0, 0.06, 5), "site-b": quality(23.0, 0.04, 10)}
            for split in ("validation", "test"):
                folder.append(
                    {
                        "event": "evaluation",
                        "evaluation": "metrics",
                        "split": split,
                        "model_hash": commit["model_hash"],
                        "sites": sites if split == "test" else {},
                    }
                )
    folder.append({"event": "finished", "best_round": 1})
    return folder


@pytest.fixture
def grid(tmp_path):
    """The real ClientApp of three sites; qilu has a coordinator, the others are simulated."""
    for site, role in SITES.items():
        home = tmp_path / site
        home.mkdir()
        text = f'name = "{site}"\nrole = "{role}"\nmanifest = "manifest.csv"\n'
        if site == "qilu":
            text += f'[coordinator]\naddress = "localhost:9092"\nfederations = ["{RUN}"]\n'
        (home / SITE_FILE).write_text(text)
    nodes = {site: {"site": str(tmp_path / site / SITE_FILE)} for site in SITES}
    grid = LocalGrid(app, nodes, {})
    yield grid
    grid.close()
    forget_sessions()


def released(grid, folder):
    return release_model(Federation(grid, NamedRegistry(SITES), CONFIG), folder)


def kept(home):
    return sorted(p.name for p in (home / "models").glob("*")) if (home / "models").exists() else []


def test_every_site_gets_the_whole_best_model_and_its_card(folder, grid, tmp_path):
    assert released(grid, folder) == {site: {"status": "received"} for site in sorted(SITES)}
    _, best_hash, _ = folder.load_best()
    stem = f"{RUN}-{best_hash[:12]}"
    for site in SITES:
        assert kept(tmp_path / site) == [f"{stem}.card.json", f"{stem}.safetensors"]
        file = load_model_file(tmp_path / site / "models" / f"{stem}.safetensors")
        assert (file.model_hash, file.round_number) == (best_hash, 1)
        assert set(file.config.modalities) == set(PRESET.network.modalities)
        (entry,) = verify(tmp_path / site / "releases.jsonl")
        assert entry["kind"] == "release-receipt"
    event = folder.events()[-1]
    assert (event["event"], event["round"], event["model_hash"]) == ("release", 1, best_hash)


def test_card_says_who_trained_what_and_how_well(folder, grid, tmp_path):
    released(grid, folder)
    (path,) = (tmp_path / "qilu" / "models").glob("*.card.json")
    assert path.read_text() == (folder.path / "best.card.json").read_text()
    card = ModelCard.model_validate_json(path.read_text())
    assert (card.run, card.round, card.trained_on) == (RUN, 1, "patients")
    assert card.use == "research use only, not for diagnosis"
    assert card.num_training_sites == 2
    assert card.group_sites["decoder"] == card.group_sites["encoder.T1WI"] == 2
    assert card.group_sites["encoder.ASL"] == 1
    assert card.group_sites["encoder.ADC"] == 0, "trained after this model only"
    assert card.metrics == {
        "test_sites": 2.0,
        "test_scans": 15.0,
        "test_psnr_db_mean": 21.5,
        "test_psnr_db_mean_worst_site": 20.0,
        "test_mae_mean": 0.05,
        "test_mae_mean_worst_site": 0.06,
    }


def test_released_again_nothing_changes(folder, grid, tmp_path):
    released(grid, folder)
    before = kept(tmp_path / "site-a")
    released(grid, folder)
    assert kept(tmp_path / "site-a") == before
    (path,) = (tmp_path / "site-a" / "models").glob("*.safetensors")
    assert load_checkpoint(path).model_hash == folder.load_best()[1]


def test_site_of_other_runs_only_keeps_nothing_and_is_named(folder, grid, tmp_path):
    path = tmp_path / "qilu" / SITE_FILE
    path.write_text(path.read_text().replace(RUN, "another-run"))
    roster = released(grid, folder)
    assert (roster["qilu"]["status"], roster["qilu"]["code"]) == ("failed", "failure")
    assert roster["qilu"]["reason"].startswith("policy ")
    assert roster["site-a"]["status"] == "received"
    assert kept(tmp_path / "qilu") == []


def test_site_that_is_offline_is_named(folder, grid, tmp_path):
    grid.offline.add("site-b")
    roster = released(grid, folder)
    assert roster["site-b"] == {"status": "offline"}
    assert roster["qilu"]["status"] == "received"


def test_run_that_goes_on_is_not_released(grid, tmp_path):
    folder = RunFolder(tmp_path / "run", CONFIG)
    with pytest.raises(ConfigError, match="not finished"):
        released(grid, folder)


def spoiled_value(groups):
    next(iter(groups["decoder"].values())).flat[0] += 1.0


def spoiled_nan(groups):
    next(iter(groups["decoder"].values())).flat[0] = np.nan


def missing_group(groups):
    del groups["encoder.ASL"]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (spoiled_value, "wrong-base"),
        (spoiled_nan, "not-finite"),
        (missing_group, "wrong-group"),
    ],
)
def test_model_that_is_not_the_one_of_the_card_is_refused(grid, tmp_path, spoil, code):
    groups = state_by_group(build_network(PRESET.network, 1))
    digest = state_hash(flatten(groups))
    spoil(groups)
    reply = ask(grid, to_record(request(digest), groups))
    assert parse(reply, FailureReply).code == code
    assert kept(tmp_path / "site-a") == []


def test_card_of_another_model_is_refused(grid, tmp_path):
    groups = state_by_group(build_network(PRESET.network, 1))
    record = to_record(request(state_hash(flatten(groups))), groups)
    fields = json.loads(record["message"]["json"])
    fields["card"]["model_hash"] = "f" * 64
    record["message"]["json"] = json.dumps(fields)
    assert parse(ask(grid, record), FailureReply).code == "malformed"


def test_receipt_repeats_the_request_and_nothing_else(grid, tmp_path):
    groups = state_by_group(build_network(PRESET.network, 1))
    digest = state_hash(flatten(groups))
    receipt = parse(ask(grid, to_record(request(digest), groups)), ReleaseReceipt)
    assert receipt == ReleaseReceipt(run=RUN, round=1, base_hash=digest)
    (path,) = (tmp_path / "site-a" / "models").glob("*.safetensors")
    assert load_checkpoint(path).metadata["trained_on"] == "patients"


def request(digest):
    card = ModelCard(
        run=RUN,
        round=1,
        model_hash=digest,
        trained_on="patients",
        num_training_sites=2,
        group_sites={},
        metrics={},
        code_version="0.1.0",
    )
    return ReleaseRequest(
        run=RUN, round=1, base_hash=digest, grid=PRESET.grid, network=PRESET.network, card=card
    )


def ask(grid, record):
    node = grid.get_node_ids()[0]  # site-a
    (reply,) = grid.send_and_receive([Message(record, node, "query.release")])
    assert not reply.has_error()
    return reply.content

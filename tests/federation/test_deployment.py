"""The whole federation as real processes over TLS, from `init` to the released model."""

import json

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sites.release_log import verify
from tests.deployment import TRAINERS, deployment, run_command, scenario, wait_until


def serves(port):
    """What a probe of an orchestrator asks."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        except grpc.RpcError:
            return False
    return answer.status == health_pb2.HealthCheckResponse.SERVING


def status(deployed):
    done = run_command("iedn-server", "status", str(deployed.run), "--json", cwd=deployed.folder)
    return json.loads(done.stdout) if done.returncode == 0 else {"now": None}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    with deployment(tmp_path_factory.mktemp("loopback"), scenario()) as running:
        running.start_all()
        wait_until(lambda: serves(running.health_port), what="grpc.health.v1 says SERVING")
        wait_until(lambda: status(running)["now"], what="a live status")
        running.live = status(running)["now"]
        running.code = running.wait_for_end()
        yield running


def test_run_ends_well_and_reaches_the_model_of_the_simulation(deployed):
    assert deployed.code == 0, deployed.log("server")
    assert deployed.model_hash() == deployed.reference_hash()


def test_every_site_is_in_every_roster(deployed):
    facts = status(deployed)
    assert facts["finished"]
    assert facts["rounds_committed"] == 2
    assert set(TRAINERS) <= set(deployed.live["sites"]) <= set(deployed.sites)
    assert facts["now"] == {}, "nobody is at work any more"
    for roster in facts["rosters"].values():
        assert {s: e["status"] for s, e in roster.items()} == dict.fromkeys(TRAINERS, "accepted")


def test_what_left_each_site_is_in_its_log(deployed):
    kinds = {
        site: {entry["kind"] for entry in verify(deployed.kit(site) / "releases.jsonl")}
        for site in deployed.sites
    }
    assert kinds["site-a"] == {"site-capabilities", "train-reply", "evaluate-reply"}
    assert kinds["qilu"] == {"site-capabilities", "evaluate-reply"}


def test_private_files_are_for_their_owner_only(deployed):
    private = [deployed.run / "tls" / "ca.key", deployed.run / "tls" / "server.key"]
    private += [deployed.kit(s) / "tls" / "site.key" for s in deployed.sites]
    private += [deployed.run / "superlink" / "superlink.db"]
    assert [p.stat().st_mode & 0o077 for p in private] == [0] * len(private)


def test_released_model_reaches_every_site_whole(deployed):
    done = run_command("iedn-server", "release", str(deployed.run), "--json", cwd=deployed.folder)
    assert done.returncode == 0, done.stderr
    roster = json.loads(done.stdout)
    assert {s: e["status"] for s, e in roster.items()} == dict.fromkeys(deployed.sites, "received")
    for site in deployed.sites:
        (model,) = (deployed.kit(site) / "models").glob("*.safetensors")
        assert model.with_suffix(".card.json").exists()

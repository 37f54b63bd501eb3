"""Attacks over the wire on one running federation, which goes on to its end nevertheless.

Two sites are at work and the run waits for a third one while it is attacked; then the third one
comes, and the run ends well. Rows of the attack table that need no wire are tested in one process:
replies in ``tests/federation/test_round_loop.py`` and ``test_bad_replies.py``, a poisoned global
model in ``test_client_app.py``, the gates in ``tests/unit/test_gate.py`` and ``test_egress.py``.
``docs/explanation/threat-model.md`` has the whole table.
"""

import json
import sys
import time
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.routers.runtime import responses_router

from iedn.bundle import bundle_hash
from server.certificates import (
    issue_server_certificate,
    new_authority,
    new_key,
    read_authority,
    write_certificate,
    write_key,
)
from server.superlink import PRIVATE_HEADER
from tests.deployment import Deployment, deployment, run_command, wait_until
from tests.system.intruder import (
    FalseCoordinator,
    LoneNode,
    fleet,
    knock,
    nodes,
    online,
    runs,
    site_key,
    status_of,
)
from tests.system.scenarios import trainers_only

pytestmark = pytest.mark.system

LAUNCHER = Path(__file__).with_name("modified_coordinator.py")
LONG_S = 1200.0
AT_WORK, REVOKED, LAST = "site-a", "site-b", "site-c"

FLEET = sorted(p for _, p in PROTOBUF_REQUEST_TYPES if p.startswith("/v1/fleet/"))
CLOSED = sorted(p for _, p in PROTOBUF_REQUEST_TYPES if not p.startswith("/v1/fleet/"))
RUNTIME = [p for p in CLOSED if p.startswith("/v1/runtime/")]
OTHERS = ["/", "/health", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/metrics"]
RESPONSES = sorted({str(route.path) for route in responses_router.routes})  # type: ignore[attr-defined]

TARGET = "control/list-nodes"
TRICKS = [
    f"/v1/fleet/../{TARGET}",
    f"/v1/fleet/%2e%2e/{TARGET}",
    f"/v1/fleet/%2E%2E%2F{TARGET}",
    f"/v1/fleet/..%2f{TARGET}",
    f"/v1/fleet/..;/{TARGET}",
    f"/v1/fleet/%252e%252e/{TARGET}",
    f"/v1/fleet/..\\{TARGET}",
    f"/v1/fleet//../{TARGET}",
    f"/v1/fleet/pull-messages/../../{TARGET}",
    f"/v1/fleet/pull-messages?/../../{TARGET}",
    f"/v1/fleet/pull-messages%3f/../../{TARGET}",
    f"/v1/fleet/pull-messages%23/../../{TARGET}",
    "//v1/fleet/pull-messages",
    f"//v1/{TARGET}",
    f"/v1//{TARGET}",
    f"/v1/./{TARGET}",
    f"/v1%2f{TARGET}",
    f"/V1/{TARGET.upper()}",
    f"/v1/{TARGET}/",
    f"/v1/{TARGET}%00",
    f"http://localhost/v1/{TARGET}",
    f"https://localhost/v1/fleet/../{TARGET}",
]
HOSTS = ["localhost/v1?", "localhost/health#", "x@y", "localhost:1/docs?a=", "", "a b"]


def _content() -> dict[str, object]:
    rounds = {"count": 1, "quorum": 2, "poll_interval_s": 0.2}
    return trainers_only(rounds=1) | {"rounds": rounds}


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory):
    with deployment(tmp_path_factory.mktemp("attacks"), _content()) as made:
        path = made.run / "federation.toml"
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        content["rounds"] |= {"join_timeout_s": 7200.0, "offline_grace_s": 30.0}
        path.write_text(tomli_w.dumps(content), encoding="utf-8")
        yield made


@pytest.fixture(scope="module")
def taken_over(provisioned):
    """All sites meet a coordinator that brings a modified bundle."""
    marker = provisioned.folder / "code-was-run"
    for site in provisioned.sites:
        provisioned.start_site(site)
    provisioned.start_server(sys.executable, str(LAUNCHER), str(marker))
    provisioned.marker = marker
    provisioned.taken_over_code = provisioned.wait_for_end(timeout_s=LONG_S)
    provisioned.taken_over_status = status(provisioned)
    return provisioned


@pytest.fixture(scope="module")
def running(taken_over):
    """The true coordinator; two sites have joined, and the run waits for the third one."""
    taken_over.stop(LAST)
    taken_over.start_server()
    for site in (AT_WORK, REVOKED):
        releases = taken_over.kit(site) / "releases.jsonl"
        wait_until(releases.exists, LONG_S, f"{site} joins")
    return taken_over


@pytest.fixture
def unmoved(running):
    """Register and runs are after the test what they were before."""
    before = nodes(running), runs(running)
    yield running
    assert (nodes(running), runs(running)) == before
    assert running.processes["server"].poll() is None, running.log("server")


def status(deployed: Deployment) -> dict[str, object]:
    done = run_command("iedn-server", "status", str(deployed.run), "--json", cwd=deployed.folder)
    return json.loads(done.stdout)


def test_modified_bundle_is_refused_by_every_site_and_no_code_runs(taken_over):
    assert taken_over.taken_over_code != 0
    assert not taken_over.taken_over_status["finished"]
    incomplete = taken_over.taken_over_status["incomplete"]
    assert set(incomplete["roster"]) == set(taken_over.sites)
    assert not {"joined", "accepted"} & {e["status"] for e in incomplete["roster"].values()}
    assert not taken_over.marker.exists()
    for site in taken_over.sites:
        assert "not on this site's list" in taken_over.log(site)
        kit = taken_over.kit(site)
        assert not [p for p in kit.rglob("*") if p.suffix in (".py", ".fab") or p.name == "apps"]


def test_public_port_answers_nothing_but_fleet_calls(unmoved):
    paths = [*CLOSED, *OTHERS, *RESPONSES]
    assert {p: knock(unmoved, p) for p in paths} == dict.fromkeys(paths, 404)
    assert {p: knock(unmoved, p, method="GET") for p in paths} == dict.fromkeys(paths, 404)


@pytest.mark.parametrize("path", TRICKS)
def test_path_tricks_reach_nothing(unmoved, path):
    assert knock(unmoved, path) in (400, 401, 404)


@pytest.mark.parametrize("host", HOSTS)
def test_host_header_does_not_lead_around_the_signature(unmoved, host):
    assert knock(unmoved, "/v1/fleet/pull-messages", headers={"Host": host}) in (400, 401)


def test_fleet_calls_need_a_signature(unmoved):
    assert {p: knock(unmoved, p) for p in FLEET} == dict.fromkeys(FLEET, 401)
    as_json = {"Content-Type": "application/json"}
    assert all(knock(unmoved, p, headers=as_json) >= 400 for p in FLEET)


def test_nobody_registers_or_unregisters_over_the_public_port(unmoved):
    stranger = new_key()
    with fleet(unmoved, stranger) as client:
        request = RegisterNodeFleetRequest(public_key=public_key_to_bytes(stranger.public_key()))
        assert status_of(lambda: client.RegisterNode(request)) >= 400
    with fleet(unmoved, site_key(unmoved, REVOKED)) as client:
        request = UnregisterNodeFleetRequest(node_id=nodes(unmoved)[AT_WORK])
        assert status_of(lambda: client.UnregisterNode(request)) == 401
        request = UnregisterNodeFleetRequest(node_id=nodes(unmoved)[REVOKED])
        assert status_of(lambda: client.UnregisterNode(request)) >= 400


def _calls(client, node_id):
    """Every call by which a node does anything."""
    node = Node(node_id=node_id)
    return {
        "pull": lambda: client.PullMessages(PullMessagesRequest(node=node)),
        "heartbeat": lambda: client.SendNodeHeartbeat(
            SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)
        ),
        "push": lambda: client.PushMessages(PushMessagesRequest(node=node)),
    }


def test_unregistered_key_gets_nothing(unmoved):
    stranger = new_key()
    with fleet(unmoved, stranger) as client:
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(stranger.public_key()), heartbeat_interval=30
        )
        assert status_of(lambda: client.ActivateNode(request)) >= 400
        victim = public_key_to_bytes(site_key(unmoved, AT_WORK).public_key())
        request = ActivateNodeRequest(public_key=victim, heartbeat_interval=30)
        assert status_of(lambda: client.ActivateNode(request)) == 401
        calls = _calls(client, nodes(unmoved)[AT_WORK])
        assert {n: status_of(c) for n, c in calls.items()} == dict.fromkeys(calls, 401)


def test_site_cannot_act_as_another(unmoved):
    with fleet(unmoved, site_key(unmoved, REVOKED)) as client:
        calls = _calls(client, nodes(unmoved)[AT_WORK])
        assert {n: status_of(c) for n, c in calls.items()} == dict.fromkeys(calls, 401)


def test_site_cannot_reply_in_the_name_of_another(unmoved):
    own, other = nodes(unmoved)[REVOKED], nodes(unmoved)[AT_WORK]

    def reply(author: int) -> PushMessagesRequest:
        metadata = Metadata(
            run_id=max(runs(unmoved)),
            message_id="a" * 64,
            src_node_id=author,
            dst_node_id=1,
            reply_to_message_id="b" * 64,
            created_at=time.time(),
            ttl=60.0,
            message_type="train",
        )
        return PushMessagesRequest(
            node=Node(node_id=own),
            messages_list=[Message(metadata=metadata)],
            message_object_trees=[ObjectTree(object_id="a" * 64)],
        )

    with fleet(unmoved, site_key(unmoved, REVOKED)) as client:
        assert status_of(lambda: client.PushMessages(reply(other))) == 401
        assert status_of(lambda: client.PushMessages(reply(own))) != 401, "and so it is the name"


def test_private_port_answers_only_to_its_secret(unmoved):
    paths = [*CLOSED, *FLEET, "/docs", "/openapi.json", *RESPONSES]
    for shown in ({}, {PRIVATE_HEADER: "0" * 64}, {PRIVATE_HEADER: ""}):
        statuses = {p: knock(unmoved, p, port=unmoved.private_port, headers=shown) for p in paths}
        assert statuses == dict.fromkeys(paths, 401)
    assert knock(unmoved, "/health", port=unmoved.private_port, method="GET") == 200


def test_task_cannot_be_claimed_on_a_sites_local_port(unmoved):
    site = tomllib.loads((unmoved.kit(AT_WORK) / "site.toml").read_text(encoding="utf-8"))
    port = site["coordinator"]["node_port"]
    assert knock(unmoved, "/v1/runtime/acquire-task", port=port) in (401, 403)
    statuses = {p: knock(unmoved, p, port=port) for p in [*CLOSED, *FLEET]}
    assert {p: s for p, s in statuses.items() if s < 400} == {}


@pytest.fixture(scope="module")
def lone_nodes(running, tmp_path_factory):
    """Nodes that meet a false coordinator, or come with a key that nobody has admitted."""
    folder = tmp_path_factory.mktemp("lone")
    tls = running.run / "tls"
    true, false = read_authority(tls / "ca.crt", tls / "ca.key"), new_authority("another")
    key = new_key()
    write_key(folder / "key", key)
    past = datetime.now(UTC) - timedelta(days=800)
    hosts = ("localhost",)
    certificates = {
        "another authority": issue_server_certificate(false, hosts, key.public_key()),
        "expired": issue_server_certificate(true, hosts, key.public_key(), past),
        "another name": issue_server_certificate(true, hosts, key.public_key()),
    }
    stranger = folder / "stranger.key"
    stranger.write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        )
    )
    started, traps = {}, {}
    for number, (name, certificate) in enumerate(certificates.items()):
        path = folder / f"{number}.crt"
        write_certificate(path, certificate)
        host = "127.0.0.2" if name == "another name" else "127.0.0.1"
        traps[name] = FalseCoordinator(host, path, folder / "key")
        own = running.kit(AT_WORK) / "tls" / "site.key"
        started[name] = LoneNode(
            folder / str(number), address=traps[name].address, ca=tls / "ca.crt", key=own
        )
    started["not admitted"] = LoneNode(
        folder / "stranger",
        address=f"localhost:{running.port}",
        ca=tls / "ca.crt",
        key=stranger,
    )
    yield started, traps
    for closing in (*started.values(), *traps.values()):
        closing.close()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("another authority", "unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("another name", "certificate is not valid for '127.0.0.2'"),
    ],
)
def test_site_refuses_a_coordinator_with_a_certificate_of(lone_nodes, wrong, reason):
    started, traps = lone_nodes
    assert reason in started[wrong].wait(LONG_S)
    wait_until(lambda: traps[wrong].alerts, 60.0, "the listener sees the handshake end")
    assert traps[wrong].heard == b"", "not a byte is sent to a false coordinator"


def test_node_with_a_key_that_was_not_admitted_ends(lone_nodes, unmoved):
    started, _ = lone_nodes
    assert "Failed to activate SuperNode" in started["not admitted"].wait(LONG_S)


@pytest.fixture(scope="module")
def revoked(running):
    """The number that the node of a site had, which had joined, until its key was revoked."""
    number = nodes(running)[REVOKED]
    done = run_command("iedn-server", "revoke", REVOKED, "--dir", str(running.run), cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    wait_until(lambda: REVOKED not in nodes(running), LONG_S, "the coordinator follows")
    return number


def test_revoked_key_is_shut_out_while_the_run_goes_on(running, revoked):
    with fleet(running, site_key(running, REVOKED)) as client:
        calls = _calls(client, revoked)
        assert {n: status_of(c) for n, c in calls.items()} == dict.fromkeys(calls, 401)
    wait_until(
        lambda: f"{REVOKED}: no connection" in running.log(REVOKED), LONG_S, "its client notices"
    )
    assert running.processes["server"].poll() is None


@pytest.mark.usefixtures("revoked")
def test_attacked_run_goes_on_to_its_end(running):
    assert online(running) >= {AT_WORK}
    running.start_site(LAST)
    assert running.wait_for_end(timeout_s=LONG_S) == 0, running.log("server")
    found = status(running)
    assert found["finished"]
    assert not found["incomplete"]
    (roster,) = found["rosters"].values()
    assert {s: e["status"] for s, e in roster.items()} == {
        AT_WORK: "accepted",
        REVOKED: "offline",
        LAST: "accepted",
    }
    assert set(nodes(running)) == {AT_WORK, LAST}
    assert [h for h in runs(running).values() if h == bundle_hash()]
    assert len(runs(running)) == 2, "the one with the modified bundle, and the true one"

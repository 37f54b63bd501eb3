"""The doctor against a real TLS server on loopback, through a real CONNECT proxy, and on files."""

import base64
import contextlib
import http.server
import importlib.util
import json
import socket
import socketserver
import ssl
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import client.cli
from client import installation
from client.credentials import authority_fact, federations_fact, key_fact
from client.doctor import environment_facts, exit_code_of
from client.identity import create_identity
from client.installation import (
    device_fact,
    disk_fact,
    folder_fact,
    installation_facts,
    port_fact,
    version_fact,
)
from client.leaving import what_leaves
from client.reachability import clock_fact, connection_facts
from client.session import CLIENT_LOCK
from iedn import console
from iedn.files import only_process
from iedn.modalities import Modality
from server.certificates import (
    issue_server_certificate,
    new_authority,
    new_key,
    write_certificate,
    write_key,
)
from sites.config import CoordinatorConfig, PolicyConfig, SiteConfig
from sites.egress import TrainingCounts
from sites.privacy import PrivacyConfig

BUILDERS = Path(__file__).with_name("test_bad_inputs.py")


class Coordinator(http.server.ThreadingHTTPServer):
    """A TLS server that answers 404 with a date, as the public listener does."""

    daemon_threads = True

    def __init__(self, host, chain, clock_offset_s=0.0, date=True):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response_only(404)
                if date:
                    self.send_header("Date", formatdate(time.time() + clock_offset_s, usegmt=True))
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__((host, 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*chain)
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self.server_address[1]

    def handle_error(self, request, client_address):
        pass  # clients that do not trust us go away


class Proxy(socketserver.ThreadingTCPServer):
    """An HTTP proxy that knows CONNECT only, keeps what it was asked, and may refuse."""

    daemon_threads = True

    def __init__(self, refusal=None):
        self.asked, self.refusal = [], refusal
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.port = self.server_address[1]

    def handle_error(self, request, client_address):
        pass


class ProxyHandler(socketserver.BaseRequestHandler):
    def handle(self):
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.request.recv(4096)
        self.server.asked.append(head.decode())
        if self.server.refusal:
            self.request.sendall(f"HTTP/1.1 {self.server.refusal}\r\n\r\n".encode())
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        with socket.create_connection((host, int(port))) as upstream:
            self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=(upstream, self.request))
            back.start()
            pump(self.request, upstream)
            back.join()


def pump(source, target):
    with contextlib.suppress(OSError):
        while content := source.recv(65536):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def authority():
    return new_authority("trusted")


@pytest.fixture
def chain(tmp_path, authority):
    """Make a server's certificate and key, by default a good one."""

    def made(signer=authority, age_days=0.0):
        start = datetime.now(UTC) - timedelta(days=age_days)
        key = new_key()
        certificate = issue_server_certificate(signer, ["localhost"], key.public_key(), start)
        write_certificate(tmp_path / "server.crt", certificate)
        write_key(tmp_path / "server.key", key)
        return tmp_path / "server.crt", tmp_path / "server.key"

    return made


@pytest.fixture
def ca(tmp_path, authority):
    path = tmp_path / "ca.crt"
    write_certificate(path, authority.certificate)
    return path


def facts_of(port, ca, host="127.0.0.1"):
    found = connection_facts(CoordinatorConfig(address=f"{host}:{port}", ca=ca))
    return {fact.name: fact for fact in found}


def test_good_connection(chain, ca):
    with serving(Coordinator("127.0.0.1", chain())) as server:
        for host in ("127.0.0.1", "localhost"):
            facts = facts_of(server.port, ca, host)
            assert {n: f.status for n, f in facts.items()} == {
                "connection": "ok",
                "certificate": "ok",
                "clock": "ok",
            }
    assert "396 days left" in facts["certificate"].found
    assert "signed by CN=trusted" in facts["certificate"].found
    assert facts["connection"].found == f"localhost:{server.port} answers"


def test_certificate_of_another_authority(chain, ca):
    with serving(Coordinator("127.0.0.1", chain(new_authority("stranger")))) as server:
        facts = facts_of(server.port, ca)
    assert list(facts) == ["connection", "certificate"]
    assert facts["certificate"].exit_code == 5
    assert "not signed by coordinator.ca" in facts["certificate"].action


def test_certificate_for_another_name(chain, ca):
    with serving(Coordinator("127.0.0.2", chain())) as server:
        facts = facts_of(server.port, ca, "127.0.0.2")
    assert facts["certificate"].exit_code == 5
    assert "iedn-server renew --host" in facts["certificate"].action


def test_certificate_that_has_expired(chain, ca, authority):
    old = new_authority("trusted", datetime.now(UTC) - timedelta(days=500))
    write_certificate(ca, old.certificate)
    with serving(Coordinator("127.0.0.1", chain(old, age_days=400))) as server:
        facts = facts_of(server.port, ca)
    assert facts["certificate"].exit_code == 5
    assert "expired" in facts["certificate"].found
    assert "iedn-server renew" in facts["certificate"].action


def test_certificate_that_expires_soon_is_a_warning(chain, ca):
    old = new_authority("trusted", datetime.now(UTC) - timedelta(days=500))
    write_certificate(ca, old.certificate)
    with serving(Coordinator("127.0.0.1", chain(old, age_days=380))) as server:
        facts = facts_of(server.port, ca)
    assert facts["certificate"].status == "warning"
    assert "16 days left" in facts["certificate"].found


@pytest.mark.parametrize(
    ("offset", "status", "words"),
    [
        (-60.0, "failed", "s ahead of"),  # the server's clock is behind: this one is ahead
        (60.0, "warning", "s behind"),
        (400.0, "failed", "s behind"),
    ],
)
def test_clock_that_is_off(chain, ca, offset, status, words):
    with serving(Coordinator("127.0.0.1", chain(), clock_offset_s=offset)) as server:
        clock = facts_of(server.port, ca)["clock"]
    assert clock.status == status
    assert words in clock.found
    seconds = int(clock.found.split()[0])
    assert abs(seconds - abs(offset)) <= 1
    assert clock.exit_code == (5 if status == "failed" else 0)
    assert "more than 5 s ahead or 305 s behind is refused" in clock.action


@pytest.mark.parametrize(
    ("ahead", "status"),
    [
        (0.0, "ok"),
        (2.4, "ok"),  # may be 1.9
        (2.6, "warning"),
        (5.4, "warning"),
        (5.6, "failed"),
        (-30.0, "ok"),
        (-31.0, "warning"),
        (-305.0, "warning"),
        (-305.6, "failed"),
    ],
)
def test_clock_is_judged_by_flowers_limits_and_by_what_is_certain(ahead, status):
    assert clock_fact(ahead, 0.5).status == status


def test_server_that_tells_no_time(chain, ca):
    with serving(Coordinator("127.0.0.1", chain(), date=False)) as server:
        assert facts_of(server.port, ca)["clock"].status == "warning"


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nothing_listens(ca):
    facts = facts_of(unused_port(), ca)
    assert list(facts) == ["connection"]
    assert facts["connection"].exit_code == 6
    assert "connection refused" in facts["connection"].found


@pytest.mark.parametrize(
    ("host", "port", "words", "code"),
    [
        ("coordinator.invalid", 9092, "the name is not known here", 6),
        ("coordinator..org", 9092, "that is no host name", 6),
        ("127.0.0.1", 99999, "no such port", 3),
    ],
)
def test_address_that_cannot_exist(ca, host, port, words, code):
    fact = facts_of(port, ca, host)["connection"]
    assert fact.exit_code == code
    assert words in fact.found


def test_port_that_does_not_speak_tls(ca):
    class Plain(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1024)
            self.request.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

    with serving(socketserver.TCPServer(("127.0.0.1", 0), Plain)) as server:
        fact = facts_of(server.server_address[1], ca)["certificate"]
    assert fact.exit_code == 5
    assert "does not speak TLS" in fact.found


def test_connection_that_is_cut():
    class Cutting(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1024)

    with serving(socketserver.TCPServer(("127.0.0.1", 0), Cutting)) as server:
        facts = connection_facts(CoordinatorConfig(address=f"127.0.0.1:{server.server_address[1]}"))
    assert [(f.name, f.status) for f in facts] == [("connection", "ok"), ("connection", "failed")]
    assert facts[1].exit_code == 6
    assert "ended the connection" in facts[1].found


def test_through_a_connect_proxy_with_a_password(chain, ca, monkeypatch):
    with serving(Coordinator("127.0.0.1", chain())) as server, serving(Proxy()) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:s%40cret@127.0.0.1:{proxy.port}")
        facts = facts_of(server.port, ca)
        assert [f.status for f in facts.values()] == ["ok", "ok", "ok"]
        assert facts["connection"].found.endswith(f"through http://127.0.0.1:{proxy.port}")
        (asked,) = proxy.asked
        assert asked.startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\n")
        assert base64.b64encode(b"user:s@cret").decode() in asked
        assert "cret" not in str(facts)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert facts_of(server.port, ca)["connection"].found.endswith("answers")
        assert len(proxy.asked) == 1


def test_proxy_that_refuses(ca, monkeypatch):
    with serving(Proxy("407 Proxy Authentication Required")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
        fact = facts_of(9092, ca)["connection"]
    assert fact.exit_code == 6
    assert "407 Proxy Authentication Required" in fact.found


def test_proxy_that_is_not_there(ca, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{unused_port()}")
    fact = facts_of(9092, ca)["connection"]
    assert fact.exit_code == 6
    assert fact.found.startswith("the proxy")


def test_hospitals_own_root_in_the_same_file(chain, ca):
    """A proxy that reads TLS shows a certificate of the hospital's own authority."""
    hospital = new_authority("hospital")
    with serving(Coordinator("127.0.0.1", chain(hospital))) as server:
        assert facts_of(server.port, ca)["certificate"].status == "failed"
        ca.write_bytes(ca.read_bytes() + hospital.certificate.public_bytes(Encoding.PEM))
        facts = facts_of(server.port, ca)
    assert facts["certificate"].status == "ok"
    assert "signed by CN=hospital" in facts["certificate"].found
    fact = authority_fact(CoordinatorConfig(address="localhost:9092", ca=ca))
    assert fact.status == "warning"
    assert "CN=trusted, CN=hospital" in fact.found


# Files


@pytest.fixture
def site(tmp_path):
    coordinator = CoordinatorConfig(
        address="localhost:9092", key=tmp_path / "tls" / "site.key", federations=("run-1",)
    )
    return SiteConfig(
        name="site-a", manifest=Path("m.csv"), folder=tmp_path, coordinator=coordinator
    )


def test_key_that_is_missing_then_made_then_open_to_others(site):
    missing = key_fact(site.coordinator)
    assert (missing.status, missing.exit_code) == ("failed", 5)
    assert "init" in missing.action
    made = create_identity(site)
    good = key_fact(site.coordinator)
    assert good.status == "ok"
    assert made.fingerprint in good.found
    made.key_file.chmod(0o640)
    bad = key_fact(site.coordinator)
    assert (bad.status, bad.exit_code) == ("failed", 5)
    assert "mode 640" in bad.found
    assert "chmod 600" in bad.action


def test_key_of_another_kind(site):
    create_identity(site)
    path = site.coordinator.key
    smaller = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(smaller.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    assert "P-384" in key_fact(site.coordinator).found
    path.write_text("not a key")
    assert key_fact(site.coordinator).exit_code == 5


def test_authority_that_cannot_be_used(tmp_path, ca, chain):
    def fact(path):
        return authority_fact(CoordinatorConfig(address="localhost:9092", ca=path))

    assert fact(ca).status == "ok"
    assert "3651 days left" in fact(ca).found
    assert fact(None).exit_code == 3
    assert fact(tmp_path / "none.crt").exit_code == 5
    certificate, _ = chain()
    assert "is no authority's certificate" in fact(certificate).found
    ca.write_text("nonsense")
    assert fact(ca).exit_code == 5
    start = datetime.now(UTC) - timedelta(days=3640)
    write_certificate(ca, new_authority("old", start).certificate)
    assert fact(ca).status == "warning"
    start = datetime.now(UTC) - timedelta(days=3700)
    write_certificate(ca, new_authority("older", start).certificate)
    assert (fact(ca).status, fact(ca).exit_code) == ("failed", 5)


def test_site_that_names_no_run_would_refuse_all(site):
    assert federations_fact(site.coordinator).status == "ok"
    assert federations_fact(CoordinatorConfig(address="x:1")).exit_code == 3


def test_version_that_does_not_fit_is_named(monkeypatch):
    assert version_fact().status == "ok"
    true_version = installation.version
    monkeypatch.setattr(
        installation, "version", lambda n: "1.40.0" if n == "flwr" else true_version(n)
    )
    fact = version_fact()
    assert (fact.status, fact.exit_code) == ("failed", 3)
    assert "flwr 1.40.0 is installed, ==1.41.0 is needed" in fact.found


def test_device(monkeypatch):
    assert device_fact("cpu").status == "ok"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_fact("cuda").exit_code == 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert "there are 2 GPUs" in device_fact("cuda:2").found


@pytest.mark.parametrize(("free", "status"), [(5e11, "ok"), (5e9, "warning"), (5e8, "failed")])
def test_disk(tmp_path, monkeypatch, free, status):
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda _: usage)
    assert disk_fact(tmp_path / "not" / "yet").status == status


def test_folder_that_others_may_look_into(tmp_path):
    home = tmp_path / "home"
    assert folder_fact(home).status == "ok", "it is made when it is needed"
    home.mkdir(mode=0o700)
    assert folder_fact(home).status == "ok"
    home.chmod(0o755)
    assert folder_fact(home).status == "warning"
    assert folder_fact(home).action == f"chmod 700 {home}"


def test_port_that_is_free_taken_or_the_sites_own(tmp_path):
    assert port_fact(tmp_path, unused_port()).status == "ok"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert port_fact(tmp_path, port).exit_code == 3
        with only_process(tmp_path / CLIENT_LOCK):
            assert "this site's running client" in port_fact(tmp_path, port).found
        assert port_fact(tmp_path, port).exit_code == 3


def test_site_without_a_coordinator_just_says_so():
    config = SiteConfig(name="site-a", manifest=Path("m.csv"), folder=Path())
    facts = environment_facts(config)
    assert [f.name for f in facts] == [*(f.name for f in installation_facts(config)), "coordinator"]
    assert "cannot join" in facts[-1].found
    assert exit_code_of(facts) == 0


# What leaves


def counts(scans, patients, asl_scans, asl_patients):
    return TrainingCounts(
        scans=scans,
        patients=patients,
        scans_by_modality={Modality.T1WI: scans, Modality.ASL: asl_scans},
        patients_by_modality={Modality.T1WI: patients, Modality.ASL: asl_patients},
    )


PARTS = {
    "train": counts(23, 12, 4, 3),
    "validation": counts(14, 11, 1, 1),
    "test": counts(9, 7, 1, 1),
    "all": counts(46, 30, 6, 5),
}


def leaving(site, role="train", **policy):
    config = site.model_copy(update={"role": role, "policy": PolicyConfig(**policy)})
    return what_leaves(config, PARTS)


def test_what_leaves_a_training_site_with_the_deployments_policy(site):
    text = leaving(site)
    assert text[0].endswith("20 in all (T1WI 20, ASL 1)")
    assert text[1].startswith("each round: the change of encoder.T1WI, decoder; each only where 3")
    assert "none of them has more than 80 % of its scans; the coordinator can read it" in text[1]
    assert text[2] == "kept back: encoder.ASL (3 patients); policy.min_patients is 10"
    assert text[3].startswith("noise in updates (off): updates are exact")
    assert text[4].endswith(
        "of psnr_db, ssim_percent, mae, bias, nrmse, lesion_error over the validation scans, "
        "and their number as 10"
    )
    assert text[5].endswith("test patients: 7 patients, policy.min_patients is 10")
    assert text[-1].startswith("never: images")


def test_what_leaves_changes_with_the_policy(site):
    assert "even where no other site" in leaving(site, reveal_small_group=True)[1]
    assert "the coordinator can read it" in leaving(site)[1]
    assert "under masks only" in leaving(site, require_secure_aggregation=True)[1]
    assert "contribute nothing" in leaving(site, min_patients=13)[1]
    assert 'does not name "update"' in leaving(site, releases=("metrics",))[1]
    assert "encoder.ASL" in leaving(site, min_patients=3)[1]
    assert leaving(site, count_step=7)[0].endswith("multiples of 7: 21 in all (T1WI 21, ASL 1)")
    assert "of mae over the validation scans" in leaving(site, metrics=("mae",))[4]
    assert "policy.metrics names none" in leaving(site, metrics=())[4]
    noisy = site.model_copy(update={"privacy": PrivacyConfig(tier="formal", delta=0.1)})
    assert (
        "epsilon 8 over all runs, delta 0.1 (TOO LARGE: not less than 1 / 12" in leaving(noisy)[3]
    )


def test_what_leaves_an_evaluating_site(site):
    text = leaving(site, "evaluate", releases=("diagnostic",))
    assert "no numbers" in text[0]
    assert text[1].endswith("the number of scans as 45")
    assert 'does not name "diagnostic"' in leaving(site, "evaluate")[1]


# The command


@pytest.fixture(scope="module")
def builders():
    spec = importlib.util.spec_from_file_location("bad_inputs", BUILDERS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check(monkeypatch, capsys, tmp_path, builders):
    """``check`` of a site with three good patients, whose file gets ``coordinator`` added."""
    home = tmp_path / "home"
    home.mkdir()
    builders.Site(home, patients=3).write()

    def run(coordinator, *words):
        path = home / "site.toml"
        path.write_text(path.read_text().partition("[coordinator]")[0] + coordinator)
        fixed = ["--site", str(path), "check", "--preset", "tiny", "--overlays", "0"]
        monkeypatch.setattr(sys, "argv", ["iedn-client", *fixed, *words])
        monkeypatch.setattr(console, "_log_to_stderr", lambda: None)
        with pytest.raises(SystemExit) as end:
            client.cli.main()
        return end.value.code, capsys.readouterr().out

    return run


def coordinator_table(port, ca, key):
    return (
        f'[coordinator]\naddress = "127.0.0.1:{port}"\nca = "{ca}"\nkey = "{key}"\n'
        'federations = ["run-1"]\n'
    )


def test_check_command_from_unreachable_to_good(check, chain, ca, site):
    key = create_identity(site).key_file
    port = unused_port()
    code, out = check(coordinator_table(port, ca, key))
    assert code == 6
    assert "failed  connection" in out
    code, out = check(coordinator_table(port, ca, key), "--offline", "--json")
    assert code == 0
    report = json.loads(out)
    assert "connection" not in {fact["name"] for fact in report["environment"]}
    assert report["usable"]
    with serving(Coordinator("127.0.0.1", chain())) as server:
        code, out = check(coordinator_table(server.port, ca, key), "--json")
        assert code == 0
        facts = {f["name"]: f["status"] for f in json.loads(out)["environment"]}
        assert facts["clock"] == facts["certificate"] == facts["connection"] == "ok"
        assert json.loads(out)["leaves"][-1].startswith("never")
        write_certificate(ca, new_authority("stranger").certificate)
        assert check(coordinator_table(server.port, ca, key))[0] == 5


def test_check_command_says_what_would_leave(check):
    code, out = check("")
    assert code == 0
    assert "What would leave this site" in out
    assert "it cannot join" in out.replace("\n", " ")

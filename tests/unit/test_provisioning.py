"""Setting up a federation: configuration, certificates, kits, and who may join."""

import base64
import hashlib
import ipaddress
import json
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

import server.cli
from client.identity import create_identity, others_may_read, read_private_key
from iedn import console
from iedn.errors import ConfigError, IdentityError
from iedn.identity import days_left, fingerprint, names_of, public_line, read_certificates
from iedn.toml import load_toml
from server.admission import admit, admitted_keys, revoke
from server.certificates import issue_server_certificate, new_authority, new_key
from server.config import load_federation
from server.provisioning import Plan, certificates_of, default_quorum, provision, renew
from sites.config import load_site_config

EXAMPLES = Path(__file__).parents[2] / "sites" / "examples"
PLAN = Plan(
    name="glioma-cbv",
    trainers=("site-a", "site-b", "site-c"),
    evaluators=("qilu",),
    hosts=("coordinator.example.org", "192.0.2.7"),
)


@pytest.fixture
def folder(tmp_path):
    provision(tmp_path / "run", PLAN)
    return tmp_path / "run"


@pytest.fixture
def keys(folder):
    """A key of each of two sites, made by the sites themselves."""
    return {
        site: create_identity(load_site_config(folder / "kits" / site / "site.toml"))
        for site in ("site-a", "site-b")
    }


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_federation_file_says_the_plan(folder):
    config = load_federation(folder / "federation.toml")
    assert (config.run, config.preset, config.rounds.count) == ("glioma-cbv", "demo", 20)
    assert config.rounds.quorum == 3
    assert {s: e.role for s, e in config.sites.items()} == {
        "site-a": "train",
        "site-b": "train",
        "site-c": "train",
        "qilu": "evaluate",
    }
    assert (config.listen.port, config.listen.private_port, config.listen.health_port) == (
        9092,
        9093,
        9094,
    )
    assert not config.simulation


@pytest.mark.parametrize(
    ("trainers", "quorum"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (7, 5), (10, 7)]
)
def test_quorum_is_two_thirds_and_never_a_pair_if_it_can_be_helped(trainers, quorum):
    assert default_quorum(trainers) == quorum


def test_loopback_federation_does_not_listen_outside(tmp_path):
    plan = Plan("run", ("site-a",), (), ("localhost", "127.0.0.1"), port=4000, simulation=True)
    config = provision(tmp_path / "run", plan)
    assert config.listen.host == "127.0.0.1"
    assert config.simulation
    policy = load_site_config(tmp_path / "run" / "kits" / "site-a" / "site.toml").policy
    assert (policy.min_patients, policy.min_group_sites) == (1, 1)


def test_kits_are_valid_site_files_with_the_deployments_minimum_counts(folder):
    ports = set()
    for site, role in [("site-a", "train"), ("site-b", "train"), ("qilu", "evaluate")]:
        config = load_site_config(folder / "kits" / site / "site.toml")
        assert (config.name, config.role) == (site, role)
        assert (config.policy.min_patients, config.policy.min_group_sites) == (10, 3)
        assert config.coordinator.address == "coordinator.example.org:9092"
        assert config.coordinator.federations == ("glioma-cbv",)
        assert config.coordinator.ca.read_bytes() == (folder / "tls" / "ca.crt").read_bytes()
        ports.add(config.coordinator.node_port)
    assert len(ports) == 3, "two sites on one machine would want the same port"


@pytest.mark.parametrize(("site", "example"), [("site-a", "train"), ("qilu", "evaluate")])
def test_kits_have_the_keys_of_the_examples(folder, site, example):
    kit = load_toml(folder / "kits" / site / "site.toml")
    shown = load_toml(EXAMPLES / f"{example}.toml")
    for table, keys in shown.items():
        assert table in kit
        if isinstance(keys, dict):
            assert set(keys) <= set(kit[table])


def test_private_keys_are_for_their_owner_and_none_is_in_a_kit(folder):
    for name in ("ca.key", "server.key"):
        assert mode(folder / "tls" / name) == 0o600
    assert mode(folder / "tls") == mode(folder / "kits" / "site-a") == 0o700
    for path in (folder / "kits").rglob("*"):
        assert not path.is_file() or b"PRIVATE" not in path.read_bytes()


def test_certificate_chain_names_and_dates(folder):
    found = certificates_of(folder)
    authority, certificate = found["authority"], found["server"]
    certificate.verify_directly_issued_by(authority)
    assert set(names_of(certificate)) == {
        "coordinator.example.org",
        "192.0.2.7",
        "localhost",
        "127.0.0.1",
    }
    assert days_left(certificate) == 396  # 397 days, less the moment since
    assert 3650 <= days_left(authority) <= 3652
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    for one in found.values():
        assert isinstance(one.public_key().curve, ec.SECP384R1)


def test_server_certificate_never_outlives_its_authority():
    start = datetime.now(UTC) - timedelta(days=3600)
    authority = new_authority("old", start)
    certificate = issue_server_certificate(authority, ["x"], new_key().public_key())
    assert certificate.not_valid_after_utc <= authority.certificate.not_valid_after_utc
    assert days_left(certificate) <= 52
    expired = new_authority("older", start - timedelta(days=100))
    with pytest.raises(IdentityError, match="authority's certificate ends"):
        issue_server_certificate(expired, ["x"], new_key().public_key())


def test_addresses_become_addresses_and_names_names():
    certificate = issue_server_certificate(
        new_authority("x"), ["Host.example", "2001:db8::7"], new_key().public_key()
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("2001:db8::7"),
        ipaddress.ip_address("127.0.0.1"),
    ]
    assert names.get_values_for_type(x509.DNSName) == ["Host.example", "localhost"]


@pytest.mark.parametrize("host", ["a b", "-x.org", "256.1.1.1", "http://x", "x:9092", ""])
def test_host_that_is_none_is_refused_and_nothing_is_left_behind(tmp_path, host):
    with pytest.raises(ConfigError, match="neither a host name"):
        provision(tmp_path / "run", Plan("run", ("site-a",), (), (host,)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quorum": 4}, "quorum 4 exceeds the 3 training sites"),
        ({"evaluators": ("site-a",)}, "named twice: site-a"),
        ({"name": "a name"}, "run: got 'a name'"),
        ({"preset": "big"}, "preset: got 'big'"),
        ({"trainers": ("Site A", "b", "c")}, r"sites\.Site A"),
        ({"trainers": ("../a", "b", "c")}, "sites"),
        ({"trainers": (), "evaluators": ()}, "sites"),
        ({"port": 65533}, "no room"),
    ],
)
def test_impossible_plan_is_refused_and_nothing_is_left_behind(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        provision(tmp_path / "run", Plan(**(vars(PLAN) | changes)))
    assert not (tmp_path / "run").exists()


def test_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty"):
        provision(tmp_path, PLAN)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_renewed_certificate_keeps_names_key_and_authority(folder):
    before = certificates_of(folder)
    renew(folder)
    after = certificates_of(folder)
    assert after["authority"] == before["authority"]
    assert after["server"].serial_number != before["server"].serial_number
    assert after["server"].public_key() == before["server"].public_key()
    assert set(names_of(after["server"])) == set(names_of(before["server"]))
    renew(folder, hosts=("other.example.org",), new_server_key=True)
    last = certificates_of(folder)["server"]
    assert last.public_key() != before["server"].public_key()
    assert "other.example.org" in names_of(last)
    last.verify_directly_issued_by(before["authority"])
    assert mode(folder / "tls" / "server.key") == 0o600


def test_renewing_without_the_authoritys_key_says_so(folder):
    (folder / "tls" / "ca.key").unlink()
    with pytest.raises(IdentityError, match=r"ca\.key: cannot be read.*bring it back"):
        renew(folder)


def test_site_key_is_what_flowers_node_takes(keys):
    made = keys["site-a"]
    assert mode(made.key_file) == 0o600
    key = load_ssh_private_key(made.key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key == read_private_key(made.key_file) or fingerprint(key.public_key()) == (
        made.fingerprint
    )
    assert made.public_file.read_text() == made.public_line + "\n"
    assert not others_may_read(made.key_file)


def test_fingerprint_is_that_of_ssh_keygen(keys):
    """``ssh-keygen -lf``: base64 without padding of the SHA-256 of the decoded second field."""
    blob = base64.b64decode(keys["site-a"].public_line.split()[1])
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode()
    assert keys["site-a"].fingerprint == f"SHA256:{digest.rstrip('=')}"


def test_key_is_not_replaced_without_force(folder, keys):
    config = load_site_config(folder / "kits" / "site-a" / "site.toml")
    before = keys["site-a"].key_file.read_bytes()
    with pytest.raises(IdentityError, match="there is a key already"):
        create_identity(config)
    assert keys["site-a"].key_file.read_bytes() == before
    assert create_identity(config, force=True).fingerprint != keys["site-a"].fingerprint


def test_admitted_once_and_again_and_revoked_for_good(folder, keys):
    public = keys["site-a"].public_file
    assert admit(folder, "site-a", public).is_new
    assert not admit(folder, "site-a", public).is_new
    line = (folder / "admitted" / "site-a.pub").read_text()
    assert line == keys["site-a"].public_line + "\n"
    assert revoke(folder, "site-a") == keys["site-a"].fingerprint
    assert admitted_keys(folder) == {}
    (revoked,) = (folder / "revoked").iterdir()
    assert revoked.read_text() == line
    assert revoked.name.startswith("site-a-")
    with pytest.raises(IdentityError, match="was revoked"):
        admit(folder, "site-a", public)
    with pytest.raises(IdentityError, match="not admitted"):
        revoke(folder, "site-a")


def test_key_of_one_site_is_not_admitted_for_another(folder, keys):
    admit(folder, "site-a", keys["site-a"].public_file)
    with pytest.raises(IdentityError, match="the key of site-a"):
        admit(folder, "site-b", keys["site-a"].public_file)


def test_second_key_of_a_site_needs_replace_and_revokes_the_first(folder, keys):
    admit(folder, "site-a", keys["site-a"].public_file)
    other = keys["site-b"].public_file  # any other key
    with pytest.raises(IdentityError, match="--replace"):
        admit(folder, "site-a", other)
    assert admit(folder, "site-a", other, replace=True).fingerprint == keys["site-b"].fingerprint
    with pytest.raises(IdentityError, match="was revoked"):
        admit(folder, "site-b", keys["site-a"].public_file)


def test_key_that_is_not_the_one_read_out_is_refused(folder, keys):
    public = keys["site-a"].public_file
    with pytest.raises(IdentityError, match="not admitted"):
        admit(folder, "site-a", public, expected=keys["site-b"].fingerprint)
    assert admit(folder, "site-a", public, expected=keys["site-a"].fingerprint).is_new


def test_site_that_is_not_in_the_federation_is_refused(folder, keys):
    with pytest.raises(ConfigError, match=r"no site 'site-x'\. Allowed: qilu, site-a"):
        admit(folder, "site-x", keys["site-a"].public_file)


def smaller_key():
    return public_line(ec.generate_private_key(ec.SECP256R1()).public_key(), "x")


def key_of_another_kind():
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ("P-384", smaller_key),
        ("P-384", key_of_another_kind),
        ("no OpenSSH public key", lambda: "hello"),
        ("no OpenSSH public key", lambda: ""),
        ("private key", lambda: "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("is no public key", lambda: "x" * 9000),
    ],
)
def test_anything_but_a_p384_public_key_is_refused(folder, tmp_path, message, content):
    path = tmp_path / "key.pub"
    path.write_text(content())
    with pytest.raises(IdentityError, match=message):
        admit(folder, "site-a", path)
    assert not list((folder / "admitted").iterdir())


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["iedn-server", *map(str, words)])
        monkeypatch.setattr(console, "_log_to_stderr", lambda: None)
        with pytest.raises(SystemExit) as end:
            server.cli.main()
        return end.value.code, *capsys.readouterr()

    return run


def test_commands_from_init_to_revoke(call, tmp_path):
    run = tmp_path / "trial"
    code, out, _ = call("init", run, "--sites", "a,b", "--evaluate", "qilu", "--host", "localhost")
    assert code == 0
    assert "3 sites, 20 rounds of 2 updates" in out
    assert "with 2, nothing will leave" in out
    code, _, error = call("status", run)
    assert code == 3
    assert "has not been started" in error.replace("\n", " ")
    made = create_identity(load_site_config(run / "kits" / "a" / "site.toml"))
    code, out, _ = call("admit", "a", made.public_file, "--dir", run)
    assert code == 0
    assert made.fingerprint in out
    code, out, _ = call("certificates", "--dir", run, "--json")
    facts = json.loads(out)
    assert facts["admitted"] == {"a": made.fingerprint, "b": None, "qilu": None}
    assert facts["certificates"]["server"]["days_left"] == 396
    assert call("renew", "--dir", run)[0] == 0
    assert call("revoke", "a", "--dir", run)[0] == 0
    assert call("admit", "a", made.public_file, "--dir", run)[0] == 5
    assert call("init", run, "--sites", "a", "--host", "localhost")[0] == 3


def test_certificate_that_expires_soon_is_warned_of(call, folder):
    authority = new_authority("old", datetime.now(UTC) - timedelta(days=3640))
    (folder / "tls" / "ca.crt").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    assert days_left(read_certificates(folder / "tls" / "ca.crt")[0]) < 30
    code, out, _ = call("certificates", "--dir", folder)
    assert code == 0
    assert "warning: the authority certificate expires soon" in out


@pytest.mark.parametrize("module", ["server.cli", "client.cli"])
def test_help_does_not_load_what_is_slow(module):
    slow = "{'torch', 'flwr', 'cryptography', 'scipy', 'numpy', 'pydantic'}"
    program = f"import sys, {module}; print(sorted({slow} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout.decode().strip() == "[]"

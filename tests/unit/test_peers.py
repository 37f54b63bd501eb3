"""The list of sites: written by the coordinator, compared by people, accepted at each site."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import client.cli
import server.cli
from client.identity import create_identity, make_identity, read_private_key, signing_key_file
from client.peers import PEERS, accept_peers, peer_keys, peers_fact
from iedn import console
from iedn.errors import IdentityError, RefusedError
from iedn.identity import fingerprint
from iedn.peers import PeerList, digest_of, read_peers
from sites.config import SITE_FILE, load_site_config

SITES = ("site-a", "site-b", "site-c")


def key_of(site):
    return ec.derive_private_key(sum(site.encode()), ec.SECP384R1())


@pytest.fixture
def config(tmp_path):
    """A site whose key has been made."""
    (tmp_path / SITE_FILE).write_text('name = "site-a"\nmanifest = "manifest.csv"\n')
    config = load_site_config(tmp_path / SITE_FILE)
    make_identity(config.folder / "tls" / "site.key", config.name)
    return config


@pytest.fixture
def keys(config):
    own = read_private_key(signing_key_file(config)).public_key()
    return {"site-a": own} | {s: key_of(s).public_key() for s in SITES[1:]}


def write(path, keys, change=lambda content: content):
    content = json.loads(PeerList.of("run-1", keys).to_bytes())
    path.write_text(json.dumps(change(content)))
    return path


def test_accepted_list_is_known_from_then_on(config, keys, tmp_path):
    with pytest.raises(RefusedError, match="no-peers"):
        peer_keys(config)
    assert peers_fact(config).status == "failed"
    outcome = accept_peers(config, write(tmp_path / "roster.json", keys))
    assert outcome.changes == dict.fromkeys(SITES, "new")
    assert peer_keys(config) == keys
    assert peers_fact(config).status == "ok"


def test_changes_are_named_and_another_key_needs_replace(config, keys, tmp_path):
    accept_peers(config, write(tmp_path / "roster.json", keys))
    later = {**keys, "site-b": key_of("site-x").public_key(), "site-d": key_of("d").public_key()}
    del later["site-c"]
    path = write(tmp_path / "later.json", later)
    with pytest.raises(IdentityError, match="another key for site-b"):
        accept_peers(config, path)
    assert peer_keys(config) == keys
    outcome = accept_peers(config, path, replace=True)
    assert outcome.changes == {
        "site-a": "unchanged",
        "site-b": "replaced",
        "site-c": "removed",
        "site-d": "new",
    }
    assert peer_keys(config) == later


def without_the_site(content):
    del content["sites"]["site-a"]
    return content


def with_another_key_for_the_site(content):
    content["sites"]["site-a"] = {**content["sites"]["site-b"]}
    del content["sites"]["site-b"]
    return content


def with_a_fingerprint_of_another_key(content):
    content["sites"]["site-b"]["fingerprint"] = content["sites"]["site-c"]["fingerprint"]
    return content


def with_one_key_for_two(content):
    content["sites"]["site-b"] = content["sites"]["site-c"]
    return content


def with_no_key(content):
    content["sites"]["site-b"]["key"] = "ssh-ed25519 AAAA"
    return content


def of_another_form(content):
    return list(content["sites"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_the_site, "site-a, is not on it"),
        (with_another_key_for_the_site, "for this site, whose key is"),
        (with_a_fingerprint_of_another_key, "the file was changed"),
        (with_one_key_for_two, "two sites have the same key"),
        (with_no_key, "site-b: is no OpenSSH public key"),
        (of_another_form, "is no list of sites"),
    ],
)
def test_list_that_cannot_be_right_is_refused(config, keys, tmp_path, change, message):
    path = write(tmp_path / "roster.json", keys, change)
    with pytest.raises(IdentityError, match=message):
        accept_peers(config, path)
    assert not (config.folder / PEERS).exists()


def test_missing_file_is_refused(config, tmp_path):
    with pytest.raises(IdentityError, match="cannot be read"):
        accept_peers(config, tmp_path / "roster.json")


def test_digest_of_the_whole_list_changes_with_any_key(keys):
    listed = PeerList.of("run-1", keys)
    other = PeerList.of("run-1", {**keys, "site-c": key_of("other").public_key()})
    assert len(digest_of(listed)) == 64
    assert digest_of(listed) != digest_of(other)


def test_commands_from_admission_to_the_accepted_list(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "_log_to_stderr", lambda: None)
    run = tmp_path / "run"

    def call(app, *words):
        monkeypatch.setattr("sys.argv", ["command", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            console.run_command(app)
        return ended.value.code, capsys.readouterr().out

    listed = ",".join(SITES)
    call(server.cli.app, "init", run, "--sites", listed, "--host", "localhost")
    prints = {}
    for site in SITES[:2]:
        kit = run / "kits" / site
        prints[site] = create_identity(load_site_config(kit / SITE_FILE)).fingerprint
        call(server.cli.app, "admit", site, kit / "tls" / "site.pub", "--dir", run)
    code, out = call(server.cli.app, "roster", run, "--json")
    assert code == 0
    assert json.loads(out)["sites"] == prints
    assert json.loads(out)["not_admitted"] == ["site-c"]
    _, keys = read_peers(run / "roster.json")
    assert {site: fingerprint(key) for site, key in keys.items()} == prints
    kit = run / "kits" / "site-a"
    assert call(client.cli.app, "--site", kit, "peers")[0] == 5
    code, out = call(client.cli.app, "--site", kit, "peers", "accept", run / "roster.json")
    assert code == 0
    assert all(text in out for text in prints.values())
    assert "site-a new, site-b new" in out
    code, out = call(client.cli.app, "--site", kit, "peers", "--json")
    assert json.loads(out)["sites"] == prints

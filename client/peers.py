"""The other sites, as this one knows them: the list of public keys that it has accepted.

The coordinator hands the list out and could put anybody on it. So the fingerprints are compared by
telephone with the hospitals themselves, and a key that is not on the accepted list is no site's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from iedn.errors import IdentityError, RefusedError
from iedn.files import atomic_write_bytes
from iedn.identity import fingerprint
from iedn.peers import PeerList, PublicKeys, read_peers
from sites.config import SiteConfig

from .fact import Fact, failed, ok
from .identity import read_private_key, signing_key_file

PEERS = "peers.json"

Change = Literal["new", "unchanged", "replaced", "removed"]


@dataclass(frozen=True)
class Acceptance:
    """What accepting a list has changed.

    Attributes:
        listed: the list.
        changes: by site.
    """

    listed: PeerList
    changes: dict[str, Change]


def accept_peers(config: SiteConfig, path: Path, *, replace: bool = False) -> Acceptance:
    """Take a list of sites for this site's own, in place of an earlier one.

    Args:
        config: the site's.
        path: the coordinator's ``roster.json``.
        replace: sites that are known by another key may have a new one.

    Raises:
        IdentityError: it is no such list, does not have this site's own key under its name, or has
            another key for a site that is known already.
    """
    listed, keys = read_peers(path)
    _check_own(config, keys, path)
    before = _accepted(config)
    changes = {name: _change(name, before, listed) for name in {*listed.sites, *before}}
    replaced = sorted(name for name, change in changes.items() if change == "replaced")
    if replaced and not replace:
        problem = f"has another key for {', '.join(replaced)} than the list accepted before"
        advice = "ask there by telephone whether it has a new key; then --replace accepts it"
        raise IdentityError(f"{path}: {problem}; {advice}")
    config.folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(config.folder / PEERS, listed.to_bytes())
    return Acceptance(listed, dict(sorted(changes.items())))


def peer_keys(config: SiteConfig) -> PublicKeys:
    """Keys of all sites of the accepted list.

    Raises:
        RefusedError: ``no-peers``: none has been accepted.
        IdentityError: the list is damaged, or lacks this site's own key.
    """
    path = config.folder / PEERS
    if not path.exists():
        text = f"no list of sites was accepted (iedn-client --site {config.name} peers accept)"
        raise RefusedError("no-peers", text)
    _, keys = read_peers(path)
    _check_own(config, keys, path)
    return keys


def peers_fact(config: SiteConfig) -> Fact:
    """The line of ``check``: there is a list, and this site is on it."""
    try:
        number = len(peer_keys(config))
    except (RefusedError, IdentityError) as error:
        action = "iedn-client --site NAME peers accept FILE; the coordinator has the file"
        return failed("peers", str(error), action, IdentityError.exit_code)
    return ok("peers", f"{number} sites are known by key; no other can be in a masked sum")


def accepted_list(config: SiteConfig) -> PeerList:
    """The list that was accepted.

    Raises:
        IdentityError: there is none, or it is damaged.
    """
    path = config.folder / PEERS
    if not path.exists():
        advice = f"iedn-client --site {config.name} peers accept FILE, with the coordinator's file"
        raise IdentityError(f"{path}: no list of sites has been accepted yet; {advice}")
    return read_peers(path)[0]


def _accepted(config: SiteConfig) -> dict[str, str]:
    """Fingerprints of the list before; none if there is no list yet."""
    if not (config.folder / PEERS).exists():
        return {}
    return {name: peer.fingerprint for name, peer in accepted_list(config).sites.items()}


def _change(name: str, before: dict[str, str], listed: PeerList) -> Change:
    if name not in listed.sites:
        return "removed"
    if name not in before:
        return "new"
    return "unchanged" if before[name] == listed.sites[name].fingerprint else "replaced"


def _check_own(config: SiteConfig, keys: PublicKeys, path: Path) -> None:
    own = read_private_key(signing_key_file(config)).public_key()
    if config.name not in keys:
        raise IdentityError(f"{path}: this site, {config.name}, is not on it; is it admitted?")
    if keys[config.name] != own:
        problem = f"has {fingerprint(keys[config.name])} for this site, whose key is"
        raise IdentityError(f"{path}: {problem} {fingerprint(own)}")

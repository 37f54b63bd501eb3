"""The list of a federation's sites and their public keys, as people compare it.

The coordinator writes it (``iedn-server roster``), each site accepts it after its fingerprints were
compared by telephone, and from then on takes nobody else for a site of the federation.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from pydantic import Field, ValidationError

from .config import FrozenModel
from .errors import IdentityError
from .identity import fingerprint, parse_public_key, public_line
from .protocol.messages import RunName, SiteName

PublicKeys = Mapping[str, EllipticCurvePublicKey]


class Peer(FrozenModel):
    """One site.

    Attributes:
        key: its public key, OpenSSH's one line.
        fingerprint: of this key, as ``ssh-keygen -lf`` prints it.
    """

    key: str = Field(max_length=8192)
    fingerprint: str


class PeerList(FrozenModel):
    """All sites that train in a run.

    Attributes:
        run: name of the run.
        sites: by name.
    """

    run: RunName
    sites: dict[SiteName, Peer] = Field(min_length=1, max_length=10_000)

    @classmethod
    def of(cls, run: str, keys: PublicKeys) -> "PeerList":
        """The list of these keys."""
        sites = {
            name: Peer(key=public_line(key, name), fingerprint=fingerprint(key))
            for name, key in sorted(keys.items())
        }
        return cls(run=run, sites=sites)

    def to_bytes(self) -> bytes:
        """The file."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def read_peers(path: Path) -> tuple[PeerList, PublicKeys]:
    """A list with its keys, every fingerprint being that of its key.

    Raises:
        IdentityError: the file cannot be read, is no such list, holds a key of another kind, a
            fingerprint of another key, or one key for two sites.
    """
    try:
        listed = PeerList.model_validate_json(path.read_bytes())
    except OSError as error:
        problem = f"the list of sites cannot be read: {error.strerror}"
        raise IdentityError(f"{path}: {problem}") from None
    except ValidationError as error:
        expected = "the file roster.json that `iedn-server roster` writes"
        place = ".".join(str(part) for part in error.errors()[0]["loc"]) or "it"
        raise IdentityError(f"{path}: is no list of sites ({place}); expected {expected}") from None
    keys = {}
    for name, peer in listed.sites.items():
        keys[name] = parse_public_key(peer.key.encode(), f"{path}: {name}")
        if fingerprint(keys[name]) != peer.fingerprint:
            problem = f"the key of {name} has fingerprint {fingerprint(keys[name])}"
            raise IdentityError(f"{path}: {problem}, not {peer.fingerprint}; the file was changed")
    if len({peer.fingerprint for peer in listed.sites.values()}) < len(keys):
        raise IdentityError(f"{path}: two sites have the same key; each has its own")
    return listed, keys


def peer_lines(listed: PeerList) -> list[str]:
    """For people: a line a site with its fingerprint, and one number for all of them."""
    lines = [f"{name:20} {peer.fingerprint}" for name, peer in sorted(listed.sites.items())]
    return [*lines, f"{'whole list':20} SHA-256 {digest_of(listed)}"]


def digest_of(listed: PeerList) -> str:
    """One number for the whole list: SHA-256 (hex) of its names and fingerprints."""
    lines = [f"{name} {peer.fingerprint}\n" for name, peer in sorted(listed.sites.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()

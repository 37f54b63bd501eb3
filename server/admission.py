"""Who may join: one public key a site, as files.

``admitted/NAME.pub`` is the list that a running coordinator follows; admitting and revoking
change files only, each by one rename, and work while a run goes on. A key that was revoked or
replaced is kept in ``revoked/`` and never admitted again.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from iedn.errors import ConfigError, IdentityError
from iedn.files import atomic_write_bytes
from iedn.identity import fingerprint, public_line, read_public_key
from iedn.peers import PeerList

from .config import load_federation
from .provisioning import ADMITTED, FEDERATION_FILE, REVOKED

ROSTER = "roster.json"
"""The list of admitted training sites that every one of them accepts; see ``iedn.peers``."""


@dataclass(frozen=True)
class Admission:
    """A site that may join.

    Attributes:
        site: its name.
        fingerprint: of its public key.
        is_new: False if this very key was admitted before.
    """

    site: str
    fingerprint: str
    is_new: bool = True


def admit(
    folder: Path, site: str, key_file: Path, *, expected: str | None = None, replace: bool = False
) -> Admission:
    """Let a site join with its public key.

    Args:
        folder: the coordinator's.
        site: a site of ``federation.toml``.
        key_file: its public key, as ``iedn-client init`` prints it.
        expected: fingerprint that the site has read out; any other key is refused.
        replace: the site has a new key; the old one is revoked.

    Raises:
        ConfigError: the federation has no such site.
        IdentityError: the key is of another kind, not the expected one, another site's, revoked,
            or the site has another key already.
    """
    _check_site(folder, site)
    key = read_public_key(key_file)
    print_ = fingerprint(key)
    if expected is not None and expected != print_:
        raise IdentityError(f"{key_file}: has fingerprint {print_}, not {expected}; not admitted")
    admitted = admitted_keys(folder)
    others = [name for name, other in admitted.items() if other == key and name != site]
    if others:
        raise IdentityError(
            f"{key_file}: {print_} is the key of {others[0]}; each site has its own"
        )
    _check_not_revoked(folder, key)
    present = admitted.get(site)
    if present == key:
        return Admission(site, print_, is_new=False)
    if present is not None and not replace:
        problem = f"{site} is admitted with {fingerprint(present)} already"
        raise IdentityError(f"{problem}; --replace revokes that key and admits {print_}")
    if present is not None:
        _write(_revoked_file(folder, site, present), _line(present, site))
    _write(_admitted_file(folder, site), _line(key, site))
    return Admission(site, print_)


def revoke(folder: Path, site: str) -> str:
    """Take a site's admission away for good; returns the fingerprint of the revoked key.

    Raises:
        ConfigError: the federation has no such site.
        IdentityError: the site is not admitted.
    """
    _check_site(folder, site)
    key = admitted_keys(folder).get(site)
    if key is None:
        raise IdentityError(f"{site} is not admitted; nothing to revoke")
    target = _revoked_file(folder, site, key)
    target.parent.mkdir(exist_ok=True)
    _admitted_file(folder, site).replace(target)
    return fingerprint(key)


def admitted_keys(folder: Path) -> dict[str, EllipticCurvePublicKey]:
    """Public keys of the admitted sites, by name.

    Raises:
        IdentityError: a file there is no public key.
    """
    return {p.stem: read_public_key(p) for p in _admitted_files(folder)}


def admitted_names(folder: Path) -> frozenset[str]:
    """Names of the admitted sites."""
    return frozenset(p.stem for p in _admitted_files(folder))


def write_roster(folder: Path) -> tuple[Path, PeerList, tuple[str, ...]]:
    """Write ``roster.json``: the admitted training sites and their keys, for the sites to accept.

    Returns:
        The file, the list, and training sites that are not admitted yet.

    Raises:
        ConfigError: no training site is admitted.
        IdentityError: a file of ``admitted/`` is no public key.
    """
    config = load_federation(folder / FEDERATION_FILE)
    trainers = {name for name, entry in config.sites.items() if entry.role == "train"}
    keys = {name: key for name, key in admitted_keys(folder).items() if name in trainers}
    if not keys:
        where, allowed = str(folder / ADMITTED), "iedn-server admit SITE KEYFILE, then this"
        raise ConfigError("no training site is admitted", where=where, allowed=allowed)
    listed = PeerList.of(config.run, keys)
    path = folder / ROSTER
    atomic_write_bytes(path, listed.to_bytes())
    return path, listed, tuple(sorted(trainers - set(keys)))


def _admitted_files(folder: Path) -> list[Path]:
    return sorted((folder / ADMITTED).glob("[!.]*.pub"))


def _check_site(folder: Path, site: str) -> None:
    path = folder / FEDERATION_FILE
    sites = load_federation(path).sites
    if site not in sites:
        problem = f"the federation has no site {site!r}"
        raise ConfigError(problem, where=f"{path}: sites", allowed=", ".join(sorted(sites)))


def _check_not_revoked(folder: Path, key: EllipticCurvePublicKey) -> None:
    for path in sorted((folder / REVOKED).glob("[!.]*.pub")):
        if read_public_key(path) == key:
            advice = "the site makes a new key (iedn-client init --force)"
            raise IdentityError(f"{fingerprint(key)} was revoked ({path.name}); {advice}")


def _admitted_file(folder: Path, site: str) -> Path:
    return folder / ADMITTED / f"{site}.pub"


def _revoked_file(folder: Path, site: str, key: EllipticCurvePublicKey) -> Path:
    """Named by the fingerprint, with the two characters a file name should not have replaced."""
    text = fingerprint(key).removeprefix("SHA256:").replace("/", "_").replace("+", "-")
    return folder / REVOKED / f"{site}-{text}.pub"


def _line(key: EllipticCurvePublicKey, site: str) -> bytes:
    return public_line(key, site).encode() + b"\n"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    atomic_write_bytes(path, content)

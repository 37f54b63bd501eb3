"""The site's own key: made where it is used, and never anywhere else."""

import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)

from iedn.errors import ConfigError, IdentityError
from iedn.files import atomic_write_bytes
from iedn.identity import fingerprint, is_p384, public_line
from sites.config import CoordinatorConfig, SiteConfig

SIGNING_KEY = Path("tls") / "site.key"
"""Where a site's key is, in its folder, if its site file does not say otherwise."""


@dataclass(frozen=True)
class SiteIdentity:
    """A site's key pair on disk.

    Attributes:
        key_file: the private key; never leaves.
        public_file: the public key, for the coordinator.
        public_line: its one line.
        fingerprint: what two people compare by telephone.
    """

    key_file: Path
    public_file: Path
    public_line: str
    fingerprint: str


def create_identity(config: SiteConfig, *, force: bool = False) -> SiteIdentity:
    """Make the site's EC P-384 key, in the form that Flower's node takes.

    Args:
        config: the site's; ``coordinator.key`` says where the key goes.
        force: replace a key that is there; the coordinator then has to admit the new one.

    Raises:
        ConfigError: the site file names no key.
        IdentityError: there is a key already.
    """
    return make_identity(key_file_of(config), config.name, force=force)


def make_identity(key_file: Path, name: str, *, force: bool = False) -> SiteIdentity:
    """Make a site's key in a file of its own, and the public half beside it.

    Raises:
        IdentityError: there is a key already.
    """
    if key_file.exists() and not force:
        present = read_private_key(key_file).public_key()
        problem = f"{key_file}: there is a key already, {fingerprint(present)}"
        advice = "--force replaces it; the coordinator then has to admit the new one"
        raise IdentityError(f"{problem}; {advice}")
    key = ec.generate_private_key(ec.SECP384R1())
    line = public_line(key.public_key(), name)
    key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    public_file = key_file.with_suffix(".pub")
    # The private key comes last: while it is missing, the command can simply be given again.
    atomic_write_bytes(public_file, line.encode() + b"\n")
    content = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    atomic_write_bytes(key_file, content, mode=0o600)
    return SiteIdentity(key_file, public_file, line, fingerprint(key.public_key()))


def coordinator_of(config: SiteConfig) -> CoordinatorConfig:
    """The site file's ``[coordinator]``.

    Raises:
        ConfigError: there is none.
    """
    if config.coordinator is None:
        problem = f"the site file of {config.name} has no [coordinator] table"
        raise ConfigError(problem, allowed="the table that the coordinator's kit brings")
    return config.coordinator


def key_file_of(config: SiteConfig) -> Path:
    """Where the site's private key is, or will be.

    Raises:
        ConfigError: the site file does not say.
    """
    path = coordinator_of(config).key
    if path is None:
        problem = f"the site file of {config.name} names no key"
        raise ConfigError(problem, where="coordinator.key", allowed='e.g. "tls/site.key"')
    return path


def signing_key_file(config: SiteConfig) -> Path:
    """The private key that signs for the site; a simulated site has no coordinator to say where.

    Raises:
        ConfigError: the site file has a coordinator and names no key.
    """
    return config.folder / SIGNING_KEY if config.coordinator is None else key_file_of(config)


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The site's key, if it is one that will be accepted.

    Raises:
        IdentityError: it is missing, unreadable, encrypted, or not an EC P-384 key.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        advice = "iedn-client --site NAME init makes one"
        raise IdentityError(f"{path}: cannot be read: {error.strerror}; {advice}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        problem = f"is no unencrypted OpenSSH private key ({error})"
        raise IdentityError(f"{path}: {problem}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_p384(key):
        raise IdentityError(f"{path}: must be an EC P-384 key; iedn-client init makes one")
    return key


def others_may_read(path: Path) -> bool:
    """Whether group or others have any right on the file."""
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))

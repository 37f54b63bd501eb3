"""Public keys and certificates, as both sides of the wall read them.

A site is known by an EC P-384 key in OpenSSH's one-line form, the coordinator by a certificate.
Fingerprints are those that ``ssh-keygen -lf`` prints, so that two people can compare them by
telephone with a tool they already have.
"""

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from .errors import IdentityError

WARN_DAYS = 30
"""A certificate with fewer days left is worth a warning."""

_MAX_KEY_BYTES = 8192


def public_line(key: ec.EllipticCurvePublicKey, comment: str) -> str:
    """The key as one line of OpenSSH, with a comment, without a line feed."""
    return f"{key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()} {comment}"


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read an EC P-384 public key in OpenSSH's form.

    Raises:
        IdentityError: the file cannot be read, holds a private key, or another kind of key.
    """
    return parse_public_key(_content(path, "public key"), str(path))


def parse_public_key(content: bytes, where: str) -> ec.EllipticCurvePublicKey:
    """An EC P-384 public key from OpenSSH's one line.

    Args:
        content: the line.
        where: it came from, for messages.

    Raises:
        IdentityError: it is a private key, or another kind of key.
    """
    if b"PRIVATE KEY" in content:
        problem = (
            "holds a private key, which is never handed on; make a new one, send its .pub file"
        )
        raise IdentityError(f"{where}: {problem}")
    if len(content) > _MAX_KEY_BYTES:
        raise IdentityError(f"{where}: is no public key ({len(content)} bytes)")
    try:
        key = load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        expected = "one line that starts with ecdsa-sha2-nistp384, as `iedn-client init` writes it"
        raise IdentityError(f"{where}: is no OpenSSH public key ({error}); {expected}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not is_p384(key):
        raise IdentityError(f"{where}: must be an EC P-384 key (ecdsa-sha2-nistp384)")
    return key


def is_p384(key: ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) -> bool:
    """Whether the key is on the one curve that is used here."""
    return isinstance(key.curve, ec.SECP384R1)


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """``SHA256:…`` as ``ssh-keygen -lf`` prints it."""
    blob = base64.b64decode(public_line(key, "").split(" ")[1])
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


def read_certificates(path: Path) -> list[x509.Certificate]:
    """All certificates of a PEM file, at least one.

    Raises:
        IdentityError: the file cannot be read or holds no certificate.
    """
    try:
        return x509.load_pem_x509_certificates(_content(path, "certificate"))
    except ValueError as error:
        raise IdentityError(f"{path}: holds no certificate in PEM form ({error})") from None


def days_left(certificate: x509.Certificate, now: datetime | None = None) -> int:
    """Whole days until the certificate expires; negative after that."""
    return (certificate.not_valid_after_utc - (now or datetime.now(UTC))).days


def names_of(certificate: x509.Certificate) -> list[str]:
    """Host names and addresses that the certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    ]


def _content(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(f"{path}: the {what} cannot be read: {error.strerror}") from None

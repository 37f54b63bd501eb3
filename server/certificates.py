"""The federation's own certificate authority, and the one certificate that it signs.

Sites trust this authority and nothing else, so that no public authority can vouch for a false
coordinator. EC P-384 throughout; keys are files for their owner only.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from iedn.errors import ConfigError, IdentityError
from iedn.files import atomic_write_bytes
from iedn.identity import days_left, read_certificates

AUTHORITY_DAYS = 3652
SERVER_DAYS = 397
"""Browsers and audits accept no more; renewing once a year keeps the way known."""

LOOPBACK = ("localhost", "127.0.0.1")

_HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(\.(?!-)[a-z0-9-]{1,63})*", re.IGNORECASE)
_CLOCKS_DIFFER = timedelta(hours=1)


@dataclass(frozen=True)
class Authority:
    """A certificate authority that can sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh EC P-384 key."""
    return ec.generate_private_key(ec.SECP384R1())


def new_authority(name: str, now: datetime | None = None) -> Authority:
    """An authority for one federation; it may sign end certificates, no further authority.

    Args:
        name: shown to whoever looks at the certificate.
        now: start of its validity, of ten years.
    """
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    start = now or datetime.now(UTC)
    builder = (
        _builder(subject, subject, key.public_key(), start, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return Authority(builder.sign(key, hashes.SHA384()), key)


def issue_server_certificate(
    authority: Authority,
    hosts: Sequence[str],
    public_key: ec.EllipticCurvePublicKey,
    now: datetime | None = None,
) -> x509.Certificate:
    """A certificate for the coordinator's host names and addresses, and for loopback.

    It lasts 397 days, but never longer than the authority.

    Raises:
        ConfigError: a host is neither a name nor an address.
        IdentityError: the authority has expired.
    """
    names = list(dict.fromkeys([*hosts, *LOOPBACK]))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    issuer = authority.certificate
    start = now or datetime.now(UTC)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    left = days_left(issuer, start)
    if left < 1:
        expired = issuer.not_valid_after_utc.date()
        advice = "a new federation folder has to be made, and new kits handed out"
        raise IdentityError(f"the authority's certificate ends on {expired}; {advice}")
    builder = _builder(issuer.subject, subject, public_key, start, min(SERVER_DAYS, left))
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(signer, critical=False)
        .sign(authority.key, hashes.SHA384())
    )


def check_host(host: str) -> str:
    """The host as it was given, if it is a host name or an IP address.

    Raises:
        ConfigError: it is neither.
    """
    _general_name(host)
    return host


def read_authority(certificate: Path, key: Path) -> Authority:
    """The authority that ``init`` made.

    Raises:
        IdentityError: a file is missing, unreadable, or the two do not belong together.
    """
    authority = Authority(read_certificates(certificate)[0], read_key(key))
    if authority.key.public_key() != authority.certificate.public_key():
        raise IdentityError(f"{key}: is not the key of {certificate}")
    return authority


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """An unencrypted EC private key in PEM form.

    Raises:
        IdentityError: it cannot be read, or is something else.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        hint = "; if it is kept elsewhere, bring it back for this command"
        raise IdentityError(f"{path}: cannot be read: {error.strerror}{hint}") from None
    except (ValueError, TypeError) as error:
        raise IdentityError(f"{path}: is no private key in PEM form ({error})") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{path}: is not an EC key")
    return key


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a private key, for its owner only."""
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    atomic_write_bytes(path, content, mode=0o600)


def write_certificate(path: Path, certificate: x509.Certificate) -> None:
    """Write a certificate as PEM."""
    atomic_write_bytes(path, certificate.public_bytes(Encoding.PEM))


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    start: datetime,
    days: int,
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _CLOCKS_DIFFER)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(identifier, critical=False)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    looks_like_address = re.fullmatch(r"[0-9.]+", host) is not None
    if looks_like_address or len(host) > 253 or not _HOST_NAME.fullmatch(host):
        problem = f"{host!r} is neither a host name nor an IP address"
        allowed = "e.g. coordinator.example.org or 192.0.2.7, several separated by commas"
        raise ConfigError(problem, where="--host", allowed=allowed)
    return x509.DNSName(host)

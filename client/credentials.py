"""Facts about the files by which site and coordinator know each other."""

from cryptography import x509

from iedn.errors import ConfigError, IdentityError
from iedn.identity import WARN_DAYS, days_left, fingerprint, read_certificates
from sites.config import CoordinatorConfig

from .fact import Fact, failed, ok, warning
from .identity import others_may_read, read_private_key


def credential_facts(coordinator: CoordinatorConfig) -> list[Fact]:
    """This site's key, the authority's certificate, and the runs it takes part in."""
    return [key_fact(coordinator), authority_fact(coordinator), federations_fact(coordinator)]


def key_fact(coordinator: CoordinatorConfig) -> Fact:
    """The key is there, of the right kind, and its owner's alone."""
    path = coordinator.key
    if path is None:
        found = "coordinator.key is not set"
        return failed("key", found, 'set it, e.g. key = "tls/site.key"', ConfigError.exit_code)
    try:
        key = read_private_key(path)
    except IdentityError as error:
        return failed("key", str(error), "iedn-client --site NAME init", error.exit_code)
    if others_may_read(path):
        found = f"{path}: other users may read it (mode {path.stat().st_mode & 0o777:o})"
        action = f"chmod 600 {path}; if someone may have, make a new key and have it admitted"
        return failed("key", found, action, IdentityError.exit_code)
    return ok("key", f"{path}: EC P-384, {fingerprint(key.public_key())}")


def authority_fact(coordinator: CoordinatorConfig) -> Fact:
    """The certificate by which the coordinator is recognised."""
    path, name = coordinator.ca, "authority"
    if path is None:
        found = "coordinator.ca is not set: nothing tells the coordinator from another server"
        action = 'set it to the kit\'s file, ca = "tls/ca.crt"'
        return failed(name, found, action, ConfigError.exit_code)
    try:
        certificates = read_certificates(path)
    except IdentityError as error:
        action = "copy tls/ca.crt from the coordinator's kit again"
        return failed(name, str(error), action, error.exit_code)
    no_authority = [c for c in certificates if not _may_sign(c)]
    if no_authority:
        found = f"{path}: {_name(no_authority[0])} is no authority's certificate"
        action = "put the authority's certificate there, not the server's"
        return failed(name, found, action, IdentityError.exit_code)
    left = min(map(days_left, certificates))
    found = f"{path}: {', '.join(map(_name, certificates))}; {left} days left"
    if left < 0:
        action = "get the new one from the coordinator (or your own IT department)"
        return failed(name, found, action, IdentityError.exit_code)
    if left < WARN_DAYS:
        return warning(name, found, "ask the coordinator for the new one in time")
    if len(certificates) > 1:
        action = "each of them can vouch for a coordinator: only your own proxy's may be added"
        return warning(name, found, action)
    return ok(name, found)


def federations_fact(coordinator: CoordinatorConfig) -> Fact:
    """The site says which runs it takes part in."""
    if not coordinator.federations:
        found = "coordinator.federations is empty: every run is refused"
        action = "write the name of the run there that the hospital has agreed to"
        return failed("runs", found, action, ConfigError.exit_code)
    return ok("runs", f"takes part in {', '.join(coordinator.federations)}, in no other")


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return found.value.ca


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()

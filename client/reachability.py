"""Facts about the way to the coordinator: proxy, TLS, certificate, clock.

The connection is the one that Flower's node makes (TCP, or CONNECT through ``HTTPS_PROXY``, then
TLS against ``coordinator.ca``); a GET follows it, whose answer is not looked at but for its date.
"""

import base64
import re
import socket
import ssl
import time
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, unquote, urlsplit

from cryptography import x509

from iedn.errors import ConfigError, IdentityError, UnreachableError
from iedn.identity import WARN_DAYS, days_left, names_of
from sites.config import CoordinatorConfig

from .fact import Fact, failed, ok, warning

TIMEOUT_S = 10.0

AHEAD_S, BEHIND_S = 5.0, 305.0
"""Flower refuses a node whose clock differs by more (``fleet/node_auth.py``, flwr 1.41)."""

WARN_AHEAD_S, WARN_BEHIND_S = 2.0, 30.0
_DATE_RESOLUTION_S = 1.0
_MOST_HEAD_BYTES = 16384

_OTHER_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_NOT_YET, _EXPIRED = 9, 10


@dataclass(frozen=True)
class Endpoint:
    """Where the coordinator listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _StoppedError(Exception):
    """The way ends here; carries the line that says why."""

    def __init__(self, fact: Fact) -> None:
        self.fact = fact
        super().__init__(fact.found)


def connection_facts(coordinator: CoordinatorConfig) -> list[Fact]:
    """Go the whole way to the coordinator, and say how far it leads."""
    host, _, port = coordinator.address.rpartition(":")
    endpoint = Endpoint(host.strip("[]"), int(port))
    if not 0 < endpoint.port < 65536:
        action = "set coordinator.address; a port is 1 to 65535"
        return [failed("connection", f"{endpoint}: no such port", action, ConfigError.exit_code)]
    facts: list[Fact] = []
    try:
        proxy = proxy_for(endpoint.host)
        with _connected(endpoint, proxy) as plain:
            through = f" through {_shown(proxy)}" if proxy else ""
            facts.append(ok("connection", f"{endpoint} answers{through}"))
            with _secured(plain, endpoint, coordinator) as secured:
                facts.append(certificate_fact(secured))
                facts.append(_clock_fact(secured, endpoint))
    except _StoppedError as stopped:
        facts.append(stopped.fact)
    return facts


def proxy_for(host: str) -> SplitResult | None:
    """The proxy that the environment names for TLS connections to a host, if any."""
    found = urllib.request.getproxies()
    address = found.get("https") or found.get("all")
    if not address or urllib.request.proxy_bypass(host):
        return None
    return urlsplit(address if "://" in address else f"http://{address}")


def certificate_fact(secured: ssl.SSLSocket) -> Fact:
    """Whom the verified certificate is for, who signed it, and how long it is valid."""
    content = secured.getpeercert(binary_form=True) or b""
    certificate = x509.load_der_x509_certificate(content)
    left = days_left(certificate)
    issuer = certificate.issuer.rfc4514_string()
    names = ", ".join(names_of(certificate))
    found = f"{secured.version()}, for {names}, signed by {issuer}; {left} days left"
    if left < WARN_DAYS:
        return warning("certificate", found, "the coordinator: iedn-server renew")
    return ok("certificate", found)


def clock_fact(ahead_s: float, uncertainty_s: float) -> Fact:
    """How this machine's clock stands to the coordinator's.

    Args:
        ahead_s: seconds that this clock is ahead; negative if behind.
        uncertainty_s: how wrong that may be.
    """
    way = "ahead of" if ahead_s > 0 else "behind"
    found = f"{abs(ahead_s):.0f} s {way} the coordinator's (within {uncertainty_s:.0f} s)"
    limits = f"more than {AHEAD_S:.0f} s ahead or {BEHIND_S:.0f} s behind is refused"
    action = f"let a time service set it (chrony, systemd-timesyncd); {limits}"
    if ahead_s - uncertainty_s > AHEAD_S or -ahead_s - uncertainty_s > BEHIND_S:
        return failed("clock", found, action, IdentityError.exit_code)
    if ahead_s - uncertainty_s > WARN_AHEAD_S or -ahead_s - uncertainty_s > WARN_BEHIND_S:
        return warning("clock", found, action)
    return ok("clock", found)


def _connected(endpoint: Endpoint, proxy: SplitResult | None) -> socket.socket:
    if proxy is None:
        return _opened(endpoint, "the coordinator", "coordinator.address, your firewall's rule for")
    if proxy.scheme != "http" or proxy.hostname is None:
        found = f"HTTPS_PROXY is {_shown(proxy)}; this check only goes through http:// proxies"
        raise _StoppedError(warning("connection", found, "most proxies are named with http://"))
    address = Endpoint(proxy.hostname, proxy.port or 80)
    plain = _opened(address, "the proxy", "HTTPS_PROXY, or NO_PROXY for")
    try:
        _tunnel(plain, endpoint, proxy)
    except BaseException:
        plain.close()
        raise
    return plain


def _opened(endpoint: Endpoint, what: str, look_at: str) -> socket.socket:
    try:
        return socket.create_connection((endpoint.host, endpoint.port), timeout=TIMEOUT_S)
    except socket.gaierror:
        why = "the name is not known here"
    except TimeoutError:
        why = f"no answer within {TIMEOUT_S:.0f} s (a firewall?)"
    except UnicodeError:
        why = "that is no host name"
    except OSError as error:
        why = (error.strerror or str(error)).lower()
    action = f"look at {look_at} {endpoint}; is {what} running?"
    raise _StoppedError(failed("connection", f"{what} {endpoint}: {why}", action, _UNREACHABLE))


def _tunnel(plain: socket.socket, endpoint: Endpoint, proxy: SplitResult) -> None:
    """CONNECT; RFC 9110, section 9.3.6."""
    lines = [f"CONNECT {endpoint} HTTP/1.1", f"Host: {endpoint}"]
    if proxy.username is not None:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
    try:
        plain.sendall("\r\n".join([*lines, "", ""]).encode())
        head = _head(plain)
    except OSError as error:
        head = str(error)
    status = re.match(r"HTTP/1\.[01] ([0-9]{3}.*)", head)
    if status is None or not status[1].startswith("2"):
        said = status[1].strip() if status else "no HTTP answer"
        found = f"the proxy {_shown(proxy)} does not connect to {endpoint}: {said}"
        action = "ask for CONNECT to this host and port to be allowed; 407 wants user:password@"
        raise _StoppedError(failed("connection", found, action, _UNREACHABLE))


def _secured(
    plain: socket.socket, endpoint: Endpoint, coordinator: CoordinatorConfig
) -> ssl.SSLSocket:
    try:
        context = _context(coordinator)
        return context.wrap_socket(plain, server_hostname=endpoint.host)
    except ssl.SSLCertVerificationError as error:
        raise _StoppedError(_distrust(error, endpoint)) from None
    except (ssl.SSLEOFError, ConnectionError, TimeoutError) as error:
        found = f"{endpoint} ended the connection: {error.strerror or error}"
        action = "is it the coordinator's public port? Does a firewall cut TLS?"
        raise _StoppedError(failed("connection", found, action, _UNREACHABLE)) from None
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        found = f"{endpoint} does not speak TLS as expected: {reason}"
        action = "is it the coordinator's public port, and no proxy's error page?"
        raise _StoppedError(failed("certificate", found, action, IdentityError.exit_code)) from None


def _context(coordinator: CoordinatorConfig) -> ssl.SSLContext:
    if coordinator.ca is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=coordinator.ca)
    except OSError as error:
        found = f"{coordinator.ca}: cannot be used ({error.strerror or error})"
        action = "copy tls/ca.crt from the coordinator's kit again"
        raise _StoppedError(failed("certificate", found, action, IdentityError.exit_code)) from None
    return context


def _distrust(error: ssl.SSLCertVerificationError, endpoint: Endpoint) -> Fact:
    """Why the server's certificate is not believed; the usual causes by name."""
    found = f"{endpoint}: {error.verify_message}"
    if error.verify_code in _OTHER_NAME:
        action = "coordinator.address must be a name the certificate is for; else the coordinator "
        action += "signs one: iedn-server renew --host NAME,…"
    elif error.verify_code == _EXPIRED:
        action = "the coordinator: iedn-server renew; if the date here is wrong, set the clock"
    elif error.verify_code == _NOT_YET:
        action = "set this machine's clock"
    else:
        action = (
            "not signed by coordinator.ca: another server, or a proxy that reads TLS (then ask "
        )
        action += "for an exception, or add its root certificate to the file)"
    return failed("certificate", found, action, IdentityError.exit_code)


def _clock_fact(secured: ssl.SSLSocket, endpoint: Endpoint) -> Fact:
    before = time.time()
    try:
        secured.sendall(f"GET / HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n".encode())
        head = _head(secured)
    except OSError as error:
        head = str(error)
    after = time.time()
    date = re.search(r"^date:\s*(.+?)\s*$", head, re.IGNORECASE | re.MULTILINE)
    try:
        server = parsedate_to_datetime(date[1] if date else "").timestamp()
    except ValueError:
        action = "is it the coordinator's public port? Compare the clocks by hand"
        return warning("clock", f"{endpoint} does not tell its time", action)
    half = _DATE_RESOLUTION_S / 2
    ahead = (before + after) / 2 - (server + half)
    return clock_fact(ahead, half + (after - before) / 2)


def _head(stream: socket.socket) -> str:
    """An HTTP message up to the empty line."""
    content = b""
    while b"\r\n\r\n" not in content and len(content) < _MOST_HEAD_BYTES:
        # A byte at a time: after a CONNECT, what follows the empty line is TLS's.
        received = stream.recv(1)
        if not received:
            break
        content += received
    return content.decode("latin-1")


def _shown(proxy: SplitResult) -> str:
    """The proxy without its password."""
    port = f":{proxy.port}" if proxy.port else ""
    return f"{proxy.scheme}://{proxy.hostname}{port}"


_UNREACHABLE = UnreachableError.exit_code

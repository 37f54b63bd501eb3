"""What an error here becomes outside: a code, and a random number to ask the site about."""

import logging
import secrets

from iedn.errors import IednError, PolicyError, ProtocolError, RefusedError, ScanError
from iedn.protocol.messages import FailureReply, safe_code

_log = logging.getLogger(__name__)


def failure_of(error: Exception) -> FailureReply:
    """A code and an incident id; the text stays in the site's own log."""
    reply = FailureReply(code=_code_of(error), incident=secrets.token_hex(6))
    _log.error("incident %s (%s): %s", reply.incident, reply.code, error, exc_info=error)
    return reply


def _code_of(error: Exception) -> str:
    if isinstance(error, ScanError | ProtocolError | RefusedError):
        return safe_code(error.code)
    if isinstance(error, PolicyError):
        return "policy"
    return safe_code(type(error).__name__) if isinstance(error, IednError) else "internal"

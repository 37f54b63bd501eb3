"""What Flower 1.41's node needs on a link that breaks off, so that nothing is lost and waited for.

A connection that is cut in a TLS handshake or while bytes are written counts there as a wrong
certificate: the call is given up, and the message that it carried is dropped. A message that
was handed out when the link broke is gone too: Flower marks it as delivered and never repeats it,
and the coordinator would wait for its reply until the deadline. Here broken connections are tried
again, and after a loss the node signs in again: to the coordinator that is another session, and
it asks again. What was trained is not trained twice; the site answers from the reply it kept.
"""

import logging
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
)
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectResponse
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supernode.fleet_http_client import FleetHttpClient

_log = logging.getLogger(__name__)

_NOTE_S = 1.0
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_OF_THE_LINK = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError, TimeoutError)
_NO_LOSS = frozenset(
    {
        httpx.codes.FORBIDDEN,  # the run is over
        httpx.codes.BAD_GATEWAY,  # these three are tried again
        httpx.codes.SERVICE_UNAVAILABLE,
        httpx.codes.GATEWAY_TIMEOUT,
    }
)


def install(heard: Path) -> None:
    """Have Flower's node use what is here.

    Args:
        heard: a file that is touched, once a second at most, when the coordinator has answered.
    """
    from flwr.supernode import fleet_http_connection

    ReturningClient.heard = heard
    vars(fleet_http_connection)["FleetHttpClient"] = ReturningClient
    vars(fleet_http_connection)["make_simple_http_retry_invoker"] = patient_retrier


def patient_retrier() -> RetryInvoker:
    """Flower's retries, also where it was the link that broke, and not the certificate."""
    retrier = make_simple_http_retry_invoker()
    flowers = retrier.should_giveup

    def give_up(error: Exception) -> bool:
        return not is_broken_link(error) and flowers is not None and flowers(error)

    retrier.should_giveup = give_up
    return retrier


def is_broken_link(error: BaseException) -> bool:
    """Whether a connection failed by being cut or silent, at whatever layer that was noticed."""
    if not isinstance(error, httpx.TransportError):
        return False
    return any(isinstance(cause, _OF_THE_LINK) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


class ReturningClient(FleetHttpClient):
    """Calls to the coordinator; after a loss, signs in again before it asks for more."""

    heard: ClassVar[Path | None] = None
    """Touched when the coordinator has answered."""

    _lost = False
    _noted = 0.0
    _sign_in: ActivateNodeRequest | None = None

    def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802
        """Sign in."""
        answer = super().ActivateNode(request)
        self._sign_in = request
        return answer

    def PullMessages(self, request: PullMessagesRequest) -> PullMessagesResponse:  # noqa: N802
        """Ask for a message; one that is handed out into a broken link is lost."""
        if self._lost and self._sign_in is not None:
            self._return(request.node.node_id, self._sign_in)
        try:
            return super().PullMessages(request)
        except httpx.TransportError as error:
            self._lost = self._lost or not isinstance(error, _NEVER_SENT)
            raise

    def _unary_unary(self, **call: Any) -> Any:
        """Any call; a piece that is not there or not taken makes its message worthless."""
        try:
            answer = super()._unary_unary(**call)
        except httpx.HTTPStatusError as error:
            self._lost = self._lost or error.response.status_code not in _NO_LOSS
            raise
        self._note_answer()
        not_there = isinstance(answer, PullObjectResponse) and not answer.object_found
        not_taken = isinstance(answer, PushObjectResponse) and not answer.stored
        self._lost = self._lost or not_there or not_taken
        return answer

    def _note_answer(self) -> None:
        if self.heard is None or time.monotonic() - self._noted < _NOTE_S:
            return
        self._noted = time.monotonic()
        try:
            self.heard.touch(mode=0o600)
        except OSError as error:  # the link works; only nobody is told
            _log.warning("%s cannot be touched: %s", self.heard, error)

    def _return(self, node_id: int, sign_in: ActivateNodeRequest) -> None:
        try:
            self.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
        except httpx.HTTPStatusError as error:
            _log.debug("taken for offline already: %s", error)
        super().ActivateNode(sign_in)
        self._lost = False
        _log.warning("signed in again after a loss on the way")

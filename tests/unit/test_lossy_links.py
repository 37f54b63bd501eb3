"""Broken links are not wrong certificates, and a node that has lost a message says so."""

import os
import socket
import ssl
import threading
from types import SimpleNamespace

import httpx
import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
)
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.retry import make_simple_http_retry_invoker

from client import lossy_links
from client.lossy_links import ReturningClient, is_broken_link, patient_retrier

NODE = 7
ANSWERS = {
    "activate-node": ActivateNodeResponse(node_id=NODE),
    "deactivate-node": DeactivateNodeResponse(),
    "pull-messages": PullMessagesResponse(),
    "push-object": PushObjectResponse(stored=True),
}


class Coordinator:
    """Answers as told; ``faults`` are taken one a call, None is an answer as usual."""

    def __init__(self, *faults):
        self.faults, self.calls = list(faults), []

    def __call__(self, request):
        call = request.url.path.rpartition("/")[2]
        self.calls.append(call)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        if isinstance(fault, int):
            return httpx.Response(fault)
        content = (fault or ANSWERS[call]).SerializeToString()
        return httpx.Response(200, content=content)


def signed_in(*faults):
    coordinator = Coordinator(None, *faults)
    client = ReturningClient("https://coordinator.test")
    client._client.close()
    client._client = httpx.Client(transport=httpx.MockTransport(coordinator))
    client.ActivateNode(ActivateNodeRequest())
    coordinator.calls.clear()
    return coordinator, client


def pull(client):
    client.PullMessages(PullMessagesRequest(node=Node(node_id=NODE)))


RETURN = ["deactivate-node", "activate-node", "pull-messages"]


def test_call_that_broke_off_may_have_lost_a_message_so_the_node_signs_in_again():
    coordinator, client = signed_in(httpx.ReadTimeout("silence"))
    with pytest.raises(httpx.ReadTimeout):
        pull(client)
    pull(client)
    pull(client)
    assert coordinator.calls == ["pull-messages", *RETURN, "pull-messages"]


def test_call_that_never_got_through_has_lost_nothing():
    coordinator, client = signed_in(httpx.ConnectError("refused"))
    with pytest.raises(httpx.ConnectError):
        pull(client)
    pull(client)
    assert coordinator.calls == ["pull-messages"] * 2


def test_loss_is_not_forgotten_while_the_link_stays_down():
    coordinator, client = signed_in(httpx.ReadError("cut"), httpx.ConnectError("still down"))
    for error in (httpx.ReadError, httpx.ConnectError):
        with pytest.raises(error):
            pull(client)
    pull(client)
    assert coordinator.calls == ["pull-messages", "deactivate-node", *RETURN]


def test_piece_that_is_not_taken_makes_the_node_sign_in_again():
    coordinator, client = signed_in(PushObjectResponse(stored=False))
    client.PushObject(PushObjectRequest())
    pull(client)
    assert coordinator.calls == ["push-object", *RETURN]


@pytest.mark.parametrize(("status", "calls"), [(500, RETURN), (403, ["pull-messages"])])
def test_refusal_is_a_loss_unless_the_run_is_over(status, calls):
    coordinator, client = signed_in(status)
    with pytest.raises(httpx.HTTPStatusError):
        client.PushObject(PushObjectRequest())
    pull(client)
    assert coordinator.calls == ["push-object", *calls]


def test_answers_are_noted_once_a_second_and_failures_are_not(monkeypatch, tmp_path):
    heard, clock = tmp_path / "heard", [100.0]
    monkeypatch.setattr(ReturningClient, "heard", heard)
    monkeypatch.setattr(lossy_links, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    _, client = signed_in(httpx.ConnectError("refused"), 503)
    heard.unlink()  # signing in was answered
    clock[0] = 110.0
    for error in (httpx.ConnectError, httpx.HTTPStatusError):
        with pytest.raises(error):
            pull(client)
    assert not heard.exists()
    pull(client)
    assert heard.stat().st_mode & 0o077 == 0
    os.utime(heard, (5, 5))
    clock[0] = 110.5
    pull(client)
    assert heard.stat().st_mtime == 5
    clock[0] = 111.5
    pull(client)
    assert heard.stat().st_mtime > 5


def test_a_note_that_cannot_be_made_costs_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(ReturningClient, "heard", tmp_path / "no-such-folder" / "heard")
    coordinator, client = signed_in()
    pull(client)
    assert coordinator.calls == ["pull-messages"]


def test_node_that_is_offline_already_signs_in_all_the_same():
    coordinator, client = signed_in(httpx.ReadError("cut"), 400)
    with pytest.raises(httpx.ReadError):
        pull(client)
    pull(client)
    assert coordinator.calls == ["pull-messages", *RETURN]


@pytest.fixture
def hangs_up():
    """A port whose connections end in the middle of the TLS handshake."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with server.accept()[0] as connection:
                connection.recv(1)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_connection_cut_in_the_handshake_is_tried_again(hangs_up):
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.TransportError) as caught:
        client.get(f"https://127.0.0.1:{hangs_up}")
    assert make_simple_http_retry_invoker().should_giveup(caught.value), "Flower gives up"
    assert is_broken_link(caught.value)
    assert not patient_retrier().should_giveup(caught.value)


def test_wrong_certificate_is_not_tried_again():
    error = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    error.__cause__ = ssl.SSLCertVerificationError("certificate verify failed")
    assert patient_retrier().should_giveup(error)

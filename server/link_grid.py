"""Flower's grid over the coordinator's private listener, which waits for no upload.

Flower 1.41 hands out a reply as soon as its upload has begun, once, and ``HttpGrid`` then waits for
its tensors until the upload's session has run out, after three minutes. A site that dies while it
sends would make the coordinator deaf to all others for so long. Here a reply that has not arrived
as a whole is left, and looked at again by the next call.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flwr.app import Message, Metadata
from flwr.app.error import Error
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from iedn.retries import retry_calmly

from .link import Control, PrivateInterceptor

_COMPONENT = "flwr-serverapp"


@dataclass
class _Arrival:
    """A reply that Flower has handed out, whether or not all of it is there.

    Attributes:
        message_id: of the reply.
        object_ids: of its parts; one that was missing at the last look comes first.
    """

    message_id: str
    object_ids: list[str]


class _NotYetError(Exception):
    """A part of a reply has not arrived."""

    def __init__(self, object_id: str) -> None:
        super().__init__(object_id)
        self.object_id = object_id


class LinkGrid(HttpGrid):
    """Flower's grid over the private listener.

    Args:
        control: where the listener is, and its secret.
        token: of the task.
        is_over: once this is true, a call that fails is not tried again.
    """

    def __init__(self, control: Control, token: str, is_over: Callable[[], bool]) -> None:
        super().__init__(control.address, insecure=True, token=token)
        self._client = runtime_client(control, RuntimeTokenHttpInterceptor(token=token), is_over)
        self._arrivals: dict[str, _Arrival] = {}

    @property
    def runtime(self) -> RuntimeHttpClient:
        """Flower's client below the grid."""
        return self._runtime_client

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages that have arrived as a whole, each once.

        A reply whose upload was given up comes as an error ``MESSAGE_UNAVAILABLE``.
        """
        wanted = list(message_ids)
        self._claim([i for i in wanted if i not in self._arrivals])
        found = (self._arrived(i) for i in wanted if i in self._arrivals)
        return [message for message in found if message is not None]

    def _claim(self, message_ids: list[str]) -> None:
        if not message_ids:
            return
        answer = self.runtime.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        for head, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            parts = [part.object_id for part in iterate_object_tree(tree)]
            arrival = _Arrival(head.metadata.message_id, parts)
            self._arrivals[head.metadata.reply_to_message_id] = arrival

    def _arrived(self, asked: str) -> Message | None:
        arrival = self._arrivals[asked]
        try:
            contents = self._contents(arrival)
        except _NotYetError as missing:
            arrival.object_ids.remove(missing.object_id)
            arrival.object_ids.insert(0, missing.object_id)
            return None
        except ObjectPullError:
            del self._arrivals[asked]
            return self._given_up(asked)
        del self._arrivals[asked]
        self.runtime.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self.node, run_id=self.run.run_id, message_object_id=arrival.message_id
            )
        )
        message = inflate_object_from_contents(arrival.message_id, contents)
        if not isinstance(message, Message):
            raise TypeError(f"a reply is no message but {type(message).__name__}")
        vars(message.metadata)["_message_id"] = arrival.message_id
        return message

    def _contents(self, arrival: _Arrival) -> dict[str, bytes]:
        pull = make_pull_object_fn_protobuf(self.runtime.PullObject, self.node, self.run.run_id)

        def pull_now(object_id: str) -> bytes:
            try:
                return pull(object_id)
            except ObjectUnavailableError:
                raise _NotYetError(object_id) from None

        first, *others = arrival.object_ids
        contents = {first: pull_now(first)}  # alone: of a reply on its way no tensor is fetched
        return contents | pull_objects(others, pull_now)

    def _given_up(self, asked: str) -> Message:
        metadata = Metadata(
            run_id=self.run.run_id,
            message_id="",
            src_node_id=self.node.node_id,
            dst_node_id=self.node.node_id,
            message_type=SYSTEM_MESSAGE_TYPE,
            group_id="",
            ttl=0,
            reply_to_message_id=asked,
            created_at=0.0,
        )
        lost = Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason="its upload was given up")
        return make_message(metadata=metadata, error=lost)


def runtime_client(
    control: Control, interceptor: ProtobufClientInterceptor, is_over: Callable[[], bool]
) -> RuntimeHttpClient:
    """Flower's client of the private listener.

    Args:
        control: where the listener is, and its secret.
        interceptor: shows what the calls are allowed by.
        is_over: once this is true, a call that fails is not tried again.
    """
    patience = make_simple_http_retry_invoker()
    retry_calmly(patience, is_over)
    return RuntimeHttpClient.from_server_address(
        server_address=control.address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            PrivateInterceptor(control.secret),
            RuntimeVersionHttpInterceptor(component_name=_COMPONENT),
            interceptor,
        ],
        retry_invoker=patience,
    )

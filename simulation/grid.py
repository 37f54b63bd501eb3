"""An in-process Flower grid: the real ServerApp and ClientApp without sockets or Ray.

Leans on two private spots of flwr 1.41 (``TaskIdentity`` and a message's ``_message_id``); kept
in this one file, and watched by a test that runs the same federation on Flower's own engine.
"""

import copy
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_log = logging.getLogger(__name__)

ClientCall = Callable[[Message, Context], Message]
Scalars = Mapping[str, bool | float | int | str]

_FIRST_NODE = 100
_SERVER_NODE = 1


class LocalGrid(Grid):
    """Plays every site of a federation in this process.

    Each node takes one message at a time, as a SuperNode does; ``workers`` nodes work at once.
    Contents are copied on the way, since a real node never shares objects with the server; only
    the bytes of tensors, which nobody can change, are the same for all.

    Args:
        client_app: the ClientApp, or a test's wrapper around it.
        nodes: node configuration by site name.
        run_config: the run configuration every node sees.
        workers: nodes that work at the same time.
    """

    def __init__(
        self,
        client_app: ClientCall,
        nodes: Mapping[str, Scalars],
        run_config: Scalars,
        *,
        workers: int = 1,
    ) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = 1
        TaskIdentity.node_id = _SERVER_NODE
        self._client_app = client_app
        self._run = Run.create_empty(1)
        self._names = {_FIRST_NODE + i: name for i, name in enumerate(nodes)}
        self._nodes = {n: NodeInfo(node_id=n, name=name) for n, name in self._names.items()}
        self._contexts = {
            node: Context(1, node, dict(nodes[name]), RecordDict(), dict(run_config))
            for node, name in self._names.items()
        }
        self._busy = {node: threading.Lock() for node in self._names}
        self._replies: dict[str, Future[Message]] = {}
        self._reply_came = threading.Event()
        self._numbers = itertools.count(1)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="site")
        self.offline: set[str] = set()

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Nodes that are online."""
        return [node for node, name in self._names.items() if name not in self.offline]

    def get_nodes(self) -> list[NodeInfo]:
        """Nodes that are online, with the names the scenario gives them."""
        return [self._nodes[node] for node in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages to their nodes; returns one id each."""
        ids = []
        for message in messages:
            message_id = f"message-{next(self._numbers)}"
            sent = copy.copy(message)
            sent.__dict__.update(message.__dict__, _content=copy.deepcopy(message.content))
            sent.metadata.__dict__["_message_id"] = message_id
            self._replies[message_id] = self._pool.submit(self._work, sent)
            self._replies[message_id].add_done_callback(lambda _: self._reply_came.set())
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have come; each is given once."""
        ready = [i for i in message_ids if i in self._replies and self._replies[i].done()]
        return [self._replies.pop(i).result() for i in ready]

    def wait_for_reply(self, seconds: float) -> None:
        """Return when a reply has come since the last call, at the latest after ``seconds``."""
        self._reply_came.wait(seconds)
        self._reply_came.clear()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push, wait for all replies, and return those that came within ``timeout`` seconds."""
        ids = self.push_messages(messages)
        for message_id in ids:
            self._replies[message_id].exception(timeout)
        return self.pull_messages(ids)

    def close(self) -> None:
        """Wait for work that was begun, and end the workers."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        with self._busy[node]:
            try:
                return self._client_app(message, self._contexts[node])
            except Exception as error:
                _log.exception("the client app of %s raised", self._names[node])
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                return Message(Error(code, type(error).__name__), reply_to=message)

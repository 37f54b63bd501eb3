"""The site's executor: takes tasks from its own node and answers with the installed code.

Stock Flower unpacks the bundle that comes with a task and runs what is in it. Here the bundle is
only hashed: no way leads from the coordinator to code that runs at the site. One lasting process
does all tasks, so that imports, samples and model stay warm between rounds.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from iedn.retries import retry_calmly

from .activity import Activity, report

_log = logging.getLogger(__name__)

_PAUSE_S = 0.3
_COMPONENT = "flwr-clientapp"

Answer = Callable[[Message, Context], Message]


@dataclass(frozen=True)
class Duties:
    """What this executor does for whom.

    Attributes:
        answer: the installed ClientApp.
        site_file: the site it answers for; what the coordinator says of it does not count.
        bundles: SHA-256 of the manifests it accepts.
    """

    answer: Answer
    site_file: str
    bundles: frozenset[str]


class Executor:
    """Takes tasks from one node.

    Args:
        address: ``host:port`` on which the node hands out tasks.
        secret: what the node wants to be shown.
        duties: what to do with a task.
        node_is_up: whether that node lives.
    """

    def __init__(
        self, address: str, secret: str, duties: Duties, node_is_up: Callable[[], bool]
    ) -> None:
        self._address, self._duties, self._node_is_up = address, duties, node_is_up
        self._acquirer = RuntimeHttpClient.from_server_address(
            address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name=_COMPONENT),
                SuperExecAuthHttpInterceptor(
                    master_secret=secret.encode(),
                    protected_methods={"/flwr.proto.Runtime/AcquireTask"},
                ),
            ],
        )

    def close(self) -> None:
        """Close the connection."""
        self._acquirer.close()

    def work(self) -> None:
        """Take and answer tasks as long as the node is up and every answer reaches it."""
        while self._node_is_up():
            token = self._next_task()
            if token is None:
                time.sleep(_PAUSE_S)
                continue
            try:
                self._answer(token)
            except Exception:  # the node would wait for this answer, and take no other task
                _log.exception("a task was not answered; its node has to be started again")
                return

    def _next_task(self) -> str | None:
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        try:
            token = str(self._acquirer.AcquireTask(request).token) or None
        except httpx.HTTPError as error:
            _log.debug("the node does not answer: %s", error)
            return None
        if token is None:
            report(Activity("waiting"))
        return token

    def _answer(self, token: str) -> None:
        client = self._client(token)
        heartbeat = HeartbeatSender(_heartbeat(client))
        heartbeat.start()
        status, details = SubStatus.FAILED, "failed"
        context = None
        try:
            message, context, run, bundle = pull_task_input(client)
            reply, status, details = self._reply(message, context, run, bundle)
            report(Activity("sending"))
            push_message(client, reply, context)
        finally:
            heartbeat.stop()
            push_task_output(client, context, status, details)
            client.close()

    def _reply(
        self, message: Message, context: Context, run: Run, bundle: Fab
    ) -> tuple[Message, str, str]:
        digest = hashlib.sha256(bundle.content).hexdigest()
        if digest != run.fab_hash or digest not in self._duties.bundles:
            _log.warning("refused: bundle %s is not on this site's list", digest)
            return Message(Error(ErrorCode.INVALID_FAB, ""), reply_to=message), SubStatus.FAILED, ""
        own = Context(
            context.run_id, context.node_id, {"site": self._duties.site_file}, RecordDict(), {}
        )
        try:
            return self._duties.answer(message, own), SubStatus.COMPLETED, ""
        except Exception:  # its text may name files and patients, and would be sent
            _log.exception("the client app failed")
            error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "")
            return Message(error, reply_to=message), SubStatus.FAILED, ""

    def _client(self, token: str) -> RuntimeHttpClient:
        patience = make_simple_http_retry_invoker()
        retry_calmly(patience, is_over=lambda: not self._node_is_up())
        return RuntimeHttpClient.from_server_address(
            self._address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name=_COMPONENT),
                RuntimeTokenHttpInterceptor(token),
            ],
            retry_invoker=patience,
        )


def _heartbeat(client: RuntimeHttpClient) -> Callable[[], bool]:
    """Flower's own would interrupt the process when the node has given up the task."""
    from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

    def beat() -> bool:
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPError as error:
            _log.debug("task heartbeat: %s", error)
            return False
        return True

    return beat

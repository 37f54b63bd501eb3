"""Flower's server-side task, taken by this process: the installed code runs, nothing else.

Stock Flower starts a process that unpacks the bundle and runs what is in it. Here the running
coordinator takes the task itself and gets the grid that belongs to it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
from flwr.common.constant import SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.serverapp import Grid
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from iedn.errors import UnreachableError

from .link import Control
from .link_grid import LinkGrid, runtime_client

_log = logging.getLogger(__name__)

_ACQUIRE_S = 60.0


@contextmanager
def server_task(control: Control) -> Iterator[Grid]:
    """Start a Flower run, take its task and give its grid; tell Flower how it ended.

    Raises:
        UnreachableError: the SuperLink does not hand out the task.
    """
    run_id = control.start_run()
    ending = threading.Event()
    grid = LinkGrid(control, _token_of(control, run_id), ending.is_set)
    heartbeat = HeartbeatSender(_heartbeat(grid.runtime))
    outcome, details = SubStatus.FAILED, "the coordinator stopped"
    heartbeat.start()
    try:
        _take(grid)
        yield grid
        outcome, details = SubStatus.COMPLETED, ""
    finally:
        ending.set()
        heartbeat.stop()
        _tell(grid, outcome, details)
        grid.close()


def _take(grid: LinkGrid) -> None:
    task = grid.runtime.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id = task.task_id
    TaskIdentity.run_id = task.run.run_id
    TaskIdentity.node_id = task.context.node_id
    grid.set_run(run_from_proto(task.run))


def _token_of(control: Control, run_id: int) -> str:
    """The token of a run's task; tasks of runs that were ended are not handed out."""
    deadline = time.monotonic() + _ACQUIRE_S
    interceptor = SuperExecAuthHttpInterceptor(
        master_secret=control.secret.encode(),
        protected_methods={"/flwr.proto.Runtime/AcquireTask"},
    )
    client = runtime_client(control, interceptor, lambda: time.monotonic() > deadline)
    request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    try:
        while time.monotonic() < deadline:
            answer = client.AcquireTask(request)
            if answer.token and answer.task.run_id == run_id:
                return str(answer.token)
            time.sleep(0.2)
    finally:
        client.close()
    raise UnreachableError(f"the SuperLink did not hand out its task within {_ACQUIRE_S:.0f} s")


def _heartbeat(client: RuntimeHttpClient) -> Callable[[], bool]:
    """Flower's own would end the process over a run that Flower has given up; the loop decides."""
    lost = threading.Event()

    def beat() -> bool:
        try:
            answer = client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPError:
            return False
        if not answer.success and not lost.is_set():
            lost.set()
            _log.warning("Flower has given up this run; going on as another")
        return True

    return beat


def _tell(grid: LinkGrid, outcome: str, details: str) -> None:
    try:
        grid.runtime.PushTaskOutput(PushTaskOutputRequest(sub_status=outcome, details=details))
    except httpx.HTTPError as error:
        _log.warning("Flower was not told that the run ended: %s", error)

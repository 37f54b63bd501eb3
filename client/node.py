"""The process that talks to the coordinator: Flower's SuperNode in process isolation.

It carries messages between the coordinator and the site's executor, and runs nothing: the tasks
it holds are handed out on a loopback port to whoever knows this start's secret.

Started by ``client.join``, which sends the settings to standard input.
"""

import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from iedn.config import FrozenModel
from iedn.process import end_with_parent
from iedn.retries import LONGEST_PAUSE_S, pauses

if TYPE_CHECKING:
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

_GRACE_S = 3.0
"""To sign off: a node that does is let in again at once, without waiting for two heartbeats."""


class NodeSettings(FrozenModel):
    """What the process is told at its start.

    Attributes:
        address: ``host:port`` of the coordinator's public listener.
        ca: certificate of the authority behind the coordinator's.
        key: this site's private key.
        port: loopback port on which tasks are handed out.
        secret: what the executor has to show.
        heartbeat_s: seconds between two signs of life; after twice as long the coordinator takes
            the site for offline, and only then lets a process in that was killed and started again.
        heard: touched whenever the coordinator has answered.
    """

    address: str
    ca: Path
    key: Path
    port: int
    secret: str = Field(min_length=32, repr=False)
    heartbeat_s: int
    heard: Path

    def with_new_secret(self) -> "NodeSettings":
        """The settings of the next start."""
        return self.model_copy(update={"secret": new_secret()})


def new_secret() -> str:
    """A secret that nobody can guess."""
    return secrets.token_hex(32)


def main() -> None:
    """Serve until the connection is lost for good or the parent is gone."""
    end_with_parent(grace_s=_GRACE_S)
    settings = NodeSettings.model_validate_json(sys.stdin.buffer.read())
    try:
        _serve(settings)
    finally:
        # Flower's threads would keep a process alive that has lost its purpose.
        sys.stdout.flush()
        os._exit(1)


def _serve(settings: NodeSettings) -> None:
    from flwr.supernode.cli import flower_supernode

    from . import lossy_links

    lossy_links.install(settings.heard)
    _set_heartbeat(settings.heartbeat_s)
    _shorten_pauses()
    give_up_messages_of_ended_runs()
    _send_late_replies()
    with tempfile.NamedTemporaryFile(prefix="iedn-") as secret:  # mode 0600, gone at the end
        secret.write(settings.secret.encode())
        secret.flush()
        sys.argv = [
            "flower-supernode",
            "--superlink",
            settings.address,
            "--root-certificates",
            str(settings.ca),
            "--auth-supernode-private-key",
            str(settings.key),
            "--host",
            "127.0.0.1",
            "--port",
            str(settings.port),
            "--isolation",
            "process",
            "--superexec-auth-secret-file",
            secret.name,
        ]
        flower_supernode()


def _shorten_pauses() -> None:
    """Flower 1.41 pauses up to 20 s before it tries again, whoever came back meanwhile."""
    from flwr.supercore.retry import http_retry

    vars(http_retry)["MAX_RETRY_DELAY"] = LONGEST_PAUSE_S


def give_up_messages_of_ended_runs() -> None:
    """Flower 1.41 keeps a message whose run ends while its tensors are fetched.

    The exception that says so is no ``Exception``, and passes by the lines that would delete the
    message and end its task. The executor would wait for these tensors for ever.
    """
    from flwr.supercore.run import RunNotRunningException

    loop = vars(import_module("flwr.supernode.start_client_internal"))
    pull = loop["pull_objects"]

    def pull_or_give_up(*arguments: Any, **options: Any) -> dict[str, bytes]:
        try:
            return dict(pull(*arguments, **options))
        except RunNotRunningException as error:
            raise ConnectionAbortedError("the run ended meanwhile") from error

    loop["pull_objects"] = pull_or_give_up


def _send_late_replies() -> None:
    """Flower 1.41 sends replies only when it has just received a message.

    A message that comes in while its run ends is dropped, but answered; the reply to the next one
    then waits for yet another message, which a coordinator that waits for it never sends.
    """
    loop = vars(import_module("flwr.supernode.start_client_internal"))
    receive = loop["_pull_and_store_message"]

    def receive_or_send(*, state: "InMemoryNodeState", **others: Any) -> int | None:
        received: int | None = receive(state=state, **others)
        is_work = received is not None or not has_unsent_reply(state)
        return received if is_work else 0  # any number makes the loop send

    loop["_pull_and_store_message"] = receive_or_send


def has_unsent_reply(state: "InMemoryNodeState") -> bool:
    """Whether a reply lies in a node's state that the node has not begun to send."""
    with state.lock_msg_store:
        entries = list(state.msg_store.values())
    return any(e.message.metadata.reply_to_message_id and not e.is_retrieved for e in entries)


def _set_heartbeat(seconds: int) -> None:
    """Flower 1.41 has 30 s built in, and a heartbeat thread that dies at the first odd answer."""
    from flwr.supercore import heartbeat
    from flwr.supernode import fleet_http_connection

    for module in (heartbeat, fleet_http_connection):
        vars(module)["HEARTBEAT_DEFAULT_INTERVAL"] = seconds

    class EndingHeartbeat(heartbeat.HeartbeatSender):
        """Ends the process with its heartbeat: the site starts another one."""

        def __init__(self, heartbeat_fn: Callable[[], bool]) -> None:
            super().__init__(heartbeat_fn)
            self._retry_invoker.wait_gen_factory = pauses

        def _run(self) -> None:
            try:
                super()._run()
            except BaseException as error:  # whatever it is, there is no heartbeat any more
                sys.stderr.write(f"heartbeat ended: {error}\n")
                sys.stderr.flush()
                os._exit(1)

    vars(fleet_http_connection)["HeartbeatSender"] = EndingHeartbeat


if __name__ == "__main__":
    main()

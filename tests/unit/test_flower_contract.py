"""What this project takes from inside Flower, which its authors may move at any release.

If one of these fails after a change of the pin, the named module of ours has to be looked at.
"""

import inspect
from importlib import import_module
from importlib.metadata import version
from types import SimpleNamespace

import httpx
import pytest
from flwr.common import constant
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.config_loader import SuperLinkLifespanConfig


def test_the_pinned_version_is_installed():
    assert version("flwr") == "1.41.0"


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("flwr.supercore.heartbeat", {"HEARTBEAT_DEFAULT_INTERVAL", "HeartbeatSender"}),
        (
            "flwr.supernode.fleet_http_connection",
            {
                "HEARTBEAT_DEFAULT_INTERVAL",
                "HeartbeatSender",
                "FleetHttpClient",
                "make_simple_http_retry_invoker",
            },
        ),
        ("flwr.supercore.retry.http_retry", {"MAX_RETRY_DELAY"}),
        ("flwr.supercore.sql_mixin", {"SQLITE_PRAGMAS"}),
        ("flwr.superlink.main", {"create_app"}),
        (
            "flwr.supernode.runtime.run_clientapp",
            {"pull_task_input", "push_message", "push_task_output"},
        ),
        (
            "flwr.supercore.interceptors",
            {"RuntimeTokenHttpInterceptor", "SuperExecAuthHttpInterceptor"},
        ),
    ],
)
def test_names_that_are_replaced_or_called_exist(module, names):
    found = vars(__import__(module, fromlist=["_"]))
    assert names <= set(found)


def test_superlink_is_configured_by_the_fields_that_are_set():
    from server.superlink import _superlink

    source = inspect.getsource(_superlink)
    fields = set(inspect.signature(SuperLinkLifespanConfig).parameters)
    assert {f for f in fields if f"{f}=" not in source} == set()


def test_heartbeat_that_ends_the_process_overrides_what_runs_in_the_thread():
    from flwr.supercore.heartbeat import HeartbeatSender

    assert "target=self._run" in inspect.getsource(HeartbeatSender.__init__)


def test_heartbeat_interval_is_looked_up_when_it_is_used():
    from flwr.supernode import fleet_http_connection

    source = inspect.getsource(fleet_http_connection.http_request_response)
    assert "heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL" in source
    assert constant.HEARTBEAT_MIN_INTERVAL == 10, "the least that site.toml allows"


def test_pragmas_are_looked_up_when_a_connection_opens():
    from flwr.supercore import sql_mixin

    assert "in SQLITE_PRAGMAS" in inspect.getsource(sql_mixin)
    assert "busy_timeout" in dict(sql_mixin.SQLITE_PRAGMAS)


def test_replies_are_stored_by_a_function_that_is_looked_up_when_it_is_called():
    from flwr.superlink.routers.fleet import router

    assert "fleet_handlers.push_messages(" in inspect.getsource(router.fleet_push_messages)


def test_longest_pause_is_looked_up_when_a_call_is_tried_again():
    from flwr.supercore.retry import http_retry

    source = inspect.getsource(http_retry.make_simple_http_retry_invoker)
    assert "lambda: exponential(max_delay=MAX_RETRY_DELAY)" in source


def test_heartbeat_keeps_its_retrier_where_it_is_changed():
    from flwr.supercore.heartbeat import HeartbeatSender

    assert "wait_gen_factory" in vars(HeartbeatSender(lambda: True)._retry_invoker)


def test_every_fleet_call_goes_through_the_one_that_notices_losses():
    from flwr.supernode.fleet_http_client import FleetHttpClient

    calls = [v for n, v in vars(FleetHttpClient).items() if n[0].isupper()]
    assert len(calls) == 12
    for call in calls:
        source = inspect.getsource(call)
        assert "return self._unary_unary(\n            path=" in source, "by keyword"


def test_flower_takes_a_cut_handshake_for_a_wrong_certificate():
    """Once it does not, ``client.lossy_links`` can lose its retrier."""
    from flwr.supercore.retry import make_simple_http_retry_invoker

    error = httpx.ConnectError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred")
    assert make_simple_http_retry_invoker().should_giveup(error)


def test_node_sends_replies_that_are_ready_when_no_message_comes(monkeypatch):
    """Flower's loop goes on to sending if what is replaced gives anything but None."""
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    from client import node

    module = import_module("flwr.supernode.start_client_internal")
    source = inspect.getsource(module.start_client_internal)
    assert "run_id = _pull_and_store_message(\n                state=state," in source
    assert "if run_id is None:" in source
    monkeypatch.setattr(module, "_pull_and_store_message", lambda *, state: None)
    node._send_late_replies()
    state = InMemoryNodeState(ObjectStoreFactory().store())
    assert module._pull_and_store_message(state=state) is None
    metadata = SimpleNamespace(message_id="reply", reply_to_message_id="question", run_id=1)
    state.store_message(SimpleNamespace(metadata=metadata))
    assert module._pull_and_store_message(state=state) is not None
    assert len(state.get_messages_legacy(is_reply=True)) == 1
    assert module._pull_and_store_message(state=state) is None, "it is being sent"


def pulled_from_a_run_that_ends(module):
    """A node's state after a message whose run ended while its objects were fetched."""
    from flwr.app import Message, RecordDict
    from flwr.supercore.inflatable.inflatable_object import get_object_tree
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supercore.run import Run, RunNotRunningException
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    def ended(*_):
        raise RunNotRunningException

    store = ObjectStoreFactory().store()
    state = InMemoryNodeState(store)
    state.store_run(Run.create_empty(run_id=1))
    message = Message(RecordDict(), dst_node_id=5, message_type="train")
    vars(message.metadata).update(_run_id=1, _message_id=message.object_id)
    found = module._pull_and_store_message(
        state=state,
        object_store=store,
        node_config={},
        receive=lambda: (message, get_object_tree(message)),
        get_run=ended,
        get_fab=ended,
        pull_object=ended,
        confirm_message_received=ended,
        trusted_entities=None,
    )
    assert found is None
    return state


def test_message_of_a_run_that_ends_meanwhile_leaves_no_task_behind(monkeypatch):
    """Once the first part fails, ``give_up_messages_of_ended_runs`` can go."""
    from client import node

    module = import_module("flwr.supernode.start_client_internal")
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    kept = pulled_from_a_run_that_ends(module)
    assert len(kept.msg_store) == 1
    monkeypatch.setattr(module, "pull_objects", module.pull_objects)
    node.give_up_messages_of_ended_runs()
    state = pulled_from_a_run_that_ends(module)
    assert state.msg_store == {}

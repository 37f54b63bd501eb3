"""Replies that arrive piece by piece, and the coordinator that goes on meanwhile."""

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ArrayRecord, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from server.link_grid import LinkGrid

NEVER = object()


class Runtime:
    """A SuperLink's side: replies of which parts are there, on their way, or given up."""

    def __init__(self):
        self.replies, self.parts, self.claimed, self.looks, self.confirmed = {}, {}, [], [], []

    def send(self, asked, *, without=()):
        message = reply_to(asked)
        self.replies[asked] = message
        for object_id, part in get_all_nested_objects(message).items():
            self.parts[object_id] = part.deflate()
        missing = [i for i in self.parts if i != message.object_id and i in nested(message)]
        for place in without:
            self.parts[missing[place]] = None
        return [missing[place] for place in without]

    def PullMessages(self, request):  # noqa: N802
        new = [i for i in request.message_ids if i in self.replies and i not in self.claimed]
        self.claimed += new
        found = [self.replies[i] for i in new]
        heads = [message_to_proto(remove_content_from_message(m)) for m in found]
        return SimpleNamespace(
            messages_list=heads, message_object_trees=[get_object_tree(m) for m in found]
        )

    def PullObject(self, request):  # noqa: N802
        self.looks.append(request.object_id)
        content = self.parts.get(request.object_id, NEVER)
        return SimpleNamespace(
            object_found=content is not NEVER,
            object_available=content is not None,
            object_content=content,
        )

    def ConfirmMessageReceived(self, request):  # noqa: N802
        self.confirmed.append(request.message_object_id)


def nested(message):
    return set(get_all_nested_objects(message))


def reply_to(asked):
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=7,
        dst_node_id=1,
        message_type="train",
        group_id="round 1",
        ttl=60.0,
        reply_to_message_id=asked,
        created_at=1.0,
    )
    arrays = ArrayRecord([np.full(4, len(asked) + n, np.float32) for n in range(3)])
    message = make_message(metadata=metadata, content=RecordDict({"update": arrays}))
    vars(message.metadata)["_message_id"] = message.object_id
    return message


@pytest.fixture
def runtime():
    return Runtime()


@pytest.fixture
def grid(runtime):
    control = SimpleNamespace(address="127.0.0.1:9", secret="s" * 64)
    made = LinkGrid(control, "token", lambda: True)
    made.close()
    made._client = runtime
    made._run = SimpleNamespace(run_id=1)
    return made


@pytest.fixture(autouse=True)
def short_run(monkeypatch):
    monkeypatch.setattr(LinkGrid, "run", property(lambda grid: grid._run))


def asked_for(messages):
    return [m.metadata.reply_to_message_id for m in messages]


def test_reply_that_is_whole_is_given_once_and_confirmed(grid, runtime):
    runtime.send("a")
    (message,) = grid.pull_messages(["a"])
    assert message.metadata.message_id == runtime.replies["a"].object_id
    arrays = message.content["update"].to_numpy_ndarrays()
    assert [a[0] for a in arrays] == [1.0, 2.0, 3.0]
    assert runtime.confirmed == [message.metadata.message_id]
    assert grid.pull_messages(["a"]) == []


def test_upload_that_stands_still_keeps_nobody_waiting(grid, runtime):
    (missing,) = runtime.send("stuck", without=[-1])
    runtime.send("whole-one")
    assert asked_for(grid.pull_messages(["stuck", "whole-one"])) == ["whole-one"]
    assert runtime.replies["stuck"].object_id not in runtime.confirmed
    runtime.looks.clear()
    for _ in range(5):
        assert grid.pull_messages(["stuck"]) == []
    assert runtime.looks == [missing] * 5, "one small question a look, no tensor again and again"


def test_upload_that_goes_on_is_taken_when_it_is_whole(grid, runtime):
    missing = runtime.send("slow", without=[0, 1, 2])
    for part in missing:
        assert grid.pull_messages(["slow"]) == []
        found = get_all_nested_objects(runtime.replies["slow"])
        runtime.parts[part] = found[part].deflate()
    (message,) = grid.pull_messages(["slow"])
    assert len(message.content["update"]) == 3


def test_upload_that_was_given_up_is_an_error_that_is_asked_again(grid, runtime):
    (missing,) = runtime.send("dead", without=[0])
    assert grid.pull_messages(["dead"]) == []
    del runtime.parts[missing]
    (message,) = grid.pull_messages(["dead"])
    assert message.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert asked_for([message]) == ["dead"]
    assert grid.pull_messages(["dead"]) == []


def test_nothing_is_asked_for_nothing(grid, runtime):
    assert grid.pull_messages([]) == []
    assert runtime.claimed == runtime.looks == []

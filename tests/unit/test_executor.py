"""The site's executor, with a node that is only a pair of functions."""

import hashlib
from types import SimpleNamespace

import httpx
import pytest

from client import activity
from client import executor as module
from client.executor import Duties, Executor


class Node:
    """Hands out tasks by name; ``failing`` raises when its reply is pushed."""

    def __init__(self, *tasks, failing=()):
        self.tasks, self.failing = list(tasks), failing
        self.answered, self.outcomes = [], []

    def AcquireTask(self, _request):  # noqa: N802  (Flower's name)
        return SimpleNamespace(token=self.tasks.pop(0) if self.tasks else "")

    def close(self):
        pass


@pytest.fixture
def at(monkeypatch):
    """Makes an executor at a node that is up until it has no more tasks."""

    def make(node):
        bundle = SimpleNamespace(content=b"bundle")
        digest = hashlib.sha256(b"bundle").hexdigest()
        context = SimpleNamespace(run_id=1, node_id=1)
        run = SimpleNamespace(fab_hash=digest)
        monkeypatch.setattr(Executor, "_client", lambda _self, token: _Client(node, token))
        monkeypatch.setattr(
            module, "pull_task_input", lambda client: (client.token, context, run, bundle)
        )
        monkeypatch.setattr(module, "push_message", lambda client, reply, _: client.push(reply))
        monkeypatch.setattr(
            module, "push_task_output", lambda client, _c, status, _d: node.outcomes.append(status)
        )
        duties = Duties(lambda message, _: f"reply to {message}", "site.toml", frozenset({digest}))
        made = Executor("127.0.0.1:1", "s" * 32, duties, lambda: bool(node.tasks))
        made._acquirer = node
        return made

    return make


class _Client:
    def __init__(self, node, token):
        self.node, self.token = node, token

    def SendTaskHeartbeat(self, _request):  # noqa: N802  (Flower's name)
        pass

    def push(self, reply):
        if self.token in self.node.failing:
            raise httpx.ConnectError("gone")
        self.node.answered.append(reply)

    def close(self):
        pass


def test_tasks_are_answered_one_by_one(at):
    node = Node("a", "b")
    at(node).work()
    assert node.answered == ["reply to a", "reply to b"]
    assert node.outcomes == ["completed", "completed"]


def test_what_the_executor_does_is_reported(at):
    node, reported = Node("a"), []
    made = at(node)
    looks = iter([True, True, False])
    made._node_is_up = lambda: next(looks)
    end = activity.add_sink(lambda found: reported.append(found.state))
    made.work()
    end()
    assert reported == ["sending", "waiting"]


def test_answer_that_does_not_reach_the_node_ends_the_work_and_not_the_client(at):
    node = Node("a", "b", "c", failing=("b",))
    at(node).work()
    assert node.answered == ["reply to a"]
    assert node.tasks == ["c"], "the node waits for the lost answer; it has to be started again"

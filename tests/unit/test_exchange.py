"""Asking sites whose processes and links come and go."""

import time
from types import SimpleNamespace

import pytest
from flwr.app import RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from server.exchange import Patience, Question, ask
from server.registry import OnlineNode


@pytest.fixture(autouse=True)
def task(monkeypatch):
    """Flower makes messages only in a process that holds a task."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


PATIENCE = Patience(deadline_s=2.0, offline_grace_s=0.05, poll_interval_s=0.001)


class Registry:
    """Says, look by look, which sites are online and in which session; the last look stays."""

    def __init__(self, *looks):
        self.looks = list(looks)
        self.revoked = set()

    def is_admitted(self, site):
        return site not in self.revoked

    def online(self, grid):
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return {site: OnlineNode(1, session) for site, session in look.items()}


class Grid:
    """Answers the i-th message pushed with the i-th of ``replies``; None is no reply ever."""

    def __init__(self, *replies):
        self.replies = dict(enumerate(replies))
        self.pushed = 0

    def push_messages(self, messages):
        self.pushed += len(messages)
        return [self.pushed - 1]

    def pull_messages(self, ids):
        (number,) = ids
        reply = self.replies.pop(number, None)
        if reply is None:
            return []
        error = SimpleNamespace(code=reply) if isinstance(reply, int) else None
        content = None if error else RecordDict()
        return [SimpleNamespace(has_error=lambda: error is not None, error=error, content=content)]


def question(*, needed=()):
    sites = frozenset({"site-a"})
    return Question(sites, lambda _: RecordDict(), "train", "round 1", frozenset(needed))


def run(grid, registry, **options):
    replied = []
    missing = ask(
        grid, registry, question(**options), lambda site, _: replied.append(site), PATIENCE
    )
    return replied, missing


def test_restarted_site_is_asked_again():
    grid = Grid(None, "reply")
    registry = Registry({"site-a": "one"}, {}, {"site-a": "two"})
    assert run(grid, registry) == (["site-a"], {})
    assert grid.pushed == 2


def test_link_that_was_down_is_waited_for_and_not_asked_again():
    grid = Grid("reply")
    registry = Registry({}, {"site-a": "one"})
    assert run(grid, registry, needed=["site-a"]) == (["site-a"], {})
    assert grid.pushed == 1


def test_reply_that_came_before_the_restart_counts():
    grid = Grid("reply")
    registry = Registry({"site-a": "one"}, {"site-a": "two"})
    assert run(grid, registry) == (["site-a"], {})
    assert grid.pushed == 1


@pytest.mark.parametrize("code", [ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED])
def test_what_was_lost_on_the_way_is_asked_again(code):
    grid = Grid(code, "reply")
    assert run(grid, Registry({"site-a": "one"})) == (["site-a"], {})
    assert grid.pushed == 2


def test_site_that_always_loses_its_reply_is_given_up():
    grid = Grid(*[ErrorCode.CLIENT_APP_CRASHED] * 20)
    assert run(grid, Registry({"site-a": "one"})) == ([], {"site-a": "transport-8"})
    assert grid.pushed == 8


def test_refused_bundle_is_final():
    grid = Grid(ErrorCode.INVALID_FAB, "reply")
    assert run(grid, Registry({"site-a": "one"})) == ([], {"site-a": "transport-7"})


def test_site_that_was_shut_out_in_the_middle_is_not_waited_for():
    registry = Registry({"site-a": "one"}, {})
    registry.revoked.add("site-a")
    assert run(Grid(None), registry, needed=["site-a"]) == ([], {"site-a": "revoked"})


def test_message_that_is_not_taken_is_sent_again():
    class Refusing(Grid):
        def push_messages(self, messages):
            taken = super().push_messages(messages)
            return [""] if self.pushed == 1 else taken

    assert run(Refusing("lost", "reply"), Registry({"site-a": "one"})) == (["site-a"], {})


class WakingGrid(Grid):
    """A grid that is asked to wait instead of being looked at again and again."""

    def __init__(self, *replies):
        super().__init__(*replies)
        self.waits = []

    def wait_for_reply(self, seconds):
        self.waits.append(seconds)


def test_a_grid_that_wakes_is_waited_for_and_no_pause_is_slept(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("slept"))
    grid, came = WakingGrid("reply"), []
    online = Registry({}, {"site-a": "1"})
    assert ask(grid, online, question(), lambda site, _: came.append(site), PATIENCE) == {}
    assert came == ["site-a"]
    assert set(grid.waits) == {PATIENCE.poll_interval_s}

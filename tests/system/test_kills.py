"""The kill matrix: SIGKILL at named points, the same command again, the undisturbed run's model.

Every cell: the run completes without repair, its model is that of the same scenario in one
process, every round holds every site's update, no finished training is done twice, the release logs
are whole, and nothing is left: no process, no port.
"""

import os
import signal
import time

import pytest

from tests.deployment import EVALUATOR, commits, scenario, wait_until
from tests.system.doomed import EXECUTOR, SERVER, SUPERLINK, SUPERNODE
from tests.system.ward import ENDING_S, SERVER_NAME, Ward

pytestmark = pytest.mark.system

TRAINERS = ("site-a", "site-b")
ROUNDS = 2
SUSPENDED_S = 75.0
PATIENCE_S = 900.0
TOGETHER = {
    "server-and-site": {"server": "between-gate-and-sum-of-first", "site-a": "mid-training"},
    "server-and-node": {"server": "after-commit", "site-b": "node-after-send"},
    "two-sites": {"site-a": "mid-training", "site-b": "mid-upload"},
    "superlink-and-site": {"server": "superlink-during-broadcast", "site-a": "mid-training"},
}
LOGGED_NOT_KEPT = {"between-log-and-kept-reply", "while-reply-is-kept"}
STOPS = {"sigterm": (signal.SIGTERM, 143), "sigint": (signal.SIGINT, 130)}
CELLS = [*SERVER, *SUPERLINK, *EXECUTOR, *SUPERNODE, *TOGETHER, "everything", "suspended", *STOPS]


@pytest.fixture(scope="session")
def ward(tmp_path_factory):
    content = scenario(rounds=ROUNDS, trainers=TRAINERS)
    del content["sites"][EVALUATOR]
    content["rounds"]["poll_interval_s"] = 1.0
    made = Ward(tmp_path_factory.mktemp("ward"), content, CELLS)
    try:
        yield made
    finally:
        made.stop_all()
    made.wait_until_nothing_is_left()


def wait_for_kill(ward, name):
    assert ward.wait_for_end(name, PATIENCE_S) == -signal.SIGKILL, ward.log(name)[-3000:]


def check_outcome(ward, *, trained_again=()):
    assert ward.wait_for_end(SERVER_NAME, PATIENCE_S) == 0, ward.log(SERVER_NAME)[-3000:]
    assert ward.model_hash() == ward.reference
    assert ward.rounds() == [(0, []), *((n, list(TRAINERS)) for n in range(1, ROUNDS + 1))]
    assert ward.history()[-1]["event"] == "finished"
    first = {site: [1] if site in trained_again else [] for site in ward.sites}
    assert {s: ward.trained(s) for s in ward.sites} == {s: [*first[s], 1, 2] for s in ward.sites}
    ward.wait_until_nothing_is_left(*ward.sites)
    assert ward.held_ports() == []


@pytest.mark.parametrize("point", SERVER)
def test_coordinator_is_killed(ward, point):
    ward.begin(point)
    ward.doom(SERVER_NAME, point)
    wait_for_kill(ward, SERVER_NAME)
    ward.start_again(SERVER_NAME)
    check_outcome(ward)


@pytest.mark.parametrize("point", SUPERLINK)
def test_superlink_is_killed(ward, point):
    ward.begin(point)
    marker = ward.doom(SERVER_NAME, point)
    check_outcome(ward)
    assert marker.exists()


@pytest.mark.parametrize("point", EXECUTOR)
def test_site_is_killed(ward, point):
    ward.begin(point, "site-a")
    ward.doom("site-a", point)
    ward.start_server()
    wait_for_kill(ward, "site-a")
    ward.start_again("site-a")
    check_outcome(ward, trained_again=["site-a"] if point in LOGGED_NOT_KEPT else [])


@pytest.mark.parametrize("point", SUPERNODE)
def test_node_is_killed(ward, point):
    ward.begin(point, "site-a")
    marker = ward.doom("site-a", point)
    ward.start_server()
    check_outcome(ward)
    assert marker.exists()


@pytest.mark.parametrize("name", TOGETHER)
def test_two_are_killed_at_once(ward, name):
    points = TOGETHER[name]
    ward.begin(name, *(set(points) - {SERVER_NAME}))
    for site in sorted(points, key=lambda n: n == SERVER_NAME):
        ward.doom(site, points[site])
    if SERVER_NAME not in points:
        ward.start_server()
    for victim, point in points.items():
        if point not in SUPERLINK | SUPERNODE:
            wait_for_kill(ward, victim)
            ward.start_again(victim)
    check_outcome(ward)
    assert len(list(ward.markers.glob(f"{name}-*"))) == len(points)


@pytest.mark.parametrize("name", ["everything"])
def test_everything_is_killed_at_once(ward, name):
    ward.begin(name)
    ward.start_server()
    wait_until(lambda: commits(ward.run)[1:], PATIENCE_S, "round 1 is committed")
    ward.kill_everything()
    assert ward.alive() == {}
    ward.start_all()
    check_outcome(ward)


@pytest.mark.parametrize("name", ["suspended"])
def test_coordinator_is_suspended_until_flower_has_given_up_its_run(ward, name):
    ward.begin(name)
    ward.start_server()
    wait_until(lambda: commits(ward.run)[1:], PATIENCE_S, "round 1 is committed")
    ours = [
        pid
        for pid, line in ward.alive().items()
        if "iedn-server" in line or "server.superlink" in line
    ]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in ours:
            os.kill(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(SUSPENDED_S)
    check_outcome(ward)


@pytest.mark.parametrize("name", STOPS)
def test_stop_is_clean_and_the_same_command_goes_on(ward, name):
    ward.begin(name)
    ward.start_server()
    wait_until(lambda: commits(ward.run)[1:], PATIENCE_S, "round 1 is committed")
    number, code = STOPS[name]
    before = {n: len(ward.log(n)) for n in ward.processes}
    for process in ward.processes.values():
        process.send_signal(number)
    assert {n: p.wait(ENDING_S) for n, p in ward.processes.items()} == dict.fromkeys(before, code)
    assert [n for n, length in before.items() if "Traceback" in ward.log(n)[length:]] == []
    ward.wait_until_nothing_is_left()
    assert ward.held_ports() == []
    ward.start_all()
    check_outcome(ward)

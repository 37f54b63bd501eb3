"""Of many sites in one process only the latest stay warm."""

import gc
import weakref

import pytest

from client.session import Sessions
from sites.config import SITE_FILE


@pytest.fixture
def site(tmp_path):
    """Makes a site file and gives its path."""

    def made(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / SITE_FILE).write_text(f'name = "{name}"\nmanifest = "manifest.csv"\n')
        return folder / SITE_FILE

    return made


def test_a_site_has_one_session(site):
    sessions = Sessions()
    first = sessions.of(site("site-a"))
    assert sessions.of(site("site-a")) is first
    assert sessions.of(site("site-b")) is not first
    assert len(sessions) == 2


def test_the_one_asked_for_the_longest_ago_goes_first(site):
    sessions = Sessions(2)
    a, b = sessions.of(site("site-a")), sessions.of(site("site-b"))
    assert sessions.of(site("site-a")) is a
    sessions.of(site("site-c"))
    assert len(sessions) == 2
    assert sessions.of(site("site-a")) is a
    assert sessions.of(site("site-b")) is not b


def test_never_more_sessions_live_than_are_kept(site):
    sessions = Sessions(3)
    alive = weakref.WeakSet()
    for number in range(20):
        alive.add(sessions.of(site(f"site-{number}")))
        gc.collect()
        assert len(alive) <= 3


def test_a_session_in_use_lives_on_until_its_work_is_done(site):
    sessions = Sessions(1)
    used = sessions.of(site("site-a"))
    sessions.of(site("site-b"))
    assert used.config.name == "site-a"
    entry = used.egress.capabilities("evaluate", counts_of_nothing(), "run-1")
    again = sessions.of(site("site-a"))
    assert again is not used
    assert entry.role == "evaluate"
    assert len((used.config.folder / "releases.jsonl").read_text().splitlines()) == 1


def counts_of_nothing():
    from sites.egress import TrainingCounts

    return TrainingCounts(0, 0, {}, {})


def test_forgotten_sessions_are_made_again(site):
    sessions = Sessions()
    first = sessions.of(site("site-a"))
    sessions.forget()
    assert len(sessions) == 0
    assert sessions.of(site("site-a")) is not first

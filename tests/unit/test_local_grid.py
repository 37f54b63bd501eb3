"""The in-process grid wakes whoever waits for a reply, and shares nothing that can be changed."""

import threading
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from simulation.grid import LocalGrid


@pytest.fixture
def played():
    """Makes a grid whose sites run a function; closes it."""
    grids = []

    def made(client, sites=("site-a",), **options):
        grids.append(LocalGrid(client, {site: {} for site in sites}, {}, **options))
        return grids[-1]

    yield made
    for grid in grids:
        grid.close()


def message(grid, content=None):
    return Message(content or RecordDict(), grid.get_node_ids()[0], "query")


def test_a_reply_wakes_the_one_who_waits(played):
    grid = played(lambda message, _: Message(RecordDict(), reply_to=message))
    started = time.monotonic()
    (number,) = grid.push_messages([message(grid)])
    while not grid.pull_messages([number]):
        grid.wait_for_reply(30.0)
    assert time.monotonic() - started < 10.0


def test_waiting_ends_after_its_seconds_without_a_reply(played):
    ready = threading.Event()

    def client(message, _):
        ready.wait(10.0)
        return Message(RecordDict(), reply_to=message)

    grid = played(client)
    ids = grid.push_messages([message(grid)])
    grid.wait_for_reply(0.01)
    assert grid.pull_messages(ids) == []
    ready.set()


def test_a_site_that_changes_its_message_changes_no_one_elses(played):
    seen = []

    def client(message, _):
        seen.append(sorted(message.content))
        del message.content["group"]
        return Message(RecordDict(), reply_to=message)

    grid = played(client)
    content = RecordDict({"group": ArrayRecord({"x": Array(np.ones(3))})})
    for _ in range(2):
        grid.send_and_receive([message(grid, content)])
    assert seen == [["group"], ["group"]]


def test_messages_on_their_way_share_the_bytes_of_tensors(played):
    seen = []

    def client(message, _):
        seen.append(message.content["group"]["x"].data)
        return Message(RecordDict(), reply_to=message)

    grid = played(client)
    content = RecordDict({"group": ArrayRecord({"x": Array(np.ones(3))})})
    for _ in range(2):
        grid.send_and_receive([message(grid, content)])
    assert seen[0] is seen[1]

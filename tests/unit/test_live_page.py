"""The live page's HTTP side: who may ask, what is refused, what is sent and when."""

import asyncio
import json
import os
import re
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

import server.cli
from iedn.errors import CheckpointError
from iedn.loopback import listening_socket
from server.page import serving
from server.page.app import ALIVE_S, STATIC, changes, create_app
from server.page.feed import LOOK_S, PROBLEM, Feed
from server.status import RunWatch
from tests.told import commit, troubled, write_run

PORT = 8418
BASE = f"http://127.0.0.1:{PORT}"
STATIC_FOLDER = Path(serving.__file__).parent / "static"


@pytest.fixture
def client(tmp_path):
    write_run(tmp_path, troubled())
    return TestClient(create_app(RunWatch(tmp_path).document, PORT), base_url=BASE)


@pytest.mark.parametrize("path", ["/", "/status.json", "/static/main.js", "/nowhere"])
def test_every_answer_carries_the_headers(client, path):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("host", ["evil.example:8418", "127.0.0.1", "localhost:80", ""])
@pytest.mark.parametrize("path", ["/", "/status.json", "/events", "/static/main.js"])
def test_another_name_of_this_machine_is_refused(client, host, path):
    refused = client.get(path, headers={"host": host})
    assert refused.status_code == 421
    assert "glioma" not in refused.text


def test_localhost_is_this_machine(client):
    assert client.get("/", headers={"host": f"localhost:{PORT}"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/status.json", "/events"])
def test_it_can_only_be_read(client, method, path):
    assert client.request(method, path).status_code == 405


def test_status_is_the_document(client, tmp_path):
    assert client.get("/status.json").json() == RunWatch(tmp_path).document()


@pytest.mark.parametrize("name", ["../app.py", "%2e%2e/app.py", "nothing.js", "..%2fapp.py"])
def test_no_other_file_is_served(client, name):
    assert client.get(f"/static/{name}").status_code == 404


def test_every_file_of_the_page_is_served_and_asks_for_nothing_else(client):
    on_disk = {p.name for p in STATIC_FOLDER.iterdir()} - {"index.html"}
    assert on_disk == set(STATIC)
    for name in STATIC:
        assert client.get(f"/static/{name}").status_code == 200
        text = (STATIC_FOLDER / name).read_text()
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []
        assert set(re.findall(r'from "\./([a-z]+\.js)"', text)) <= set(STATIC)
    page = client.get("/").text
    assert re.findall(r"<script(?![^>]*src=)|\son[a-z]+=|\sstyle=|<style", page) == []
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert set(addresses) == {"data:,", "/static/style.css", "/static/main.js", "/status.json"}


def test_nothing_of_the_document_becomes_markup():
    for name in STATIC:
        text = (STATIC_FOLDER / name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def events_of(text):
    """(kind, content) of a message; () of the others."""
    kind = re.search(r"^event: (.*)$", text, re.MULTILINE)
    content = re.search(r"^data: (.*)$", text, re.MULTILINE)
    return (kind[1], json.loads(content[1])) if kind and content else ()


def stream(look, seconds, at_second=None):
    """Messages of a page that is open for so long, by the second at which they came."""
    clock, found = Clock(), []
    feed = Feed(look, clock=clock)

    async def pause(length):
        clock.time += length
        if clock.time > seconds:
            raise asyncio.CancelledError
        if at_second:
            at_second(clock.time)

    async def follow():
        async for text in changes(feed, pause=pause):
            if message := events_of(text):
                found.append((clock.time, *message))

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(follow())
    return found


def test_page_is_sent_the_document_once_and_then_what_has_changed_once(tmp_path):
    write_run(tmp_path, troubled())

    def at_second(second):
        if second == 3:
            with (tmp_path / "history.jsonl").open("a") as lines:
                lines.write(json.dumps(commit(4, {"site-a": {"status": "late"}})) + "\n")

    sent = stream(RunWatch(tmp_path).document, 4, at_second)
    assert [(when, kind) for when, kind, _ in sent] == [(0, "document"), (3, "change")]
    first, then = (content["fields"] for _, _, content in sent)
    assert first["rounds_committed"] == 3
    assert then["rounds_committed"] == 4
    assert set(then) >= {"rosters", "rounds", "not_accepted", "site_states"}
    assert not {"run", "sites", "curves", "privacy_reported"} & set(then), "these are as before"
    assert first | then == RunWatch(tmp_path).document()


def test_a_quiet_run_gives_a_sign_of_life_and_nothing_else():
    sent = stream(lambda: {"run": "a"}, 2 * ALIVE_S + 2)
    assert [kind for _, kind, _ in sent] == ["document", "alive", "alive"]


def test_messages_are_numbered_so_that_a_page_can_say_where_it_was():
    async def first():
        async for text in changes(Feed(lambda: {"run": "a"}), pause=asyncio.sleep):
            if "event: document" in text:
                return text
        return ""

    assert asyncio.run(first()).startswith("id: 1\nevent: document\ndata: ")


def test_files_that_cannot_be_read_are_said_once_and_so_is_their_return(caplog):
    readable = {1: True}

    def look():
        if not readable[1]:
            raise CheckpointError("the history is damaged", where="/srv/secret/history.jsonl")
        return {"run": "a"}

    def at_second(second):
        readable[1] = not 2 <= second < 4

    sent = stream(look, 5, at_second)
    assert [(when, kind) for when, kind, _ in sent] == [
        (0, "document"),
        (2, "problem"),
        (4, "problem"),
    ]
    assert [content["problem"] for _, kind, content in sent if kind == "problem"] == [PROBLEM, ""]
    assert "secret" not in json.dumps(sent)
    assert [r.levelname for r in caplog.records] == ["ERROR"]


def test_status_of_files_that_cannot_be_read_is_an_error_without_their_names(tmp_path):
    write_run(tmp_path, [])
    (tmp_path / "history.jsonl").write_text("nonsense\n")
    client = TestClient(create_app(RunWatch(tmp_path).document, PORT), base_url=BASE)
    refused = client.get("/status.json")
    assert (refused.status_code, refused.json()) == (503, {"detail": PROBLEM})


def test_many_pages_look_once_a_second():
    looks, clock = [], Clock()
    feed = Feed(lambda: looks.append(clock.time) or {"run": "a"}, clock=clock)
    for _ in range(50):
        feed.latest()
    clock.time += LOOK_S
    assert feed.latest() is feed.latest()
    assert looks == [0.0, LOOK_S]


def test_page_of_no_run_and_a_taken_port_are_said(call, tmp_path):
    code, _, error = call(server.cli.main, "page", tmp_path)
    assert (code, "federation.toml" in error) == (3, True)
    write_run(tmp_path, [])
    with listening_socket(0) as taken:
        port = taken.getsockname()[1]
        code, _, error = call(server.cli.main, "page", tmp_path, "--port", port)
        assert code == 3
        assert f"--port {port}" in error


@contextmanager
def beside(folder, port=0):
    with serving.page_beside(folder, port):
        yield


def fetched(address):
    for _ in range(300):
        try:
            return httpx.get(address, timeout=5, trust_env=False).json()
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError(f"{address} does not answer")


def test_page_beside_a_run_serves_it_and_ends_with_it(tmp_path, caplog):
    write_run(tmp_path, troubled())
    caplog.set_level("INFO")
    with beside(tmp_path):
        address = re.search(r"http://127\.0\.0\.1:\d+/", caplog.text)[0]
        assert fetched(address + "status.json")["run"] == "glioma-cbv"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address.rsplit(":")[-1].strip("/")))) != 0


def test_a_run_goes_on_without_a_page_that_cannot_be_served(tmp_path, caplog):
    write_run(tmp_path, troubled())
    reached = []
    with listening_socket(0) as taken, beside(tmp_path, taken.getsockname()[1]):
        reached.append("the run")
    assert reached
    assert "no live page: --page-port" in caplog.text
    assert "the run goes on" in caplog.text


def test_a_page_that_dies_is_said_and_the_run_goes_on(tmp_path, caplog, monkeypatch):
    write_run(tmp_path, troubled())
    children = []
    start = serving.start_module

    def started(*arguments, **named):
        children.append(start(*arguments, **named))
        return children[-1]

    monkeypatch.setattr(serving, "start_module", started)
    with beside(tmp_path):
        os.kill(children[0].pid, 9)
        children[0].wait()
        deadline = time.monotonic() + 20
        while "the live page has ended" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "the run goes on; `iedn-server page" in caplog.text

"""The page's HTTP side: who may ask, what is refused, what the headers say."""

import threading
from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from client.rating.app import create_app
from client.rating.score_log import ScoreLog
from tests.reading_room import Clock, make, tokens

PORT = 8417
BASE = f"http://127.0.0.1:{PORT}"


class Room:
    """A served study and its readers' tokens."""

    def __init__(self, folder, clock, **design):
        self.folder, self.clock = folder, clock
        make(folder, **design)
        self.tokens = tokens(folder, now=clock())
        self.app = create_app(folder, PORT, idle=timedelta(minutes=30), clock=clock)

    def client(self, reader=None):
        client = TestClient(self.app, base_url=BASE)
        if reader:
            assert client.post("/api/login", json={"token": self.tokens[reader]}).status_code == 204
        return client


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path, Clock())


def state(client, **query):
    return client.get("/api/state", params=query).json()


def answer(client, item, value=3, *, draw=True, revision=0, **changed):
    if draw:
        assert client.post(f"/api/items/{item['id']}/drawn", json={}).status_code == 204
    answers = {question["key"]: value for question in item["questions"]} | changed
    body = {"answers": answers, "revision": revision}
    return client.post(f"/api/items/{item['id']}/scores", json=body)


def read_all(client, value=3):
    while (found := state(client))["done"] < found["total"]:
        assert answer(client, found["item"], value).status_code == 204
    assert client.post("/api/finish", json={}).status_code == 204


def test_a_wrong_token_opens_nothing(room):
    client = room.client()
    refused = client.post("/api/login", json={"token": "x" * 22})
    assert (refused.status_code, "not valid" in refused.json()["detail"]) == (401, True)
    assert not client.cookies
    assert client.get("/api/state").status_code == 401
    assert client.post("/api/login", json={"token": ""}).status_code == 422


def test_the_cookie_is_for_this_page_and_not_for_scripts(room):
    client = room.client()
    response = client.post("/api/login", json={"token": room.tokens["reader-1"]})
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/api" in cookie
    assert room.tokens["reader-1"] not in cookie


def test_a_session_ends_when_idle_and_the_scores_stay(room):
    client = room.client("reader-1")
    item = state(client)["item"]
    assert answer(client, item).status_code == 204
    room.clock.forward(minutes=29)
    second = state(client)["item"]
    room.clock.forward(minutes=31)
    late = answer(client, second, draw=False)
    assert (late.status_code, "personal link again" in late.json()["detail"]) == (401, True)
    assert state(room.client("reader-1"))["done"] == 1


def test_signing_out_ends_the_session(room):
    client = room.client("reader-1")
    key = client.cookies["iedn_rating"]
    assert client.post("/api/logout", json={}).status_code == 204
    again = room.client()
    again.cookies.set("iedn_rating", key)
    assert again.get("/api/state").status_code == 401


@pytest.mark.parametrize("score", [-1, 4, 99])
def test_a_score_out_of_range_is_refused_and_not_logged(room, score):
    client = room.client("reader-1")
    item = state(client)["item"]
    refused = answer(client, item, **{"A.degree": score})
    assert refused.status_code == 422
    assert refused.json()["detail"] == f"A.degree: got {score}. Allowed: 0, 1, 2, 3"
    assert state(client)["done"] == 0


@pytest.mark.parametrize("score", [1.5, "2", True, None])
def test_a_score_that_is_no_whole_number_is_refused(room, score):
    client = room.client("reader-1")
    assert answer(client, state(client)["item"], **{"A.degree": score}).status_code == 422


def test_a_missing_or_unknown_question_is_refused(room):
    client = room.client("reader-1")
    item = state(client)["item"]
    assert answer(client, item, **{"C.degree": 1}).status_code == 422
    item["questions"].pop()
    assert answer(client, item).status_code == 422


def test_scores_before_the_maps_are_drawn_are_refused(room):
    client = room.client("reader-1")
    item = state(client)["item"]
    early = answer(client, item, draw=False)
    assert (early.status_code, "not been drawn" in early.json()["detail"]) == (409, True)
    room.clock.forward(seconds=5)
    client.post(f"/api/items/{item['id']}/drawn", json={})
    room.clock.forward(seconds=40)
    assert answer(client, item, draw=False).status_code == 204
    (given,) = ScoreLog(room.folder).record().latest.values()
    assert given.seconds == 40.0


def test_a_second_window_does_not_overwrite_the_first(room):
    one, two = room.client("reader-1"), room.client("reader-1")
    item = state(one)["item"]
    assert state(two)["item"]["id"] == item["id"]
    assert answer(one, item, 3).status_code == 204
    stale = answer(two, item, 0)
    assert (stale.status_code, "another window" in stale.json()["detail"]) == (409, True)
    assert answer(two, item, 0, revision=1).status_code == 204, "a correction that knows of it"


def test_readers_at_the_same_time_do_not_disturb_each_other(room):
    clients = {reader: room.client(reader) for reader in ("reader-1", "reader-2")}
    failures = []

    def read(reader, value):
        try:
            read_all(clients[reader], value)
        except AssertionError as error:
            failures.append(error)

    threads = [
        threading.Thread(target=read, args=(reader, value))
        for value, reader in enumerate(clients, start=2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    record = ScoreLog(room.folder).record()
    assert len(record.latest) == 6
    for (reader, _), given in record.latest.items():
        assert set(given.scores.values()) == {2 if reader == "reader-1" else 3}


def test_one_reader_cannot_see_or_score_anothers_case(room):
    one, two = room.client("reader-1"), room.client("reader-2")
    item = state(one)["item"]
    assert two.get(item["panes"][0]["url"]).status_code == 404
    assert answer(two, item, draw=False).status_code == 404
    assert one.get(item["panes"][0]["url"]).status_code == 200


def test_nothing_on_the_page_names_a_patient_or_tells_the_maps_apart(room):
    client = room.client("reader-1")
    text = client.get("/api/state").text
    assert "sub-" not in text
    assert "sCBV" not in text
    assert "real" not in text.replace("already", "")
    one, two = (p for p in state(client)["item"]["panes"] if p["is_map"])
    volumes = [client.get(pane["url"]) for pane in (one, two)]
    assert len(volumes[0].content) == len(volumes[1].content)
    headers = [{k: v for k, v in r.headers.items() if k != "date"} for r in volumes]
    assert headers[0] == headers[1]


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1"]
)
def test_another_host_name_is_refused(room, host):
    """What a page gets that has its own name resolved to 127.0.0.1 (DNS rebinding)."""
    client = room.client("reader-1")
    refused = client.get("/api/state", headers={"host": host})
    assert refused.status_code == 421
    assert "content-security-policy" in refused.headers


def test_a_request_from_another_page_is_refused(room):
    client = room.client("reader-1")
    refused = client.post("/api/finish", json={}, headers={"origin": "http://evil.example"})
    assert refused.status_code == 403
    own = client.post("/api/finish", json={}, headers={"origin": BASE})
    assert own.status_code == 409, "not refused for its origin: cases are still to be scored"


def test_a_huge_body_is_refused_before_it_is_read(room):
    body = {"token": "x" * 20_000}
    assert room.client().post("/api/login", json=body).status_code == 413


@pytest.mark.parametrize(
    "path", ["/", "/static/main.js", "/static/vendor/niivue.js", "/static/none.js", "/api/state"]
)
def test_every_answer_has_the_strict_headers(room, path):
    headers = room.client().get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2f..%2fcli.py",
        "/static/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd",
        "/static//etc/passwd",
        "/static/vendor/../../study.py",
        "/api/items/x/volumes/%2e%2e%2fstudy.json.nii",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_address_leads_to_another_file(room, path):
    client = room.client("reader-1")
    response = client.get(path)
    assert response.status_code == 404
    assert b"import" not in response.content


def test_a_pane_that_is_not_shown_does_not_exist(room):
    client = room.client("reader-1")
    item = state(client)["item"]["id"]
    for pane in ("sCBV", "CBV", "map3", "ASL"):
        assert client.get(f"/api/items/{item}/volumes/{pane}.nii").status_code == 404


def test_page_and_scripts_ask_for_nothing_outside(room):
    client = room.client()
    for path in ("/", "/static/style.css", *(f"/static/{n}.js" for n in ("main", "api", "form"))):
        text = client.get(path).text
        assert "http://" not in text
        assert "https://" not in text


def test_a_lost_volume_is_said_without_its_path(room, caplog):
    client = room.client("reader-1")
    pane = state(client)["item"]["panes"][0]
    for path in (room.folder / "volumes").iterdir():
        path.unlink()
    failed = client.get(pane["url"])
    assert failed.status_code == 500
    assert str(room.folder) not in failed.text
    assert "content-security-policy" in failed.headers
    assert str(room.folder) in caplog.text


def test_a_session_is_finished_for_good(room):
    client = room.client("reader-1")
    assert client.post("/api/finish", json={}).status_code == 409
    first = state(client)["item"]
    read_all(client)
    assert "not yet: reader-2" in state(client)["notice"]
    assert answer(client, first, draw=False, revision=1).status_code == 404


def test_discussion_needs_both_readers_and_shows_both_readings_without_names(room):
    for reader, value in (("reader-1", 3), ("reader-2", 2)):
        read_all(room.client(reader), value)
    client = room.client("reader-1")
    found = state(client)
    assert (found["stage"], found["needs_partner"], found["item"]) == ("consensus", True, None)
    for wrong in (room.tokens["reader-1"], "x" * 22):
        assert client.post("/api/join", json={"token": wrong}).status_code == 401
    assert client.post("/api/join", json={"token": room.tokens["reader-2"]}).status_code == 204
    found = state(client)
    scores = [set(reading.values()) for reading in found["item"]["readings"]]
    assert scores == [{3}, {2}]
    assert answer(client, found["item"]).status_code == 204
    assert state(room.client("reader-2"))["needs_partner"], "another window sits alone again"
    latest = ScoreLog(room.folder).record().latest
    assert [who for who, task in latest if task.stage == "consensus"] == ["reader-1+reader-2"]


def test_washout_is_said_and_kept(tmp_path):
    room = Room(tmp_path, Clock(), kind="diagnosis", decision="adjudicator", washout_days=28)
    client = room.client("reader-1")
    item = state(client)["item"]
    assert [q["key"] for q in item["questions"]] == ["diagnosis"]
    assert answer(client, item, 0).status_code == 422
    read_all(client, 4)
    found = state(client)
    assert found["item"] is None
    assert "opens on 2026-03-30" in found["notice"]
    room.clock.forward(days=28)
    found = state(room.client("reader-1"))
    assert (found["session"], found["total"]) == (2, 3)
    maps = [p["title"] for p in found["item"]["panes"] if p["is_map"]]
    expected = {"MRI+ASL": "ASL perfusion", "MRI+sCBV": "Synthetic CBV"}
    assert maps == [expected[found["item"]["scenario"]]]

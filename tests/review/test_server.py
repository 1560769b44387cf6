"""Tests of the review's server over HTTP: what it answers, and what it refuses."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from devnet_jax.errors import UserError
from devnet_jax.review.serve import (
    HOST,
    Address,
    listen,
    make_server,
    read_address,
    write_address,
)
from devnet_jax.review.server import MAX_JSON, MAX_MASK, Server
from tests.conftest import environment
from tests.review.fake import HOSTILE_KIND, HOSTILE_NAME, NAMES, FakeSession

TOKEN = "t" * 43
N = 30
JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int, method: str, path: str, body: bytes | str | None = None, **headers: str | None
) -> Answer:
    """Sends a request; underscores in names of headers stand for hyphens, `None` removes one."""
    sent: dict[str, str | None] = {"Host": f"{HOST}:{port}", "Authorization": f"Bearer {TOKEN}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=20)) as client:
        client.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                client.putheader(name, value)
        data = body.encode() if isinstance(body, str) else body
        if data is not None:
            client.putheader("Content-Length", str(len(data)))
        client.endheaders(data)
        response = client.getresponse()
        return Answer(response.status, response.headers, response.read())


class Review(NamedTuple):
    """A running review."""

    port: int
    session: FakeSession

    def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> Answer:
        return ask(self.port, method, path, body, **headers)

    def post(self, path: str, fields: Any) -> Answer:
        return self.ask("POST", path, json.dumps(fields), **JSON)


@contextlib.contextmanager
def running(session: FakeSession) -> Iterator[Review]:
    with contextlib.closing(listen(0)) as listener:
        port = listener.getsockname()[1]
        with contextlib.closing(Server(session, TOKEN, port)) as application:
            server = make_server(application)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            try:
                yield Review(port, session)
            finally:
                server.should_exit = True
                thread.join()


@pytest.fixture
def review() -> Iterator[Review]:
    with running(FakeSession(N, seconds=0.05)) as review:
        yield review


@pytest.fixture(scope="module")
def idle() -> Iterator[Review]:
    """A review whose requests are refused, so that nothing in it changes."""
    with running(FakeSession(N)) as review:
        yield review
        assert not review.session.entries
        assert not review.session.calls["learn"]


# What the page asks for.


def test_the_page_opens_with_the_address_that_was_printed(review: Review) -> None:
    page = review.ask("GET", f"/?token={TOKEN}", Authorization=None)
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    (cookie,) = page.headers.get_all("Set-Cookie")
    value, *attributes = cookie.split("; ")
    assert value == f"review-{review.port}={TOKEN}"
    assert {"httponly", "path=/", "samesite=strict"} == {each.lower() for each in attributes}
    assert "domain" not in cookie.lower()
    # As the page goes on: with the cookie alone, also after a reload without the token.
    for path in ("/", "/api/state", "/static/review.css", "/image/0"):
        assert review.ask("GET", path, Authorization=None, Cookie=value).status == 200, path


def test_scripts_and_styles_of_the_page_are_there(review: Review) -> None:
    page = review.ask("GET", "/").body.decode()
    names = [part.split('"')[0] for part in page.split('"/static/')[1:]]
    assert {Path(name).suffix for name in names} == {".css", ".js"}
    types = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
    while names:
        name = names.pop()
        file = review.ask("GET", f"/static/{name}")
        assert (file.status, file.headers["Content-Type"]) == (200, types[Path(name).suffix])
        imports = file.body.decode().split('from "./')[1:]
        names += [part.split('"')[0] for part in imports]


def test_labelling_and_undoing_answer_with_the_new_state(review: Review) -> None:
    state = review.post("/api/label", {"ids": [3, 4], "label": "anomaly", "defect": " dent "}).json
    assert (state["n_looked"], state["kinds"]) == (2, {"dent": 2})
    assert review.ask("GET", "/api/picture/3").json["defect"] == "dent"
    state = review.post("/api/label", {"ids": [5], "label": "good", "reviewer": "Ada"}).json
    assert state["n_good"] == 1
    undone = review.post("/api/undo", {"reviewer": ""}).json
    assert (undone["ids"], undone["state"]["n_looked"]) == ([3, 4], 1)
    assert review.post("/api/undo", {}).json["ids"] == []


def test_the_last_of_two_reviewers_wins(review: Review) -> None:
    review.post("/api/label", {"ids": [1], "label": "good", "reviewer": "Ada"})
    review.post("/api/label", {"ids": [1], "label": "anomaly", "defect": "dent", "reviewer": "Bob"})
    picture = review.ask("GET", "/api/picture/1").json
    assert (picture["label"], picture["defect"]) == ("anomaly", "dent")
    assert [entry["reviewer"] for entry in picture["history"]] == ["Ada", "Bob"]


def test_pictures_come_in_parts(review: Review) -> None:
    parts = [
        review.ask("GET", f"/api/pictures?order=name&offset={offset}&limit=12").json
        for offset in (0, 12, 24, 36)
    ]
    assert [part["total"] for part in parts] == [N] * 4
    assert [len(part["pictures"]) for part in parts] == [12, 12, 6, 0]
    assert [p["id"] for part in parts for p in part["pictures"]] == list(range(N))
    review.post("/api/label", {"ids": [7], "label": "skip"})
    (skipped,) = review.ask("GET", "/api/pictures?show=skipped").json["pictures"]
    assert skipped["id"] == 7


def test_learning_and_finishing(review: Review) -> None:
    assert review.post("/api/learn", {}).json["working"]["task"] == "learning"
    assert wait_until(review, lambda state: state["generation"] == 2)["estimate"]["auroc"] > 0.5
    wait_until(review, lambda state: state["working"] is None)
    assert (
        review.ask("POST", "/api/finish", "", **{"Content-Type": "application/json"}).status == 200
    )
    assert wait_until(review, lambda state: state["finished"])["finished"]["commands"]


def wait_until(review: Review, condition: Any) -> dict[str, Any]:
    for _ in range(200):
        state = review.ask("GET", "/api/state").json
        if condition(state):
            return state
        time.sleep(0.02)
    raise AssertionError(state)


def test_browsers_keep_pictures_but_ask_before_they_show_them(review: Review) -> None:
    small = review.ask("GET", "/image/7?size=64")
    full = review.ask("GET", "/image/7")
    assert small.headers["Content-Type"] == full.headers["Content-Type"] == "image/jpeg"
    assert len(small.body) < len(full.body)
    assert small.headers["Cache-Control"] == "private, no-cache"
    mark = small.headers["ETag"]
    assert mark != full.headers["ETag"]
    n_read = review.session.calls["image 7"]
    again = review.ask("GET", "/image/7?size=64", If_None_Match=mark)
    assert (again.status, again.body) == (304, b"")
    assert review.session.calls["image 7"] == n_read
    # A new review may have other pictures under these numbers, at the same address.
    with running(FakeSession(N)) as other:
        assert other.ask("GET", "/image/7?size=64", If_None_Match=mark).status == 200


def test_maps_are_those_of_a_generation_and_missing_before_scoring() -> None:
    with running(FakeSession(N, scored=5)) as review:
        answer = review.ask("GET", "/map/4?g=1")
        assert (answer.status, answer.body[:4]) == (200, b"\x89PNG")
        assert review.ask("GET", "/map/4?g=2").headers["ETag"] != answer.headers["ETag"]
        missing = review.ask("GET", "/map/5?g=1")
        assert (missing.status, missing.headers["Cache-Control"]) == (404, "no-store")
        assert "not scored" in missing.json["error"]


def test_masks(review: Review) -> None:
    assert review.ask("GET", "/mask/0").status == 404
    file = io.BytesIO()
    Image.new("L", review.session.size(0), 255).save(file, "PNG")
    assert review.ask("PUT", "/mask/0", file.getvalue(), Content_Type="image/png").status == 200
    assert review.ask("GET", "/mask/0").body == file.getvalue()
    wrong = review.ask("PUT", "/mask/1", file.getvalue(), Content_Type="image/png")
    assert wrong.status == 400
    assert "the mask is" in wrong.json["error"]
    assert review.ask("PUT", "/mask/1", b"GIF89a", Content_Type="image/png").status == 400
    assert review.ask("GET", "/mask/0").body == file.getvalue()
    assert review.ask("DELETE", "/mask/0").status == 200
    assert review.ask("GET", "/mask/0").status == 404


def test_names_and_kinds_of_any_text_are_data(review: Review) -> None:
    """They are sent as JSON, never as HTML."""
    answer = review.ask("GET", "/api/pictures?order=name")
    assert answer.headers["Content-Type"] == "application/json"
    names = {picture["id"]: picture["name"] for picture in answer.json["pictures"]}
    assert {i: names[i] for i in NAMES} == NAMES
    assert HOSTILE_NAME in names[3]
    label = {"ids": [6], "label": "anomaly", "defect": HOSTILE_KIND}
    state = review.post("/api/label", label)
    assert state.json["kinds"] == {HOSTILE_KIND: 1}
    assert state.headers["X-Content-Type-Options"] == "nosniff"
    assert b"hacked" not in review.ask("GET", "/").body


# What is refused.


def is_refused(answer: Answer, status: int = 403) -> bool:
    assert answer.status == status, answer
    assert len(json.loads(answer.body)["error"]) > 10
    return True


WRONG_TOKENS: list[dict[str, str | None]] = [
    {"Authorization": None},
    {"Authorization": "Bearer " + "u" * 43},
    {"Authorization": f"Bearer {TOKEN[:-1]}"},
    {"Authorization": f"Basic {TOKEN}"},
    {"Authorization": "Bearer "},
    {"Authorization": "Bearer \xfc"},
    {"Authorization": None, "Cookie": f"review-1={TOKEN}"},
    {"Authorization": None, "Cookie": "review-PORT=wrong"},
]


@pytest.mark.parametrize("headers", WRONG_TOKENS)
def test_without_the_token_nothing_is_told(idle: Review, headers: dict[str, str | None]) -> None:
    cookie = headers.get("Cookie")
    if cookie:
        headers = {**headers, "Cookie": cookie.replace("PORT", str(idle.port))}
    for path in (
        "/api/state",
        "/image/0",
        "/static/main.js",
        "/nothing",
        f"/api/state?token={TOKEN}",
    ):
        assert is_refused(idle.ask("GET", path, **headers))
    body = json.dumps({"ids": [0], "label": "good"})
    assert is_refused(idle.ask("POST", "/api/label", body, **JSON, **headers))
    page = idle.ask("GET", "/?token=wrong", **headers)
    assert page.status == 403
    assert page.body.decode().startswith("Open the address that the command has printed")
    assert "Set-Cookie" not in page.headers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:PORT", "127.0.0.1", "127.0.0.1:1", "localhost.evil:PORT"]
)
def test_other_names_of_this_machine_are_refused(idle: Review, host: str) -> None:
    """DNS rebinding: a page of evil.example, whose name then leads to this machine."""
    host = host.replace("PORT", str(idle.port))
    assert is_refused(idle.ask("GET", "/api/state", Host=host))
    assert idle.ask("GET", f"/?token={TOKEN}", Host=host).status == 403
    for own in ("localhost", "LOCALHOST", "[::1]"):
        assert idle.ask("GET", "/api/state", Host=f"{own}:{idle.port}").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1:PORT"},
        {"Origin": "http://127.0.0.1.evil.example:PORT"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},  # a page of another port of this machine
    ],
)
def test_requests_of_other_pages_are_refused(idle: Review, headers: dict[str, str]) -> None:
    sent = {name: value.replace("PORT", str(idle.port)) for name, value in headers.items()}
    body = json.dumps({"ids": [0], "label": "good"})
    assert is_refused(idle.ask("POST", "/api/label", body, **JSON, **sent))
    assert is_refused(idle.ask("PUT", "/mask/0", b"", Content_Type="image/png", **sent))
    assert is_refused(idle.ask("DELETE", "/mask/0", **sent))
    assert is_refused(idle.ask("GET", "/image/0", **sent))
    own = {"Origin": f"http://localhost:{idle.port}", "Sec-Fetch-Site": "same-origin"}
    assert idle.ask("POST", "/api/undo", "{}", **JSON, **own).status == 200


def test_a_link_from_a_chat_opens_the_page(idle: Review) -> None:
    page = idle.ask("GET", f"/?token={TOKEN}", Authorization=None, Sec_Fetch_Site="cross-site")
    assert page.status == 200


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_bodies_that_any_form_can_send_are_refused(idle: Review, content_type: str | None) -> None:
    body = json.dumps({"ids": [0], "label": "good", "x": "="})
    for path in ("/api/label", "/api/undo", "/api/learn", "/api/finish"):
        assert is_refused(idle.ask("POST", path, body, Content_Type=content_type), 400)
    assert is_refused(idle.ask("PUT", "/mask/0", b"", Content_Type=content_type), 400)


@pytest.mark.parametrize(
    "path",
    [
        "/image/..%2f..%2fetc%2fpasswd",
        "/image/../../etc/passwd",
        "/image/-1",
        "/image/30",
        f"/image/{10**40}",
        "/image/1.0",
        "/image/%D9%A1",
        "/image/1%00",
        "/map/30",
        "/mask/30",
        "/api/picture/30",
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static/__init__.py",
        "/static/review.html.jinja",
        "/static//etc/passwd",
        "/static/",
        "//evil.example/",
        "/journal.jsonl",
    ],
)
def test_no_path_leads_to_a_file(idle: Review, path: str) -> None:
    assert is_refused(idle.ask("GET", path), 404)


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/api/label", [], 400),
        ("/api/label", {"label": "good"}, 400),
        ("/api/label", {"ids": [], "label": "good"}, 400),
        ("/api/label", {"ids": ["1"], "label": "good"}, 400),
        ("/api/label", {"ids": [True], "label": "good"}, 400),
        ("/api/label", {"ids": [1.0], "label": "good"}, 400),
        ("/api/label", {"ids": "../x", "label": "good"}, 400),
        ("/api/label", {"ids": [30], "label": "good"}, 404),
        ("/api/label", {"ids": [-1], "label": "good"}, 404),
        ("/api/label", {"ids": [0], "label": "fine"}, 400),
        ("/api/label", {"ids": [0], "label": ["good"]}, 400),
        ("/api/label", {"ids": [0], "label": "anomaly", "defect": "x" * 81}, 400),
        ("/api/label", {"ids": [0], "label": "anomaly", "defect": "a\nb"}, 400),
        ("/api/label", {"ids": [0], "label": "anomaly", "defect": " Normal"}, 400),
        ("/api/label", {"ids": [0], "label": "good", "reviewer": "x" * 81}, 400),
        ("/api/undo", {"reviewer": 5}, 400),
    ],
)
def test_wrong_fields_are_named(idle: Review, path: str, fields: Any, status: int) -> None:
    assert is_refused(idle.post(path, fields), status)


@pytest.mark.parametrize("body", ["{", "[" * 100_000, '"good"', "\xff", "nul"])
def test_a_body_that_is_no_object_is_refused(idle: Review, body: str) -> None:
    answer = idle.ask("POST", "/api/label", body.encode("latin-1"), Content_Type="application/json")
    assert is_refused(answer, 400)


@pytest.mark.parametrize(
    "query",
    ["order=x", "show=x", "offset=-1", "limit=501", "limit=0", "limit=x", f"offset={10**30}"],
)
def test_wrong_queries_are_named(idle: Review, query: str) -> None:
    assert is_refused(idle.ask("GET", f"/api/pictures?{query}"), 400)
    assert is_refused(idle.ask("GET", "/image/0?size=100000"), 400)


def test_large_bodies_are_refused_and_the_browser_learns_of_it(review: Review) -> None:
    body = b"[" + b" " * MAX_JSON + b"]"
    assert is_refused(review.ask("POST", "/api/label", body, **JSON), 413)
    mask = bytes(MAX_MASK + 1)
    assert is_refused(review.ask("PUT", "/mask/0", mask, Content_Type="image/png"), 413)
    assert review.ask("GET", "/api/state").status == 200


def test_a_body_without_end_is_refused_within_seconds(review: Review) -> None:
    with socket.create_connection((HOST, review.port), timeout=20) as client:
        client.sendall(
            f"POST /api/label HTTP/1.1\r\nHost: {HOST}:{review.port}\r\n"
            f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {10**12}\r\n\r\n".encode()
        )
        client.sendall(bytes(MAX_JSON + 1))
        assert client.recv(12) == b"HTTP/1.1 413"


def test_every_answer_forbids_what_the_page_does_not_need(idle: Review) -> None:
    for answer in (
        idle.ask("GET", "/"),
        idle.ask("GET", "/image/0"),
        idle.ask("GET", "/nothing"),
        idle.ask("GET", "/", Host="evil.example"),
    ):
        policy = answer.headers["Content-Security-Policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= {*policy}
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "uvicorn" not in answer.headers.get("Server", "")
    assert idle.ask("GET", "/api/state").headers["Cache-Control"] == "no-store"
    assert idle.ask("OPTIONS", "/api/label", Origin="https://evil.example").status == 403


def test_what_the_session_refuses_and_what_breaks_in_it_is_told(
    review: Review, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise UserError("journal.jsonl: No space left on device; the label is not taken")

    monkeypatch.setattr(review.session, "label", full)
    answer = review.post("/api/label", {"ids": [0], "label": "good"})
    assert is_refused(answer, 400)
    assert "the label is not taken" in answer.json["error"]

    def broken() -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(review.session, "state", broken)
    answer = review.ask("GET", "/api/state")
    assert is_refused(answer, 500)
    assert b"secret" not in answer.body


# The address.


def test_the_address_is_secret_and_kept(tmp_path: Path) -> None:
    file = tmp_path / ".address"
    assert read_address(file) is None
    address = Address(8700, TOKEN)
    old = os.umask(0)
    try:
        write_address(file, address)
        write_address(file, address)
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_address(file) == address
    file.chmod(0o644)
    assert read_address(file) is None, "others may have read the token"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"port": 8700, "token": ""}',
        '{"port": "8700", "token": "' + TOKEN + '"}',
        '{"port": 0, "token": "' + TOKEN + '"}',
        '{"port": 8700, "token": 5}',
        '{"port": 8700, "token": "' + TOKEN[1:] + '\\n"}',
    ],
)
def test_a_damaged_address_is_replaced(tmp_path: Path, content: str) -> None:
    file = tmp_path / ".address"
    file.write_text(content)
    file.chmod(0o600)
    assert read_address(file) is None


def test_the_next_port_is_taken_if_one_is_in_use() -> None:
    with contextlib.closing(listen(0)) as first:
        port = first.getsockname()[1]
        with contextlib.closing(listen(port)) as second:
            assert port < second.getsockname()[1] < port + 100
            assert second.getsockname()[0] == HOST  # no other machine can connect


_REVIEW = """
import sys
from pathlib import Path
from devnet_jax.review.journal import Journal, Label
from devnet_jax.review.serve import serve
from tests.review.fake import FakeSession

folder = Path(sys.argv[1])
with Journal(folder / "journal.jsonl") as journal:
    session = FakeSession(30)
    for name in journal.labels:
        session.labels[int(name)] = journal.labels[name]
    def label(ids, label, defect, reviewer):
        journal.append([str(i) for i in ids], Label(label, defect), reviewer)
        FakeSession.label(session, ids, label, defect, reviewer)
    session.label = label
    serve(session, folder / ".address", int(sys.argv[2]) if sys.argv[2:] else None)
print("ended")
"""


@contextlib.contextmanager
def process(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A review in a process, and its address."""
    command = [sys.executable, "-c", _REVIEW, str(folder), *arguments]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as review:
        try:
            assert review.stdout is not None
            line = review.stdout.readline()
            assert "  (Ctrl-C ends; labels are kept)\n" in line, review.communicate()
            yield review, line.removeprefix("reviewing 30 pictures at ").split()[0]
        finally:
            review.kill()


def ask_at(url: str, method: str, path: str, fields: Any = None) -> Any:
    parts = urlsplit(url)
    assert parts.port is not None
    headers = {"Authorization": f"Bearer {parts.query.removeprefix('token=')}"}
    return ask(
        parts.port, method, path, None if fields is None else json.dumps(fields), **JSON, **headers
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with process(tmp_path, "0") as (review, url):
        assert ask_at(url, "GET", "/api/state").status == 200
        review.send_signal(number)
        out, error = review.communicate(timeout=20)
    assert (review.returncode, out, error) == (0, "ended\n", "")


def test_after_a_kill_the_page_goes_on(tmp_path: Path) -> None:
    """Labels are sent until the process dies; those answered are there when it is back."""
    addresses = set()
    acknowledged: list[int] = []
    for i in range(3):
        with process(tmp_path, *(["0"] if i == 0 else [])) as (review, url):
            addresses.add(url)
            state = ask_at(url, "GET", "/api/state").json
            assert state["n_looked"] >= len(acknowledged)
            killer = threading.Timer(0.05 + 0.02 * i, review.kill)
            killer.start()
            with contextlib.suppress(OSError, http.client.HTTPException):
                for k in range(10 * i, 10 * i + 10):
                    fields = {"ids": [k], "label": "anomaly", "defect": "dent"}
                    assert ask_at(url, "POST", "/api/label", fields).status == 200
                    acknowledged.append(k)
                    time.sleep(0.01)
            killer.join()
    assert len(addresses) == 1, "the page finds the review again"
    assert acknowledged
    with process(tmp_path) as (_, url):
        for k in acknowledged:
            assert ask_at(url, "GET", f"/api/picture/{k}").json["defect"] == "dent"

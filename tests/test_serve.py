"""Tests of examples/serve.py as a process, over HTTP."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import io
import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax import Detector
from devnet_jax.config import Config, with_settings
from devnet_jax.export.read import ExportedDetector
from devnet_jax.export.write import export_detector
from devnet_jax.launchers.local import HOST, free_port
from devnet_jax.models.build import make_variables
from devnet_jax.runtime.workdir import Workdir
from tests import fork_server
from tests.conftest import TINY_SETTINGS, environment
from tests.served import Service, ask, started

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

UPLOAD_SECONDS = 1.5
MAX_UPLOAD = 2**20 // 4
LIMITS = (f"--max_upload_mib={MAX_UPLOAD / 2**20}", f"--upload_seconds={UPLOAD_SECONDS}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    config = with_settings(Config(), TINY_SETTINGS)
    detector = Detector(config, make_variables(config), step=7)
    export_detector(detector, Workdir(folder / "run"), folder / "model.devnet")
    return folder / "model.devnet"


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Service]:
    with started(model, *LIMITS) as service:
        yield service


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Image files of several types and sizes."""
    rng = np.random.default_rng(5)
    files = []
    for kind, size in (("PNG", 40), ("JPEG", 64), ("BMP", 33), ("TIFF", 100), ("PNG", 32)):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (size, size + 7, 3), dtype=np.uint8)).save(file, kind)
        files.append(file.getvalue())
    return files


def test_what_it_serves(service: Service) -> None:
    status, health = service.ask("GET", "/health")
    assert (status, health["status"], health["step"]) == (200, "ok", 7)
    assert health["drift"] is None
    status, card = service.ask("GET", "/card")
    assert (status, card) == (200, ExportedDetector.load(service.model).card)
    assert health["model"] == card["dataset"]
    assert (health["name"], health["date"]) == (card["name"], card["date"])
    assert (health["name"], health["date"]) == ("synthetic_textures", None)


def test_scores_are_those_of_the_detector(
    service: Service, pictures: list[bytes], tmp_path: Path
) -> None:
    paths = [tmp_path / str(i) for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        path.write_bytes(picture)
    detector = ExportedDetector.load(service.model)
    expected = detector.score(paths)
    maps = detector.explain(paths).maps
    assert expected.p_values is not None
    assert expected.is_anomaly is not None
    assert detector.threshold is not None
    with ThreadPoolExecutor() as threads:  # concurrently, so that some are scored as one batch
        asked = [threads.submit(service.ask, "POST", "/score", picture) for picture in pictures]
        mapped = [
            threads.submit(service.ask, "POST", "/score?maps=true", picture)
            for picture in pictures
        ]  # fmt: skip
    for i, (plain, with_map) in enumerate(zip(asked, mapped, strict=True)):
        status, answer = plain.result()
        assert status == 200
        assert answer["score"] == pytest.approx(float(expected.scores[i]), rel=1e-5, abs=1e-6)
        assert answer["p_value"] == pytest.approx(expected.p_values[i], rel=1e-4)
        assert answer["is_anomaly"] == expected.is_anomaly[i]
        assert answer["reason"] == expected.reasons[i]
        assert answer["threshold"] == detector.threshold.value
        assert "map" not in answer
        status, answer = with_map.result()
        assert answer["score"] == pytest.approx(float(expected.scores[i]), rel=1e-5, abs=1e-6)
        heat = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["map"]))))
        assert heat.dtype == np.uint8
        np.testing.assert_allclose(heat, maps[i] * 255, atol=1)


def bomb() -> bytes:
    """Returns a small file with many pixels."""
    file = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda: b"", "empty"),
        (lambda: b"words,\nwords" * 100, "not an image"),
        (lambda: b"\x89PNG\r\nand no more", "damaged"),
        (bomb, "pixels"),
    ],
    ids=["nothing", "words", "damaged", "bomb"],
)
def test_junk_is_refused(service: Service, body: Callable[[], bytes], words: str) -> None:
    status, answer = service.ask("POST", "/score", body())
    assert status == 400
    assert words in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/absent", 404),
        ("POST", "/", 404),
        ("POST", "/score/", 404),
        ("GET", "/score", 405),
        ("PUT", "/score", 405),  # curl -T
        ("DELETE", "/score", 405),
        ("POST", "/card", 405),
    ],
)
def test_unknown_paths_and_methods(
    service: Service, pictures: list[bytes], method: str, path: str, expected: int
) -> None:
    status, answer = service.ask(method, path, None if method == "GET" else pictures[0])
    assert status == expected
    assert list(answer) == ["error"]
    words = {404: "POST /score", 405: "GET request" if path == "/card" else "POST the bytes"}
    assert words[expected] in answer["error"]
    assert path in answer["error"]


FORM = {"Content-Type": "application/x-www-form-urlencoded"}  # curl sends it with -d and without


def stripped(picture: bytes) -> bytes:
    """Returns what curl's -d sends of a file."""
    return picture.translate(None, b"\r\n\0")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (stripped, "curl's -d"),
        (lambda picture: b"", "empty"),
        (lambda picture: b" \r\n", "empty"),
        (lambda picture: json.dumps({"image": list(picture[:9])}).encode(), "JSON"),
        (lambda picture: json.dumps([list(picture[:9])], indent=1).encode(), "JSON"),
        (base64.b64encode, "base64"),
        (base64.encodebytes, "base64"),
        (lambda picture: b"data:image/png;base64," + base64.b64encode(picture), "base64"),
        (lambda picture: picture.hex().encode(), "hexadecimal"),
        (lambda picture: b"part.png", "text"),  # curl --data-binary part.png
        (lambda picture: b"http://host/part.png", "text"),
    ],
    ids=[
        *("-d", "empty", "blank", "json", "lines", "base64", "wrapped"),
        *("data", "hexadecimal", "name", "address"),
    ],
)
def test_other_bodies_are_told_what_to_send(
    service: Service, pictures: list[bytes], body: Callable[[bytes], bytes], words: str
) -> None:
    for picture in pictures[:4]:  # PNG, JPEG, BMP and TIFF
        status, answer = service.ask("POST", "/score", body(picture), **FORM)
        assert status == 400
        assert words in answer["error"]
        assert "--data-binary @" in answer["error"]


@pytest.mark.parametrize(
    ("value", "is_map"), [("yes", True), ("ON", True), ("1", True), ("no", False), ("0", False)]
)
def test_words_for_maps(service: Service, pictures: list[bytes], value: str, is_map: bool) -> None:
    status, answer = service.ask("POST", f"/score?maps={value}", pictures[0])
    assert (status, "map" in answer) == (200, is_map)


@pytest.mark.parametrize("value", ["ja", "", "2"])
def test_other_words_for_maps_are_refused(
    service: Service, pictures: list[bytes], value: str
) -> None:
    status, answer = service.ask("POST", f"/score?maps={value}", pictures[0])
    assert status == 400
    assert answer["error"] == f"maps={value}: give maps=true or maps=false"


def test_the_documented_command_is_taken_for_no_form(
    service: Service, pictures: list[bytes]
) -> None:
    for picture in pictures:
        assert service.ask("POST", "/score", picture, **FORM)[0] == 200


def test_a_compressed_body_is_told_what_to_send(service: Service, pictures: list[bytes]) -> None:
    kind = {"Content-Encoding": "gzip"}
    status, answer = service.ask("POST", "/score", gzip.compress(pictures[0]), **kind)
    assert status == 415
    assert "compressed" in answer["error"]
    assert "--data-binary" in answer["error"]


def test_a_form_is_told_what_to_send(service: Service, pictures: list[bytes]) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    status, answer = service.ask("POST", "/score", pictures[0], **kind)
    assert status == 415
    assert "--data-binary" in answer["error"]


def head(length: int) -> bytes:
    """Returns the head of a request with a body of this length."""
    return f"POST /score HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n".encode()


def test_too_large_is_refused_before_it_is_sent(service: Service) -> None:
    with socket.create_connection((HOST, service.port), timeout=10) as client:
        client.sendall(head(2**40))
        assert b" 413 " in client.recv(1000)


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_is_told_to_who_sends_it_all(service: Service, chunked: bool) -> None:
    body = bytes(4 * MAX_UPLOAD)
    parts = iter([body[i : i + 50_000] for i in range(0, len(body), 50_000)])
    status, answer = service.ask("POST", "/score", parts if chunked else body)
    assert status == 413
    assert str(MAX_UPLOAD) in answer["error"]


def test_a_slow_upload_holds_up_nobody(service: Service, pictures: list[bytes]) -> None:
    start = time.perf_counter()
    with socket.create_connection((HOST, service.port), timeout=10) as client:
        client.sendall(head(5000) + b"\x89PNG")
        served = 0
        client.settimeout(0.05)
        answer = b""
        while not answer and time.perf_counter() - start < 30:
            assert service.ask("POST", "/score", pictures[0])[0] == 200
            served += 1
            client.sendall(b"-")
            with contextlib.suppress(TimeoutError):
                answer = client.recv(1000)
    assert b" 408 " in answer
    assert time.perf_counter() - start >= UPLOAD_SECONDS
    assert served >= 2


def test_many_clients(service: Service, pictures: list[bytes]) -> None:
    statuses: Counter[int] = Counter()
    before = service.resident_mib()
    end = time.monotonic() + 3

    def client(i: int) -> Counter[int]:
        found: Counter[int] = Counter()
        connection = http.client.HTTPConnection(HOST, service.port, timeout=30)
        with contextlib.closing(connection):
            while time.monotonic() < end:
                picture = pictures[(i + found.total()) % len(pictures)]
                found[ask(connection, "POST", "/score", picture)[0]] += 1
        return found

    with ThreadPoolExecutor(64) as threads:
        for found in threads.map(client, range(64)):
            assert found.total() > 0
            statuses += found
    assert set(statuses) == {200}
    assert service.resident_mib() - before < 200


def takes_requests(service: Service) -> bool:
    try:
        service.ask("GET", "/health")
    except ConnectionError:
        return False
    return True


def test_too_many_are_told_to_come_back_and_who_waits_is_served_to_the_end(
    model: Path, pictures: list[bytes]
) -> None:
    picture = pictures[0]
    with started(model, "--max_waiting=2") as service, contextlib.ExitStack() as clients:
        waiting = []
        for _ in range(2):
            client = clients.enter_context(socket.create_connection((HOST, service.port), 10))
            client.sendall(head(len(picture)) + picture[:-1])
            waiting.append(client)
        status = 200
        while status == 200:  # until the service has received those two requests
            with contextlib.closing(http.client.HTTPConnection(HOST, service.port)) as third:
                third.request("POST", "/score", picture)
                response = third.getresponse()
                status, answer = response.status, json.loads(response.read())
        assert status == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert "2 requests wait" in answer["error"]
        service.process.send_signal(signal.SIGTERM)
        while takes_requests(service):
            time.sleep(0.05)
        for client in waiting:
            client.sendall(picture[-1:])
            assert b" 200 " in client.recv(1000)
        assert service.process.wait(timeout=60) == 0


def test_mistakes_on_the_command_line(model: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        for flags, words in (
            ((f"--model={model}", f"--port={taken.getsockname()[1]}"), "in use"),
            ((f"--model={model}.absent", f"--port={free_port()}"), "No such file"),
            ((f"--model={model.parent}", f"--port={free_port()}"), "is a folder; to export"),
        ):
            ended = fork_server.run(["examples/serve.py", *flags], environment(), timeout=60)
            assert ended.returncode == 1
            assert ended.stderr.splitlines()[-1].startswith("error: ")
            assert words in ended.stderr
            assert "Traceback" not in ended.stderr

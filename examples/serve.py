"""An HTTP service for an exported detector: post an image, get its score. An example to copy.

pip install -e ".[serve]" && python examples/serve.py --model=model.devnet --port=8000

curl --data-binary @part.png http://127.0.0.1:8000/score
curl --data-binary @part.png "http://127.0.0.1:8000/score?maps=true"
curl http://127.0.0.1:8000/card http://127.0.0.1:8000/health

Requests that wait at the same time are scored as one batch. Memory use is bounded whatever clients
do. There is no authentication and no encryption: put a proxy with both in front of it, which also
limits how slowly headers may arrive.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import io
import re
import signal
import socket
import sys
import warnings
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from absl import app, flags, logging
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from devnet_jax.data.decode import Batch
from devnet_jax.errors import UserError
from devnet_jax.inference.drift import Shift
from devnet_jax.inference.scorer import ImageScorer
from devnet_jax.inference.scores import as_written
from devnet_jax.runtime.host_devices import n_cores
from devnet_jax.runtime.startup import import_jax, prepare

MIB = 2**20
LINGER_SECONDS = 2.0
MAX_PASSED = 1000  # latest scores without an alarm, which are compared with those of calibration
WATCH_EVERY = 20  # such scores between two comparisons
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f\s]{40,}")
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_BASE64 = re.compile(rb"([A-Za-z0-9+/_-]{40,}[=\r\n]*)+[A-Za-z0-9+/_=-]*")
_SEND = (
    "POST the bytes of the image file itself, as does curl --data-binary @part.png, with the @ and "
    "not with -d, -F or -T"
)

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "file written by --mode=export", required=True)
flags.DEFINE_float("threshold", None, "threshold in force, as a score; by default the file's")
flags.DEFINE_string("host", "127.0.0.1", "address to listen on")
flags.DEFINE_integer("port", 8000, "port to listen on; 0 chooses a free one", 0, 65535)
flags.DEFINE_integer("max_batch", 32, "maximum number of images scored as one batch", 1)
flags.DEFINE_integer("max_waiting", 256, "maximum number of requests at once; then 503", 1)
flags.DEFINE_float("max_upload_mib", 20, "maximum size of an upload in MiB; then 413", 0.001)
flags.DEFINE_float("max_uploads_mib", 512, "maximum size of all uploads at once; then 503", 0.001)
flags.DEFINE_float("max_megapixels", 50, "maximum number of pixels of an image; then 400", 0.001)
flags.DEFINE_float("upload_seconds", 10, "maximum duration of an upload; then 408", 0.1)


class Job(NamedTuple):
    """A decoded image, as a batch of one, with a future for its result."""

    image: Batch
    with_map: bool
    answer: asyncio.Future[dict[str, Any]]


class Service:
    """The HTTP endpoints and their queue: decodes uploads, scores waiting images in batches."""

    def __init__(self, detector: ImageScorer, card: dict[str, Any]) -> None:
        self._detector, self._card = detector, card
        self._decoders = ThreadPoolExecutor(n_cores())
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()
        # One batch is scored while the next is decoded; more decoded images only take memory.
        self._room = asyncio.Semaphore(2 * FLAGS.max_batch)
        self._n_waiting = 0
        self._n_uploaded = 0  # bytes of all uploads that are not decoded yet
        self._passed: collections.deque[float] = collections.deque(maxlen=MAX_PASSED)
        self._n_passed = 0
        self._drift: Shift | None = None
        self._has_maps = detector.explanation != "none"
        for exponent in range(FLAGS.max_batch.bit_length()):  # compiles every batch size
            settings = detector.preprocessing
            pixels = np.zeros((1 << exponent, *settings.shape), np.uint8)
            images = Batch.of_pixels(pixels, settings)
            detector.score(images)
            if self._has_maps:
                detector.input_maps(images)

    def application(self) -> Starlette:
        """Returns the ASGI application."""
        routes = [
            Route("/health", self._health),
            Route("/card", self._get_card),
            Route("/score", self._score, methods=["POST"]),
        ]
        handlers = {HTTPException: _http_error, Exception: _internal_error}
        application = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        application.router.redirect_slashes = False  # curl would show nothing
        return application

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(self._score_batches())
        yield
        worker.cancel()  # all requests are answered by now
        self._decoders.shutdown()

    async def _health(self, _: Request) -> Response:
        detector = self._detector
        drift = None if self._drift is None else str(self._drift)
        return JSONResponse(
            {
                "status": "ok",
                "name": detector.name,
                "date": detector.date,
                "model": self._card["dataset"],
                "step": self._card["step"],
                "drift": drift,
            }
        )

    async def _get_card(self, _: Request) -> Response:
        return JSONResponse(self._card)

    async def _score(self, request: Request) -> Response:
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(415, f"a form was sent: {_SEND}")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, f"a compressed body was sent: {_SEND}")
        with_map = _wants_map(request)
        if with_map and not self._has_maps:
            raise HTTPException(400, "this detector was exported without maps")
        if self._n_waiting >= FLAGS.max_waiting:
            raise _busy(f"{self._n_waiting} requests wait already")
        self._n_waiting += 1
        try:
            return JSONResponse(await self._answer(request, with_map))
        except ClientDisconnect:
            return Response(status_code=400)  # not read by anyone
        finally:
            self._n_waiting -= 1

    async def _answer(self, request: Request, with_map: bool) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as until_answered:
            async with self._upload(request) as upload:
                if mistake := _mistake(upload):
                    raise HTTPException(400, f"{mistake}: {_SEND}")
                await until_answered.enter_async_context(self._room)
                decoding = loop.run_in_executor(self._decoders, self._detector.prepare, upload)
                try:
                    job = Job(await decoding, with_map, loop.create_future())
                except UserError as error:
                    raise HTTPException(400, str(error)) from None
            del upload, decoding  # no longer counted, so the memory must be free
            self._jobs.put_nowait(job)
            return await job.answer

    @contextlib.asynccontextmanager
    async def _upload(self, request: Request) -> AsyncIterator[bytes]:
        """Reads the body of a request, which counts as an upload until the context ends."""
        limit = int(FLAGS.max_upload_mib * MIB)
        too_large = HTTPException(413, f"the upload has more than the {limit} bytes allowed")
        if int(request.headers.get("content-length", 0)) > limit:
            raise too_large
        chunks: list[bytes] = []
        n = 0
        try:
            try:
                async with asyncio.timeout(FLAGS.upload_seconds):
                    async for chunk in request.stream():
                        n += len(chunk)
                        self._n_uploaded += len(chunk)
                        if n > limit:
                            raise too_large
                        if self._n_uploaded > FLAGS.max_uploads_mib * MIB:
                            raise _busy("too much is being uploaded")
                        chunks.append(chunk)
            except TimeoutError:
                message = f"the upload took longer than {FLAGS.upload_seconds:g} s"
                raise HTTPException(408, message) from None
            upload = b"".join(chunks)
            chunks.clear()
            yield upload
        finally:
            self._n_uploaded -= n

    async def _score_batches(self) -> None:
        while True:
            first = await self._jobs.get()
            # A power of two, so that no padding is computed.
            n = 1 << (min(1 + self._jobs.qsize(), FLAGS.max_batch).bit_length() - 1)
            jobs = [first, *(self._jobs.get_nowait() for _ in range(n - 1))]
            answers: Sequence[dict[str, Any] | Exception]
            try:
                answers = await asyncio.to_thread(_answers, self._detector, jobs)
            except Exception as error:
                answers = [error] * n
            for job, answer in zip(jobs, answers, strict=True):
                if job.answer.done():
                    continue  # cancelled: the client or the service has ended
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)
            await asyncio.to_thread(self._watch, answers)

    def _watch(self, answers: Sequence[dict[str, Any] | Exception]) -> None:
        """Compares the latest scores that passed with those of calibration, now and then."""
        passed = [
            answer["score"]
            for answer in answers
            if isinstance(answer, dict) and answer["is_anomaly"] is False and not answer["odd"]
        ]
        before = self._n_passed // WATCH_EVERY
        self._passed.extend(passed)
        self._n_passed += len(passed)
        if self._n_passed // WATCH_EVERY == before:
            return
        drift = self._detector.find_drift(np.array(self._passed))
        if drift is not None and self._drift is None:
            logging.warning("%s", drift)
        self._drift = drift


def _wants_map(request: Request) -> bool:
    """Returns the value of the parameter `maps`, by default False."""
    value = request.query_params.get("maps", "false")
    if value.lower() not in (*_YES, *_NO):
        raise HTTPException(400, f"maps={value}: give maps=true or maps=false")
    return value.lower() in _YES


def _mistake(body: bytes) -> str | None:
    """Describes a body that cannot be an image file; `None` if it may be one."""
    start = body[:200].strip()
    if not start:
        return "the body is empty"
    if start[:1] in (b"{", b"["):
        return "JSON was sent"
    if _HEXADECIMAL.fullmatch(start):
        return "hexadecimal text was sent"
    if start.startswith(b"data:") or _BASE64.fullmatch(start):
        return "base64 text was sent"
    # Every image file has some of these bytes. The header Content-Type does not tell: curl names a
    # form with --data-binary, too.
    if not any(byte in body for byte in b"\0\r\n"):
        if body.isascii():
            return "text was sent"
        return "line ends and zero bytes are missing, as curl's -d removes them"
    return None


def _answers(detector: ImageScorer, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Returns the JSON response of each image."""
    found = detector.score(Batch.join([job.image for job in jobs]))
    threshold = detector.threshold
    columns = {
        "score": as_written(found.scores),
        "severity": found.severity,
        "p_value": found.p_values,
        "is_anomaly": found.is_anomaly,
        "reason": np.array(found.reasons),
        "odd": np.array(found.odd),
        "threshold": None if threshold is None else np.full(len(jobs), threshold.value),
    }
    answers: list[dict[str, Any]] = [
        {name: None if column is None else column[i].item() for name, column in columns.items()}
        for i in range(len(jobs))
    ]
    mapped = [i for i, job in enumerate(jobs) if job.with_map]
    if mapped:
        explained = detector.explain(Batch.join([jobs[i].image for i in mapped]))
        for i, values in zip(mapped, explained.maps, strict=True):
            heat = detector.heat(values)
            file = io.BytesIO()
            Image.fromarray(np.rint(255 * heat).astype(np.uint8)).save(file, "PNG")
            answers[i]["map"] = base64.b64encode(file.getvalue()).decode()
    return answers


class _Refusal(JSONResponse):
    """An error response to a client that may still be sending; it ends the connection.

    An immediate close would reset the connection, and most clients would lose the response. So the
    request is read and discarded for a moment.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": [*self.raw_headers, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body"})


def _busy(reason: str) -> HTTPException:
    return HTTPException(503, f"{reason}: try again later", {"Retry-After": "1"})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _Refusal if error.status_code in (405, 408, 413, 415, 503) else JSONResponse
    detail = error.detail
    path = request.url.path
    if error.status_code == 404:
        detail = f"{path}: no such path; there are POST /score, GET /card and GET /health"
    elif error.status_code == 405:
        detail = f"{path} takes no {request.method}: "
        detail += _SEND if path == "/score" else "send a GET request"
    return response({"error": detail}, error.status_code, error.headers)


async def _internal_error(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "internal error of the service; see its log"}, 500)


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket bound to the address, which accepts no connections yet."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--host={host} --port={port}: {reason}; choose others") from None
    return listener


def main(_: Sequence[str]) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers waiting requests and ends."""
    # While serving, uvicorn handles the signals; it raises them again when it has shut down.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    logging.set_verbosity(logging.WARNING)
    print(f"preparing {FLAGS.model}: up to a minute the first time, to compile", file=sys.stderr)
    try:
        prepare(batch_size=1)
        import_jax()
        from devnet_jax.export.read import ExportedDetector  # imports JAX: after prepare

        listener = _listen(FLAGS.host, FLAGS.port)
        detector = ExportedDetector.load(FLAGS.model)
        if FLAGS.threshold is not None:
            detector = detector.with_threshold(FLAGS.threshold)
    except UserError as error:
        sys.exit(f"error: {error}")
    # Pillow refuses images with more than twice this number of pixels.
    Image.MAX_IMAGE_PIXELS = int(FLAGS.max_megapixels * 1e6 / 2)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    config = uvicorn.Config(
        Service(detector, detector.card).application(),
        http="h11",  # limits the size of headers
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=int(FLAGS.upload_seconds + 30),
    )
    listener.listen()  # before the next line, after which clients may connect
    print(f"serving {FLAGS.model} at http://{FLAGS.host}:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    app.run(main)

"""The HTTP application of a review: its page, pictures, labels and what it is doing."""

from __future__ import annotations

import asyncio
import functools
import importlib.resources
import json
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from devnet_jax.errors import UserError
from devnet_jax.report.html.template import render
from devnet_jax.review.guard import Guard, cookie_name
from devnet_jax.review.journal import checked_label, checked_name
from devnet_jax.review.protocol import Session
from devnet_jax.review.responses import JsonResponse
from devnet_jax.runtime.host_devices import n_cores

T = TypeVar("T")

MAX_JSON = 2**20
MAX_MASK = 2**25
_MAX_LIMIT = 500
_MAX_SIZE = 4096
_LINGER_SECONDS = 2.0
_ORDERS = ("teach", "score", "name")
_SHOWN = ("all", "unseen", "good", "anomaly", "skipped", "changed", "disagree")
_TYPES = {".css": "text/css", ".js": "text/javascript"}
# Folders of the package with the files of the page.
_FOLDERS = ("review/page", "report/html")
# For the messages of Starlette.
_SENTENCES = {
    "Not Found": "There is nothing at this address.",
    "Method Not Allowed": "This address takes no such request.",
}


class Server:
    """The endpoints of a review.

    Pictures are named by their numbers alone, so no path comes from a client.
    """

    def __init__(self, session: Session, token: str, port: int) -> None:
        self._session, self._token, self._port = session, token, port
        self._page = render("review/page/review.html.jinja")
        self._files = static_files()
        # Numbers stand for other pictures in the next review, so its marks differ.
        self._mark = secrets.token_hex(8)
        n_readers = max(2, min(n_cores(), 8))
        self._readers = ThreadPoolExecutor(n_readers, "review-pictures")
        self._room = asyncio.Semaphore(n_readers)
        self._callers = ThreadPoolExecutor(4, "review-calls")

    def application(self) -> Guard:
        """Returns the ASGI application."""
        routes = [
            Route("/", self._open),
            Route("/static/{name}", self._static),
            Route("/api/state", self._state),
            Route("/api/pictures", self._pictures),
            Route("/api/picture/{i:int}", self._picture),
            Route("/api/label", self._label, methods=["POST"]),
            Route("/api/undo", self._undo, methods=["POST"]),
            Route("/api/learn", self._learn, methods=["POST"]),
            Route("/api/finish", self._finish, methods=["POST"]),
            Route("/image/{i:int}", self._image),
            Route("/map/{i:int}", self._map),
            Route("/mask/{i:int}", self._get_mask),
            Route("/mask/{i:int}", self._put_mask, methods=["PUT"]),
            Route("/mask/{i:int}", self._delete_mask, methods=["DELETE"]),
        ]
        handlers: dict[Any, Any] = {
            HTTPException: _http_error,
            UserError: _user_error,
            ClientDisconnect: _disconnected,
            Exception: _internal_error,
        }
        application = Starlette(routes=routes, exception_handlers=handlers)
        application.router.redirect_slashes = False
        return Guard(application, self._token, self._port)

    def close(self) -> None:
        """Ends the threads when their work is done; what waits is dropped."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._callers.shutdown(wait=False, cancel_futures=True)

    async def _open(self, request: Request) -> Response:
        response = Response(self._page, media_type="text/html")
        cookie = cookie_name(self._port)
        response.set_cookie(cookie, self._token, path="/", httponly=True, samesite="strict")
        return response

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            raise HTTPException(404, "There is no such file.")
        content, media_type = self._files[name]
        return Response(content, media_type=media_type)

    async def _state(self, request: Request) -> Response:
        return await self._answer_state()

    async def _pictures(self, request: Request) -> Response:
        order = _choice(request, "order", _ORDERS)
        show = _choice(request, "show", _SHOWN)
        offset = _number(request, "offset", 0, 0, 10**9)
        limit = _number(request, "limit", 60, 1, _MAX_LIMIT)
        return JsonResponse(await self._call(self._session.list, order, show, offset, limit))

    async def _picture(self, request: Request) -> Response:
        return JsonResponse(await self._call(self._session.picture, self._number(request)))

    async def _label(self, request: Request) -> Response:
        fields = await _json(request)
        label = checked_label(_text(fields, "label"), _text(fields, "defect"))
        reviewer = checked_name(_text(fields, "reviewer"), "reviewer")
        ids = self._ids(fields)
        await self._call(self._session.label, ids, label.label, label.defect, reviewer)
        return await self._answer_state()

    async def _undo(self, request: Request) -> Response:
        reviewer = checked_name(_text(await _json(request), "reviewer"), "reviewer")
        ids = await self._call(self._session.undo, reviewer)
        state = await self._call(self._session.state)
        return JsonResponse({"ids": [*ids], "state": state})

    async def _learn(self, request: Request) -> Response:
        await _json(request)
        await self._call(self._session.learn)
        return await self._answer_state()

    async def _finish(self, request: Request) -> Response:
        await _json(request)
        await self._call(self._session.finish)
        return await self._answer_state()

    async def _image(self, request: Request) -> Response:
        i, size = self._number(request), None
        if "size" in request.query_params:
            size = _number(request, "size", 0, 16, _MAX_SIZE)

        def image() -> tuple[bytes, str]:
            return self._session.image(i, size)

        return await self._read(request, f"{i}-{size}", image)

    async def _map(self, request: Request) -> Response:
        i = self._number(request)
        generation = _number(request, "g", 0, 0, 10**9)

        def heat() -> tuple[bytes, str] | None:
            content = self._session.map(i)
            return None if content is None else (content, "image/png")

        return await self._read(request, f"{i}-map-{generation}", heat)

    async def _read(
        self, request: Request, name: str, read: Callable[[], tuple[bytes, str] | None]
    ) -> Response:
        """Answers with an image file, or that the browser has it.

        Args:
          request: request of the image.
          name: name of the image; different images of a review have different ones.
          read: function that makes the file in a thread.
        """
        mark = f'"{self._mark}-{name}"'
        headers = {"ETag": mark, "Cache-Control": "private, no-cache"}  # kept, but asked for
        if request.headers.get("if-none-match") == mark:
            return Response(status_code=304, headers=headers)
        async with self._room:
            if await request.is_disconnected():  # has been scrolled away
                return Response(status_code=404)
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._readers, read)
        if found is None:
            raise HTTPException(404, "This picture has no map yet: it is not scored.")
        content, media_type = found
        return Response(content, media_type=media_type, headers=headers)

    async def _get_mask(self, request: Request) -> Response:
        content = await self._call(self._session.mask, self._number(request))
        if content is None:
            raise HTTPException(404, "This picture has no mask.")
        return Response(content, media_type="image/png")

    async def _put_mask(self, request: Request) -> Response:
        _require_type(request, "image/png")
        i, content = self._number(request), await _body(request, MAX_MASK)
        await self._call(self._session.set_mask, i, content, _reviewer(request))
        return await self._answer_state()

    async def _delete_mask(self, request: Request) -> Response:
        i = self._number(request)
        await self._call(self._session.set_mask, i, None, _reviewer(request))
        return await self._answer_state()

    async def _answer_state(self) -> Response:
        return JsonResponse(await self._call(self._session.state))

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._callers, functools.partial(function, *arguments))

    def _number(self, request: Request) -> int:
        return self._known(request.path_params["i"])

    def _ids(self, fields: dict[str, Any]) -> list[int]:
        ids = fields.get("ids")
        if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
            raise HTTPException(400, "ids: give a list of numbers of pictures")
        return [self._known(i) for i in dict.fromkeys(ids)]

    def _known(self, i: int) -> int:
        if not 0 <= i < self._session.n:
            raise HTTPException(404, f"There is no picture {i}, but 0 to {self._session.n - 1}.")
        return i


def static_files() -> dict[str, tuple[bytes, str]]:
    """Returns the styles and scripts of the page with their media types, by name."""
    package = importlib.resources.files("devnet_jax")
    return {
        file.name: (file.read_bytes(), media_type)
        for folder in _FOLDERS
        for file in package.joinpath(folder).iterdir()
        for suffix, media_type in _TYPES.items()
        if file.name.endswith(suffix)
    }


async def _json(request: Request) -> dict[str, Any]:
    """Returns the JSON object in the body of a request; an empty body counts as {}."""
    _require_type(request, "application/json")
    body = await _body(request, MAX_JSON)
    try:
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise HTTPException(400, "The body is no JSON object.")
    return fields


def _require_type(request: Request, media_type: str) -> None:
    """Refuses other types: forms of any page can send some of them without asking."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != media_type:
        raise HTTPException(400, f"Content-Type: give {media_type}")


async def _body(request: Request, limit: int) -> bytes:
    """Returns the body of a request, and refuses one of more than `limit` bytes."""
    chunks: list[bytes] = []
    n = 0
    try:
        # Browsers report no answer at all if it comes before they have sent everything.
        async with asyncio.timeout(None) as deadline:
            async for chunk in request.stream():
                n += len(chunk)
                if n <= limit:
                    chunks.append(chunk)
                elif deadline.when() is None:
                    chunks.clear()
                    deadline.reschedule(asyncio.get_running_loop().time() + _LINGER_SECONDS)
    except TimeoutError:
        pass
    if n > limit:
        raise HTTPException(413, f"The body has more than {limit} bytes.", {"Connection": "close"})
    return b"".join(chunks)


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise HTTPException(400, f"{name}: give a text")
    return value


def _reviewer(request: Request) -> str:
    return checked_name(request.query_params.get("reviewer", ""), "reviewer")


def _choice(request: Request, name: str, known: Sequence[str]) -> str:
    value = request.query_params.get(name, known[0])
    if value not in known:
        raise HTTPException(400, f"{name}: give one of {', '.join(known)}")
    return value


def _number(request: Request, name: str, default: int, low: int, high: int) -> int:
    text = request.query_params.get(name, f"{default}")
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 11 else -1
    if not low <= value <= high:
        raise HTTPException(400, f"{name}: give a number from {low} to {high}")
    return value


async def _http_error(request: Request, error: HTTPException) -> Response:
    detail = _SENTENCES.get(error.detail, error.detail)
    return JsonResponse({"error": detail}, error.status_code, error.headers)


async def _user_error(request: Request, error: UserError) -> Response:
    return JsonResponse({"error": str(error)}, 400)


async def _disconnected(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # not read by anyone


async def _internal_error(request: Request, error: Exception) -> Response:
    return JsonResponse({"error": "Internal error of the review; see its terminal."}, 500)

"""Refuses requests that are not from the review's own page."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from devnet_jax.review.responses import JsonResponse

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_SAFE_METHODS = ("GET", "HEAD")
_OWN_SITES = ("same-origin", "none")  # "none" is an address that the user has typed or clicked
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_NO_TOKEN = (
    "Open the address that the command has printed: it ends in ?token=… and changes with the "
    "results folder."
)


class Guard:
    """An ASGI application around another: lets requests through that carry the token.

    Browsers send requests of any page in the user's name. Those of other pages are told by the
    headers Origin and Sec-Fetch-Site, and by the lack of a cookie that only the own page's requests
    carry; names that lead to this machine by a change of DNS, by the header Host.
    """

    def __init__(self, application: ASGIApp, token: str, port: int) -> None:
        self._application = application
        self._token = token
        self._hosts = {f"{name}:{port}" for name in _LOOPBACK}
        self._origins = {f"http://{host}" for host in self._hosts}
        self._cookie = cookie_name(port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request itself if it is refused; adds headers to every answer."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        request = Request(scope)
        mistake = self._mistake(request)
        answer = self._application if mistake is None else _refusal(request, mistake)
        await answer(scope, receive, send_with_headers)

    def _mistake(self, request: Request) -> str | None:
        """Returns what is wrong with a request, as a sentence."""
        headers = request.headers
        if not _all_in(headers.getlist("host"), self._hosts) or "host" not in headers:
            return "This name of the machine is not one of the review's addresses."
        if not _all_in(headers.getlist("origin"), self._origins):
            return "Requests of other pages are refused."
        is_opening = request.url.path == "/" and request.method in _SAFE_METHODS
        if not is_opening and not _all_in(headers.getlist("sec-fetch-site"), _OWN_SITES):
            return "Requests of other pages are refused."
        given = [request.cookies.get(self._cookie, "")]
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given.append(value.strip())
        if is_opening:
            given.append(request.query_params.get("token", ""))
        if not any(self._is_token(text) for text in given):
            return _NO_TOKEN
        return None

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", "replace"), self._token.encode())


def cookie_name(port: int) -> str:
    """Returns the name of the cookie; reviews on other ports of the host share all cookies."""
    return f"review-{port}"


def _all_in(values: Iterable[str], known: Iterable[str]) -> bool:
    return all(value.lower() in known for value in values)


def _refusal(request: Request, mistake: str) -> Response:
    if request.url.path == "/":  # is shown by the browser
        return PlainTextResponse(f"{mistake}\n", 403)
    return JsonResponse({"error": mistake}, 403)

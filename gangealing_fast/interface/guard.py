# SPDX-License-Identifier: Apache-2.0
"""Who is let in: an ASGI layer before everything that the studio serves.

Host       on this machine alone the page answers to this machine's names only: a foreign page cannot reach it by a name of its own
           that it lets point here (DNS rebinding).
Token      elsewhere a browser has to know one. It is given in the address once and kept in a cookie.
Origin     what changes something comes from the page itself.
Paths      only those that the page uses; the library's routes for files, uploads and proxies are not among them.
Bodies     of bounded size, counted as they arrive.
Pages      load nothing from elsewhere: a content security policy says so to the browser too.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gangealing_fast.interface.sessions import KEY, new_key

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
PATHS = re.compile(
    r"/|/(assets|static)/.*|/theme\.css|/favicon\.ico|/manifest\.json|/config|/studio/.*"
    r"|/gradio_api/(theme\.css|startup-events|info|queue/(join|data)|heartbeat/[^/]+|cancel|reset)"
)
SMALL_BODY = 1 << 20
"""Bytes of a request that carries no file."""
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "manifest-src 'self'; base-uri 'self'; form-action 'self'; frame-src 'self'; frame-ancestors 'none'"
)
REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; sandbox allow-scripts"
_YEAR = 365 * 24 * 3600
_FOREIGN = re.compile(rb"<meta\s[^>]*?(?:property=\"og:|name=\"twitter:)[^>]*?/>", re.DOTALL)


class Guard:
    """Lets through what may pass. port: of the studio, which names its cookies. hosts: names it answers to, None for any.

    token: what a browser has to know, "" for nothing. limits: bytes of a body by the beginning of its path.
    """

    def __init__(
        self, application: Application, *, port: int, hosts: frozenset[str] | None, token: str, limits: dict[str, int]
    ) -> None:
        self._application, self._hosts, self._token, self._limits = application, hosts, token.encode(), limits
        self.cookie, self._token_cookie = f"studio-{port}", f"studio-token-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        cookies = _cookies(headers.get("cookie", ""))
        refused = self._refusal(scope, headers)
        if refused is not None:
            await _answer(send, *refused)
            return
        if self._token and not self._knows(cookies.get(self._token_cookie, "")):
            await self._ask(scope, send)
            return
        key, new = cookies.get(self.cookie, ""), False
        if not KEY.fullmatch(key):
            key, new = new_key(), True
        scope.setdefault("state", {})["key"] = key
        cookie = self._set_cookie(self.cookie, key) if new else None
        bounded = _Bounded(receive, self._limit(scope["path"]))
        # Of a request that is cut off as the studio ends, nothing is to be said.
        with contextlib.suppress(asyncio.CancelledError):
            await self._application(scope, bounded, _Reply(send, scope["path"], cookie, bounded))

    # ---- checks

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and sentence for what is refused whoever asks, None for what may go on."""
        host = _name_of(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            return 421, "this studio serves its own machine alone: open it as http://127.0.0.1, or start it with --host"
        if not PATHS.fullmatch(scope["path"]) or "\\" in scope["path"] or ".." in scope["path"].split("/"):
            return 404, "there is nothing here"
        if scope["method"] in ("GET", "HEAD"):
            return None
        if scope["method"] != "POST":
            return 405, "only GET and POST are understood"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            return 403, "this request comes from another page"
        if scope["path"].startswith("/studio/") and headers.get("x-studio") != "1":
            return 403, "this request does not come from the page of the studio"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._limit(scope["path"]):
            return 413, too_large(self._limit(scope["path"]))
        return None

    def _limit(self, path: str) -> int:
        return next((limit for beginning, limit in self._limits.items() if path.startswith(beginning)), SMALL_BODY)

    def _knows(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self._token)

    async def _ask(self, scope: Scope, send: Send) -> None:
        """Take the token from the address and put it into a cookie, or refuse."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] != "/" or scope["method"] != "GET" or not self._knows(given):
            await _answer(send, 403, "this studio asks for its token: open the address that it printed when it was started")
            return
        cookie = self._set_cookie(self._token_cookie, given)
        headers = [(b"location", b"./"), (b"set-cookie", cookie), (b"referrer-policy", b"no-referrer"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    @staticmethod
    def _set_cookie(name: str, value: str) -> bytes:
        return f"{name}={value}; Path=/; Max-Age={_YEAR}; HttpOnly; SameSite=Strict".encode()


def too_large(limit: int) -> str:
    """The sentence for a body of more than `limit` bytes."""
    return f"this is larger than the {limit:,} bytes that are taken here"


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _cookies(header: str) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items()}
    except CookieError:
        return {}


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Bounded:
    """A body of at most `limit` bytes, whatever its header says: beyond them the browser seems to have gone."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self.limit, self._count = receive, limit, 0

    @property
    def exceeded(self) -> bool:
        return self._count > self.limit

    async def __call__(self) -> Message:
        if self.exceeded:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._count += len(message.get("body", b""))
        return {"type": "http.disconnect"} if self.exceeded else message


class _Reply:
    """An answer with the headers that keep a page to itself; the first page without its links to elsewhere."""

    def __init__(self, send: Send, path: str, cookie: bytes | None, bounded: _Bounded) -> None:
        self._send, self._path, self._cookie, self._bounded = send, path, cookie, bounded
        self._start: Message | None = None
        self._page = bytearray()
        self._refused = False

    async def __call__(self, message: Message) -> None:
        if self._refused:
            return
        if message["type"] == "http.response.start":
            if self._bounded.exceeded:
                self._refused = True
                await _answer(self._send, 413, too_large(self._bounded.limit))
                return
            message["headers"] = self._headers(list(message.get("headers", [])))
            if self._path == "/":
                self._start = message
                return
        elif self._start is not None:
            self._page += message.get("body", b"")
            if message.get("more_body"):
                return
            body = _FOREIGN.sub(b"", bytes(self._page))
            kept = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
            self._start["headers"] = [*kept, (b"content-length", str(len(body)).encode())]
            start, self._start = self._start, None
            await self._send(start)
            message = {"type": "http.response.body", "body": body}
        await self._send(message)

    def _headers(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        policy = REPORT_POLICY if self._path.endswith(".html") else POLICY
        added = {
            b"content-security-policy": policy.encode(),
            b"x-content-type-options": b"nosniff",
            b"referrer-policy": b"no-referrer",
            b"cross-origin-resource-policy": b"same-origin",
            b"cross-origin-opener-policy": b"same-origin",
        }
        if self._path.startswith("/studio/") or self._path == "/":
            added[b"cache-control"] = b"no-store"
        if any(name.lower() == b"cache-control" for name, _ in headers):  # of files whose addresses name their version
            added.pop(b"cache-control", None)
        kept = [(name, value) for name, value in headers if name.lower() not in added]
        cookie = [] if self._cookie is None else [(b"set-cookie", self._cookie)]
        return [*kept, *added.items(), *cookie]

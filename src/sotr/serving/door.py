"""The door: under which names the server answers, whose pages may ask it, and the key."""

import base64
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sotr.serving.problems import problem_response
from sotr.serving.settings import Access

OPEN = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json"})
"""Addresses that need no key: the page, which asks for it, whether the server lives, and the interface."""

OPEN_PLACES = ("/static-offline-docs/",)


class Door:
    """ASGI middleware that refuses who may not ask.

    Starlette's own middleware for names answers plain text, where every error here is JSON.

    Args:
        app: what is behind it.
        access: who may ask.
        files: names of the page's files, which need no key.
    """

    def __init__(self, app: ASGIApp, access: Access, files: frozenset[str]) -> None:
        self.app = app
        self.access = access
        self.open = OPEN | {f"/{name}" for name in files}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._refusal(scope) if scope["type"] == "http" else None
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await problem_response(*problem)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str, str, dict[str, str]] | None:
        """Status, code, message and headers of the answer to who may not ask."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.access.hosts and not any(_fits(_name(host), pattern) for pattern in self.access.hosts):
            message = (
                f"this server does not answer to the name {host[:80]!r}; whoever runs it adds names to --allowed-hosts"
            )
            return 421, "wrong_host", message, {}
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and self._foreign(headers, host):
            message = (
                "a page of another server may not send images here; whoever runs this one allows it with --cors-origin"
            )
            return 403, "foreign_page", message, {}
        # Browsers ask without the key whether they may ask with it.
        if self.access.key is None or scope["method"] == "OPTIONS" or self._is_open(scope["path"]):
            return None
        shown = headers.get("x-api-key") or _authorized(headers.get("authorization", ""))
        if hmac.compare_digest(shown.encode(), self.access.key.encode()):
            return None
        message = "a wrong key" if shown else "no key"
        message = f"{message}; send it as header 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
        return 401, "wrong_key" if shown else "no_key", message, {"WWW-Authenticate": "Bearer"}

    def _foreign(self, headers: Headers, host: str) -> bool:
        """Whether a browser says that another server's page asks; other clients say nothing."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin in self.access.origins:
            return False
        if site is not None:
            return site not in ("same-origin", "none")
        return origin is not None and urlsplit(origin).netloc.lower() != host.lower()

    def _is_open(self, path: str) -> bool:
        return path in self.open or path.startswith(OPEN_PLACES)


def _authorized(header: str) -> str:
    """The key in an Authorization header; of a name and a password, as Label Studio sends them, the password."""
    scheme, _, shown = header.partition(" ")
    if scheme.lower() != "basic":
        return shown if scheme == "Bearer" else header
    try:
        return base64.b64decode(shown).decode().partition(":")[2]
    except ValueError:
        return shown


def _name(host: str) -> str:
    """A Host header's name, without its port."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".")


def _fits(name: str, pattern: str) -> bool:
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern

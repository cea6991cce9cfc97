"""uvicorn's HTTP/1.1 for clients that are slow, many or broken, and the listening socket."""

import asyncio
import json
import logging
import socket
import sys
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from sotr.errors import SOTRError

MAX_CONNECTIONS = 512
"""Open connections, idle ones included; where more come, the oldest idle one is closed for each."""

IDLE_SHARE = 0.5
"""Part of the connections that may be idle; beyond it the oldest idle one of whoever has most is closed."""

OTHER_FILES = 48
"""Descriptors that are not for connections: libraries, pipes of the decoders, and what comes in at one time."""

LINGER = 5.0
"""Seconds for which the rest of a refused image is read and thrown away: closing at once would destroy the answer on
its way to a client that is still sending."""

_LOG = logging.getLogger("sotr.serving")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, made before the server starts so that failure is one clear line."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
        # asyncio turns Nagle's algorithm off only where the socket names its protocol, which create_server leaves out;
        # with it, each small answer on a kept connection waits 40 ms for the client's acknowledgment.
        return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listener.detach())
    except (OSError, UnicodeError) as error:  # the latter of names that no host can have
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise SOTRError(f"cannot listen on {host} port {port}: {reason}; choose others with --host, --port") from None


def most_connections() -> int:
    """`MAX_CONNECTIONS`, or fewer where this process may not open so many files; the limit is raised if it may be.

    Raises:
        SOTRError: not even a few connections are possible.
    """
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + 2 * OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    free = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft - OTHER_FILES
    if free < 8:
        raise SOTRError(
            f"this process may open {soft} files, which is too few for a server; raise it with: ulimit -n 1024"
        )
    return min(MAX_CONNECTIONS, free)


def at_one_time(connections: int) -> int:
    """Connections that asyncio accepts before it looks at the first of them."""
    return max(4, min(128, connections // 4))


def quiet_when_full(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's handler of errors: that there are no descriptors left is one line, and not a traceback each time."""
    if "out of system resource" in str(context.get("message")):
        now = loop.time()
        if now - getattr(loop, "_sotr_warned", -60.0) >= 60.0:
            loop._sotr_warned = now  # type: ignore[attr-defined]
            _LOG.warning("this process may open no further files: connections have to wait; raise it with ulimit -n")
    else:
        loop.default_exception_handler(context)


class Connections:
    """All open connections, oldest first; idle are those on which no request is being read or answered.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: dict[H11Protocol, str] = {}

    def enter(self, connection: H11Protocol, client: str) -> None:
        """Count a connection, and close one if there are too many: an idle one, or else this one."""
        self._open[connection] = client
        idle = [each for each in self._open if _is_idle(each) and each is not connection]
        if len(self._open) > self.most or len(idle) > self.most * IDLE_SHARE:
            self._close(self._of_whoever_has_most(idle) if idle else connection)

    def leave(self, connection: H11Protocol) -> None:
        """Forget a connection."""
        self._open.pop(connection, None)

    def _of_whoever_has_most(self, idle: list[H11Protocol]) -> H11Protocol:
        clients = [self._open[each] for each in idle]
        return max(idle, key=lambda each: clients.count(self._open[each]))  # the first of them is the oldest

    def _close(self, connection: H11Protocol) -> None:
        self.leave(connection)
        connection.transport.abort()


def _is_idle(connection: H11Protocol) -> bool:
    return connection.cycle is None or connection.cycle.response_complete


def guarded_protocol(timeout: float, most: int) -> type[H11Protocol]:
    """uvicorn itself waits without end for a request's head, for a client to take its answer, and for one to finish
    sending what was refused. Here a connection that spends `timeout` or `LINGER` seconds so is cut.

    Args:
        timeout: seconds for each of these.
        most: connections that may be open.
    """
    connections = Connections(most)

    class GuardedProtocol(H11Protocol):
        _cut: asyncio.TimerHandle | None = None
        _taking: asyncio.TimerHandle | None = None

        def pause_writing(self) -> None:
            """The connection is full: from now on the client has a time to take its answer."""
            super().pause_writing()
            if self._taking is None:
                self._taking = self.loop.call_later(timeout, self.transport.abort)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.enter(self, (transport.get_extra_info("peername") or ("",))[0])
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._taken()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            connections.leave(self)
            self._unwatch()
            self._taken()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Like every error, JSON."""
            body = json.dumps({"error": {"code": "bad_http", "message": "this is not an HTTP request"}}).encode()
            head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"Connection: close\r\n\r\n" + body)
            self.transport.close()

        def _taken(self) -> None:
            if self._taking is not None:
                self._taking.cancel()
                self._taking = None

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()
            elif self._cut is None:
                refused = self.cycle is not None and self.cycle.more_body
                self._cut = self.loop.call_later(LINGER if refused else timeout, self.transport.abort)

        def _unwatch(self) -> None:
            if self._cut is not None:
                self._cut.cancel()
                self._cut = None

    return GuardedProtocol

"""Who is let in: as many requests as can be answered in time, and the others are told so at once."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from fastapi import Response
from starlette.types import Receive, Scope, Send

from sotr.serving.monitor import Metrics
from sotr.serving.problems import RequestError
from sotr.serving.settings import Limits

PIECE = 1 << 16
"""Bytes of an answer that are handed to the connection at a time."""

MAX_TILES = 2000
"""Tiles of an image, or images of a request, at most."""


class Answer(Response):
    """An answer that keeps its request's place until the client has taken it, but for the last of its pieces.

    Given away in one piece it would lie in memory for as long as its client does not read it, and others be let in.

    Args:
        body: the answer.
        media_type: its content type.
        place: what ends when it is taken, or the client gone.
        headers: further headers.
    """

    def __init__(
        self, body: bytes, media_type: str, place: AbstractContextManager[object], headers: Mapping[str, str]
    ) -> None:
        super().__init__(body, media_type=media_type, headers=dict(headers))
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; each piece waits until the connection has room."""
        with self._place:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, len(self.body), PIECE):
                piece = bytes(self.body[start : start + PIECE])
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})


class Admission:
    """Counts requests in and out. Under more load than the machine can bear, those let in must still be answered:
    letting in more than fit in the time limit would let all of them wait until none is in time.

    Args:
        limits: what is accepted.
        metrics: where requests under way and refused ones are counted.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._active = 0
        self._more = 0
        self._of: Counter[str] = Counter()
        self._seconds_per_picture = 0.0

    @property
    def expected_wait(self) -> float:
        """Seconds until the requests under way are answered, by the pace of the last ones."""
        return (self._active + self._more) * self._seconds_per_picture

    @property
    def places(self) -> int:
        """Requests that can be under way: where the pace of the last ones wants it, fewer than the limit."""
        in_time = self._limits.timeout / 2 // self._seconds_per_picture + 1 if self._seconds_per_picture else math.inf
        return int(min(self._limits.max_requests, in_time))

    @property
    def full(self) -> bool:
        """Whether a request would be refused now; with none under way it never is."""
        return self._active >= self._limits.max_requests or self.expected_wait > self._limits.timeout / 2

    def note_batch(self, pictures: int, seconds: float) -> None:
        """Learn the pace from a batch that has gone through the network."""
        self._seconds_per_picture += 0.3 * (seconds / pictures - self._seconds_per_picture)

    def refuse_if_full(self, client: str = "") -> None:
        """Tell who comes that there is no place, or none for one more of this address, before the image is read.

        Raises:
            RequestError: the server is full.
        """
        crowded = bool(client) and self._of[client] >= max(1, self.places * 3 // 4)
        if self.full or crowded:
            self._metrics.shed.inc()
            seconds = max(1, math.ceil(min(60.0, self.expected_wait)))
            requests = f"{self._of[client]} requests of this address" if crowded else f"{self._active} requests"
            message = f"the server is busy with {requests}; try again in {seconds} s"
            raise RequestError(503, "busy", message, {"Retry-After": str(seconds)})

    def refuse_if_too_long(self, images: int, code: str, what: str, remedy: str) -> None:
        """Refuse what takes more images, or tiles, than can be done in time, by the pace of the last ones.

        Raises:
            RequestError: of that code, says what would be too many and names the remedy.
        """
        if images > MAX_TILES or images * self._seconds_per_picture > self._limits.timeout:
            raise RequestError(422, code, f"{what}, which is more than can be done in time; {remedy}")

    @contextmanager
    def request(self, client: str = "") -> Iterator[None]:
        """Count a request of an address in while the block runs.

        Raises:
            RequestError: the server is full.
        """
        self.refuse_if_full(client)
        self._active += 1
        self._of[client] += 1
        self._metrics.in_flight.inc()
        try:
            yield
        finally:
            self._active -= 1
            self._of[client] -= 1
            if not self._of[client]:
                del self._of[client]
            self._metrics.in_flight.dec()

    @contextmanager
    def more(self, images: int) -> Iterator[None]:
        """Count a request as so many more while the block runs: its tiles or images take their turns."""
        self._more += images
        try:
            yield
        finally:
            self._more -= images

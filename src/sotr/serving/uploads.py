"""Images on their way to the server: bounded in number, and slow ones make way for others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sotr.serving.monitor import Metrics
from sotr.serving.problems import RequestError
from sotr.serving.settings import Limits

FAIR_SECONDS = 1.0
"""Seconds that an upload has before it may have to make way."""


class Upload:
    """One image on its way."""

    def __init__(self, client: str, scope: asyncio.Timeout) -> None:
        self.client = client
        self.received = 0
        """Bytes that have come."""
        self.cut = False
        """Whether it had to make way."""
        self._scope = scope
        self._begun = asyncio.get_running_loop().time()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return asyncio.get_running_loop().time() - self._begun

    @property
    def rate(self) -> float:
        """Bytes per second, so far."""
        return self.received / max(self.seconds, 1e-3)

    def make_way(self) -> None:
        """End it."""
        self.cut = True
        self._scope.reschedule(asyncio.get_running_loop().time())


class Uploads:
    """All images on their way. Where too many come, from all or from one address, the slowest makes way for the newest:
    slow clients shut out nobody but each other.

    Args:
        limits: what is accepted.
        metrics: where uploads are counted.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._all: set[Upload] = set()

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[Upload]:
        """Read an image inside this block.

        Raises:
            RequestError: there are too many, or this one was slow and had to make way.
        """
        own = [upload for upload in self._all if upload.client == client]
        if len(own) >= self._limits.max_uploads_of_one:
            self._make_room(own)
        elif len(self._all) >= self._limits.max_uploads:
            self._make_room(list(self._all))
        upload = None
        try:
            async with asyncio.timeout(None) as scope:
                upload = Upload(client, scope)
                self._all.add(upload)
                self._metrics.uploads.set(len(self._all))
                yield upload
        except TimeoutError:
            if upload is None or not upload.cut:
                raise
            message = "the image came more slowly than others, and had to make way for them; send it again"
            raise RequestError(408, "too_slow", message) from None
        finally:
            self._all -= {upload}
            self._metrics.uploads.set(len(self._all))

    def _make_room(self, among: list[Upload]) -> None:
        slow = [upload for upload in among if upload.seconds > FAIR_SECONDS and not upload.cut]
        if not slow:
            self._metrics.shed.inc()
            message = f"{len(among)} images are on their way here already; try again in a second"
            raise RequestError(503, "busy", message, {"Retry-After": "1"})
        victim = min(slow, key=lambda upload: upload.rate)
        victim.make_way()
        self._all.discard(victim)

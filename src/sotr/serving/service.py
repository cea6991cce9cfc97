"""A model at work for many clients at once: admission, preparation, batches, answers."""

import asyncio
import gzip
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from sotr.data.decoding_pool import DecodingPool, Job
from sotr.data.sizes import notes_on_size, padded_side
from sotr.errors import SOTRError
from sotr.model.predictor import Predictor
from sotr.results.instances import Instances
from sotr.serving.admission import Admission, Answer
from sotr.serving.answers import MaskKind, to_json, to_png
from sotr.serving.batching import Batcher
from sotr.serving.intake import accepts_gzip, check_settings, read_picture
from sotr.serving.monitor import Metrics
from sotr.serving.problems import RequestError, out_of_memory
from sotr.serving.settings import Limits
from sotr.serving.uploads import Uploads
from sotr.tiling import Grid, check_tiles, open_picture, segment_tiles

R = TypeVar("R")

PICTURES_AT_ONCE = max(1, min(4, os.cpu_count() or 1))
"""Pictures that are decoded, or drawn, at the same time; each may take several times its pixels in memory."""

TILED_AT_ONCE = 2
"""Pictures that are segmented in tiles at the same time; each is held as a whole."""

STUCK_SECONDS = 5.0
"""Seconds after which work that keeps all decoders busy makes the service not ready."""

CLOSE_SECONDS = 5.0
"""Seconds that threads have to end when the service is closed."""

REMEDY = "to find small objects, send it with the setting tile={tile}"
"""What to do about a picture that was shrunk much."""


class Settings(NamedTuple):
    """What a client may choose."""

    score: float
    max_objects: int | None
    format: Literal["json", "overlay"]
    masks: MaskKind
    tile: int | None
    overlap: float


class _BatchKey(NamedTuple):
    """What pictures must share to go through the network together.

    Padding to a common size changes scores slightly, so that an answer would depend on whoever else asks: only
    pictures that are padded to the same size anyway meet.
    """

    padded_size: tuple[int, int]
    score: float
    max_objects: int | None


class Service:
    """Everything behind the routes; made once per application.

    Args:
        segmenter: the model.
        limits: what is accepted.
        batch_size: pictures that go through the network together, at most.
    """

    def __init__(self, segmenter: Predictor[Any], limits: Limits, batch_size: int) -> None:
        self.segmenter = segmenter
        self.limits = limits
        self.metrics = Metrics()
        self.admission = Admission(limits, self.metrics)
        self.uploads = Uploads(limits, self.metrics)
        self.decoders = DecodingPool(PICTURES_AT_ONCE)
        self._watch_stuck_work()
        # A thread waits for each decoder, and others compute.
        self._waiters = ThreadPoolExecutor(PICTURES_AT_ONCE, "decoder")
        self._pool = ThreadPoolExecutor(PICTURES_AT_ONCE, "picture")
        self._tilers = ThreadPoolExecutor(TILED_AT_ONCE, "tiles")
        self._network_thread = ThreadPoolExecutor(1, "network")
        self._network_since: float | None = None
        self._batcher: Batcher[_BatchKey, Any, Instances] = Batcher(self._segment, batch_size, self._network_thread)

    @property
    def stuck(self) -> str:
        """What keeps the service from working, in a line; empty if nothing does."""
        if self.decoders.busy == self.decoders.processes and self.decoders.longest > STUCK_SECONDS:
            return f"images have been decoded for {self.decoders.longest:.0f} s"
        if self.network_seconds > self.limits.timeout:
            return f"the network has been at work on one batch for {self.network_seconds:.0f} s"
        return ""

    @property
    def network_seconds(self) -> float:
        """Seconds for which the network has been at work on its batch."""
        since = self._network_since
        return 0.0 if since is None else time.monotonic() - since

    async def predict(self, request: Request, settings: Settings) -> Answer:
        """The answer for the picture in `request`.

        Raises:
            RequestError: the model does not give what is asked for, too many requests are there already, the picture is
                refused, or time is up.
        """
        try:
            self.segmenter.options_for(settings.score, settings.max_objects)
            if settings.tile is not None:
                check_tiles(settings.tile, settings.overlap)
        except SOTRError as error:
            raise RequestError(422, "invalid_setting", str(error)) from None

        async def work(body: bytes) -> Content:
            image_HW3 = await self._decode(body)
            size = (image_HW3.shape[0], image_HW3.shape[1])
            if settings.tile is None:
                prepared = await self._in_pool(self.segmenter.prepare, image_HW3)
                del image_HW3  # the whole picture is not kept while its network input waits for its turn
                instances = await self._batcher.submit(_key(prepared, settings), prepared)
            else:
                instances = await self._in_tiles(image_HW3, settings)
                del image_HW3
            self.metrics.objects.inc(len(instances))
            notes = [] if settings.tile is not None else notes_on_size(size, self.segmenter.edges, REMEDY)
            if settings.format == "json":
                answer = partial(to_json, instances, self.segmenter.name, settings.masks, notes)
                return await self._in_pool(_packed, answer, "application/json", accepts_gzip(request))
            drawn = await self._in_pool(instances.draw, await self._decode(body))
            return Content(await self._in_pool(to_png, drawn), "image/png", {"X-Note": notes[0]} if notes else {})

        return await self._handle(request, work)

    async def upright(self, request: Request) -> Answer:
        """The picture in `request` as the model sees it, as a PNG file; raises as `predict` does."""

        async def work(body: bytes) -> Content:
            return Content(await self._in_pool(to_png, await self._decode(body)), "image/png")

        return await self._handle(request, work)

    def close(self) -> bool:
        """End the decoders and let the threads end; says whether they did within a few seconds."""
        self.decoders.close()
        pools = (self._waiters, self._pool, self._tilers, self._network_thread)
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)

        def wait() -> None:
            for pool in pools:
                pool.shutdown()

        ending = threading.Thread(target=wait, daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)
        return not ending.is_alive()

    async def _handle(self, request: Request, work: Callable[[bytes], Awaitable["Content"]]) -> Answer:
        """Read a request's picture, admit it and work on it, unless time is up or the client has gone."""
        check_settings(request)
        client = request.client.host if request.client else ""
        self.admission.refuse_if_full()
        body = None
        with ExitStack() as place:
            try:
                async with asyncio.timeout(self.limits.timeout):
                    async with self.uploads.place(client) as upload:
                        body = await read_picture(request, self.limits, upload)
                    # Not before it has come as a whole: slow clients must not keep the others out.
                    place.enter_context(self.admission.request())
                    content = await _unless_gone(request, work(body))
            except TimeoutError:
                limit = f"within the {self.limits.timeout:g} s that this server allows; send a smaller one"
                if body is None:
                    raise RequestError(408, "too_slow", f"the picture did not come {limit}") from None
                raise RequestError(504, "timeout", f"the picture could not be handled {limit}") from None
            return Answer(content.body, content.media_type, place.pop_all(), content.headers)

    async def _in_pool(self, function: Callable[..., R], *arguments: object) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def _decode(self, body: bytes) -> NDArray[np.uint8]:
        """The picture in a file. Its process is ended when nobody waits for it any more.

        Raises:
            RequestError: it cannot be had.
        """
        job = Job()
        load = partial(
            self.decoders.load,
            body,
            max_pixels=self.limits.max_pixels,
            seconds=self.limits.timeout,
            processor_seconds=self.limits.decode_seconds,
            job=job,
        )
        try:
            return await asyncio.get_running_loop().run_in_executor(self._waiters, load)
        except SOTRError as error:
            raise RequestError.of_picture(error) from None
        except asyncio.CancelledError:
            # Nearly all are done by then, and a new process takes half a second.
            asyncio.get_running_loop().call_later(1.0, job.give_up)
            raise

    async def _in_tiles(self, image_HW3: NDArray[np.uint8], settings: Settings) -> Instances:
        """The objects of a picture in tiles, which take their turns with other clients' pictures."""
        assert settings.tile is not None
        tiles = len(Grid(image_HW3.shape[0], image_HW3.shape[1], settings.tile, settings.overlap).boxes_T4)
        self.admission.refuse_if_too_long(tiles)
        loop, gone = asyncio.get_running_loop(), threading.Event()

        def predict(images: Sequence[NDArray[np.uint8]]) -> list[Instances]:
            if gone.is_set():
                raise _GoneError
            prepared = [self.segmenter.prepare(image) for image in images]
            waiting = [asyncio.run_coroutine_threadsafe(submit(each), loop) for each in prepared]
            return [each.result(self.limits.timeout) for each in waiting]

        async def submit(prepared: Any) -> Instances:
            return await self._batcher.submit(_key(prepared, settings), prepared)

        def segment() -> Instances:
            with open_picture(image_HW3) as picture:
                return segment_tiles(
                    predict,
                    picture,
                    cast(int, settings.tile),
                    settings.overlap,
                    class_names=self.segmenter.class_names,
                    category_ids=self.segmenter.category_ids,
                )

        try:
            with self.admission.more(tiles - 1):
                return await loop.run_in_executor(self._tilers, segment)
        finally:
            gone.set()

    def _segment(self, key: _BatchKey, batch: Sequence[Any]) -> list[Instances]:
        started = self._network_since = time.monotonic()
        try:
            instances = self.segmenter.segment(batch, score=key.score, max_objects=key.max_objects)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or "memory" in str(error).lower():
                raise out_of_memory() from None
            raise
        finally:
            self._network_since = None
        self.admission.note_batch(len(batch), time.monotonic() - started)
        self.metrics.batches.observe(len(batch))
        return instances

    def _watch_stuck_work(self) -> None:
        self.metrics.decoding.set_function(lambda: self.decoders.busy)
        self.metrics.decoding_seconds.set_function(lambda: self.decoders.longest)
        self.metrics.decoders_ended.set_function(lambda: self.decoders.ended)
        self.metrics.network_seconds.set_function(lambda: self.network_seconds)


class _GoneError(Exception):
    """Nobody waits for the rest of the tiles."""


class Content(NamedTuple):
    """What an answer holds."""

    body: bytes
    media_type: str
    headers: Mapping[str, str] = MappingProxyType({})


def _packed(make: Callable[[], bytes], media_type: str, gzipped: bool) -> Content:
    """What `make` gives, compressed if that is asked for: here, in a thread, and not where all requests are handled."""
    body = make()
    if gzipped and len(body) > 1000:
        packed = gzip.compress(body, 5)
        return Content(packed, media_type, {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})
    return Content(body, media_type, {"Vary": "Accept-Encoding"})


def _key(prepared: Any, settings: "Settings") -> _BatchKey:
    return _BatchKey(_padded_size(prepared), settings.score, settings.max_objects)


async def _unless_gone(request: Request, work: Awaitable[R]) -> R:
    """The result of `work`, which is given up when the client hangs up: nobody would read the answer."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestError(499, "client_gone", "the client has hung up")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _padded_size(prepared: Any) -> tuple[int, int]:
    height, width = map(padded_side, prepared.input_3hw.shape[1:])
    return height, width

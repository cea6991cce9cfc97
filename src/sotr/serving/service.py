"""A model at work for many clients at once: admission, preparation, batches, answers."""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from sotr.data.decoding_pool import DecodingPool, Job
from sotr.data.sizes import notes_on_size, padded_side
from sotr.errors import SOTRError
from sotr.model.predictor import Predictor
from sotr.results.instances import Instances
from sotr.serving.admission import Admission, Answer
from sotr.serving.answers import Format, MaskKind, to_geojson, to_json, to_label_image, to_png
from sotr.serving.batching import Batcher
from sotr.serving.exchange import Content, accepts_gzip, accepts_tiff, client_of, compact, packed, unless_gone
from sotr.serving.intake import Sent, check_settings, read_images, read_picture
from sotr.serving.monitor import Metrics
from sotr.serving.problems import RequestError, out_of_memory
from sotr.serving.settings import Limits
from sotr.serving.turns import Turns
from sotr.serving.uploads import Upload, Uploads
from sotr.tiling import Grid, check_tiles, open_picture, segment_tiles

R = TypeVar("R")
T = TypeVar("T")

PICTURES_AT_ONCE = max(1, min(4, os.cpu_count() or 1))
"""Images that are decoded, or drawn, at the same time; each may take several times its pixels in memory."""

DECODERS = PICTURES_AT_ONCE + 1
"""Processes that decode. One client has at most `PICTURES_AT_ONCE` of them: no other's image waits for its."""

FETCHES_AT_ONCE = 4
"""Images that are fetched from Label Studio at the same time."""

TILED_AT_ONCE = 2
"""Images that are segmented in tiles at the same time, of different clients; each is held as a whole."""

STUCK_SECONDS = 5.0
"""Seconds after which work that keeps all decoders busy makes the service not ready."""

CLOSE_SECONDS = 5.0
"""Seconds that threads have to end when the service is closed."""

REMEDY = "to find small objects, send it with the setting tile={tile}"
"""What to do about an image that was shrunk much."""


class Settings(NamedTuple):
    """What a client may choose."""

    score: float
    max_objects: int | None
    format: Format
    masks: MaskKind
    tile: int | None
    overlap: float


class Found(NamedTuple):
    """What came of an image."""

    instances: Instances
    notes: Sequence[str]
    """What to know about it, in lines."""


class _BatchKey(NamedTuple):
    """What images must share to go through the network together.

    Padding to a common size changes scores slightly, so that an answer would depend on whoever else asks: only
    images that are padded to the same size anyway meet.
    """

    padded_size: tuple[int, int]
    score: float
    max_objects: int | None


class Service:
    """Everything behind the routes; made once per application.

    Args:
        segmenter: the model.
        limits: what is accepted.
        batch_size: images that go through the network together, at most.
    """

    def __init__(self, segmenter: Predictor[Any], limits: Limits, batch_size: int) -> None:
        self.segmenter = segmenter
        self.limits = limits
        self.metrics = Metrics()
        self.admission = Admission(limits, self.metrics)
        self.uploads = Uploads(limits, self.metrics)
        self.decoders = DecodingPool(DECODERS)
        self._decoder_turns = Turns(DECODERS, PICTURES_AT_ONCE)
        self._tile_turns = Turns(TILED_AT_ONCE, TILED_AT_ONCE - 1)
        self._list_turns = Turns(max(2, batch_size) + 1, max(2, batch_size))
        self._watch_stuck_work()
        # A thread waits for each decoder, and others compute.
        self._waiters = ThreadPoolExecutor(DECODERS, "decoder")
        self._pool = ThreadPoolExecutor(PICTURES_AT_ONCE, "picture")
        self._tilers = ThreadPoolExecutor(TILED_AT_ONCE, "tiles")
        self._fetchers = ThreadPoolExecutor(FETCHES_AT_ONCE, "fetch")
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
        """The answer for the image, or the images, in `request`.

        Raises:
            RequestError: the model does not give what is asked for, too many requests are there already, the image is
                refused, or time is up.
        """
        self.check(settings)
        client, gzipped, tiff = client_of(request), accepts_gzip(request), accepts_tiff(request)

        async def work(sent: tuple[list[Sent], bool]) -> Content:
            images, several = sent
            if several:
                return await self._answer_list(images, settings, client, gzipped)
            (image,) = images
            found = await self.find(image.body, settings, client)
            headers = {"X-Note": found.notes[0]} if found.notes else {}
            if settings.format == "overlay":
                drawn = await self.in_pool(found.instances.draw, await self._decode(image.body, client))
                return Content(await self.in_pool(to_png, drawn), "image/png", headers)
            if settings.format == "labels":
                return Content(*await self.in_pool(to_label_image, found.instances, tiff), headers)
            if settings.format == "geojson":
                make = partial(to_geojson, found.instances)
                return await self.in_pool(packed, make, "application/geo+json", gzipped, headers)
            head = {"model": self.segmenter.name}
            make = partial(to_json, found.instances, head, settings.masks, found.notes)
            return await self.in_pool(packed, make, "application/json", gzipped)

        return await self.handle(request, read_images, work)

    def check(self, settings: Settings) -> None:
        """Refuse settings that the model does not have.

        Raises:
            RequestError: names the setting.
        """
        try:
            self.segmenter.options_for(settings.score, settings.max_objects)
            if settings.tile is not None:
                check_tiles(settings.tile, settings.overlap)
        except SOTRError as error:
            raise RequestError(422, "invalid_setting", str(error)) from None

    async def find(self, body: bytes, settings: Settings, client: str) -> Found:
        """The objects of the image in a file.

        Raises:
            RequestError: the image is refused.
        """
        image_HW3 = await self._decode(body, client)
        size = (image_HW3.shape[0], image_HW3.shape[1])
        if settings.tile is None:
            prepared = await self.in_pool(self.segmenter.prepare, image_HW3)
            del image_HW3  # the whole image is not kept while its network input waits for its turn
            instances = await self._batcher.submit(_key(prepared, settings), prepared)
            notes = notes_on_size(size, self.segmenter.edges, self.segmenter.training_size, REMEDY)
        else:
            instances, notes = await self._in_tiles(image_HW3, settings, client), []
        self.metrics.objects.inc(len(instances))
        return Found(instances, notes)

    async def find_each(
        self,
        client: str,
        images: Sequence[T],
        find: Callable[[T], Awaitable[R]],
        failed: Callable[[T, RequestError], R],
    ) -> list[R]:
        """What `find` makes of each of a request's images, or `failed` of why it cannot; few of all lists at a time.

        Raises:
            RequestError: they are more than can be done in time.
        """
        what, remedy = f"there are {len(images)} images in the request", "send fewer at a time"
        self.admission.refuse_if_too_long(len(images), "too_many_images", what, remedy)

        async def one(image: T) -> R:
            await self._list_turns.take(client)
            try:
                return await find(image)
            except RequestError as error:
                return failed(image, error)
            except MemoryError:
                return failed(image, out_of_memory())
            finally:
                self._list_turns.give_back(client)

        with self.admission.more(len(images) - 1):
            return list(await asyncio.gather(*map(one, images)))

    async def _answer_list(self, images: Sequence[Sent], settings: Settings, client: str, gzipped: bool) -> Content:
        """One answer for several images, in their order; an image that cannot be used has its error in its place."""
        if settings.format != "json":
            message = f"format={settings.format} is for one image at a time; send one, or take format=json"
            raise RequestError(422, "invalid_setting", message)

        async def find(image: Sent) -> bytes:
            if image.problem is not None:
                raise image.problem
            found = await self.find(image.body, settings, client)
            return await self.in_pool(to_json, found.instances, {"name": image.name}, settings.masks, found.notes)

        def failed(image: Sent, error: RequestError) -> bytes:
            return compact({"name": image.name, "error": {"code": error.code, "message": str(error)}})

        results = await self.find_each(client, images, find, failed)
        head = compact({"model": self.segmenter.name})[:-1] + b',"results":['
        make = partial(b"".join, (head, b",".join(results), b"]}"))
        return await self.in_pool(packed, make, "application/json", gzipped)

    async def upright(self, request: Request) -> Answer:
        """The image in `request` as the model sees it, as a PNG file; raises as `predict` does."""

        async def work(body: bytes) -> Content:
            return Content(await self.in_pool(to_png, await self._decode(body, client_of(request))), "image/png")

        return await self.handle(request, read_picture, work)

    def close(self) -> bool:
        """End the decoders and let the threads end; says whether they did within a few seconds."""
        self.decoders.close()
        pools = (self._waiters, self._pool, self._tilers, self._fetchers, self._network_thread)
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)

        def wait() -> None:
            for pool in pools:
                pool.shutdown()

        ending = threading.Thread(target=wait, daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)
        return not ending.is_alive()

    async def handle(
        self,
        request: Request,
        read: Callable[[Request, Limits, Upload], Awaitable[T]],
        work: Callable[[T], Awaitable[Content]],
    ) -> Answer:
        """Read what a request carries, admit it and work on it, unless time is up or the client has gone.

        Raises:
            RequestError: what it is answered instead.
        """
        check_settings(request)
        client = client_of(request)
        self.admission.refuse_if_full(client)
        body = None
        with ExitStack() as place:
            try:
                async with asyncio.timeout(self.limits.timeout):
                    async with self.uploads.place(client) as upload:
                        body = await read(request, self.limits, upload)
                    # Not before it has come as a whole: slow clients must not keep the others out.
                    place.enter_context(self.admission.request(client))
                    content = await unless_gone(request, work(body))
            except TimeoutError:
                limit = f"within the {self.limits.timeout:g} s that this server allows; send a smaller one"
                if body is None:
                    raise RequestError(408, "too_slow", f"the image did not come {limit}") from None
                raise RequestError(504, "timeout", f"the image could not be handled {limit}") from None
            return Answer(content.body, content.media_type, place.pop_all(), content.headers)

    async def fetch(self, function: Callable[..., R], *arguments: object) -> R:
        """What a function returns that waits for another server."""
        return await asyncio.get_running_loop().run_in_executor(self._fetchers, function, *arguments)

    async def in_pool(self, function: Callable[..., R], *arguments: object) -> R:
        """What a function returns that computes."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def _decode(self, body: bytes, client: str) -> NDArray[np.uint8]:
        """The image in a file that a client sent. Its process is ended when nobody waits for it any more.

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
            return await self._decoder_turns.run(client, self._waiters, load)
        except SOTRError as error:
            raise RequestError.of_picture(error) from None
        except asyncio.CancelledError:
            # Nearly all are done by then, and a new process takes half a second.
            asyncio.get_running_loop().call_later(1.0, job.give_up)
            raise

    async def _in_tiles(self, image_HW3: NDArray[np.uint8], settings: Settings, client: str) -> Instances:
        """The objects of an image in tiles, which take their turns with other clients' images."""
        assert settings.tile is not None
        tiles = len(Grid(image_HW3.shape[0], image_HW3.shape[1], settings.tile, settings.overlap).boxes_T4)
        remedy = "choose a larger tile, or send parts of the image"
        what = f"the image would be cut into {tiles} tiles"
        self.admission.refuse_if_too_long(tiles, "too_many_tiles", what, remedy)
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
                return await self._tile_turns.run(client, self._tilers, segment)
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


def _key(prepared: Any, settings: Settings) -> _BatchKey:
    return _BatchKey(_padded_size(prepared), settings.score, settings.max_objects)


def _padded_size(prepared: Any) -> tuple[int, int]:
    height, width = map(padded_side, prepared.input_3hw.shape[1:])
    return height, width

"""A model at work for many clients at once: admission, preparation, batches, answers."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from sotr.data.images import load_image
from sotr.data.sizes import padded_side
from sotr.errors import SOTRError
from sotr.model.predictor import Predictor
from sotr.results.instances import Instances
from sotr.serving.admission import Admission, Answer
from sotr.serving.answers import MaskKind, to_json, to_png
from sotr.serving.batching import Batcher
from sotr.serving.intake import Limits, read_picture
from sotr.serving.monitor import Metrics
from sotr.serving.problems import RequestError

R = TypeVar("R")

PICTURES_AT_ONCE = max(1, min(4, os.cpu_count() or 1))
"""Pictures that are decoded, or drawn, at the same time; each may take several times its pixels in memory."""


class Settings(NamedTuple):
    """What a client may choose."""

    score: float
    max_objects: int | None
    format: Literal["json", "overlay"]
    masks: MaskKind


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
        self._pool = ThreadPoolExecutor(PICTURES_AT_ONCE, "picture")
        self._network_thread = ThreadPoolExecutor(1, "network")
        self._batcher: Batcher[_BatchKey, Any, Instances] = Batcher(self._segment, batch_size, self._network_thread)

    async def predict(self, request: Request, settings: Settings) -> Answer:
        """The answer for the picture in `request`.

        Raises:
            RequestError: the model does not give what is asked for, too many requests are there already, the picture is
                refused, or time is up.
        """
        try:
            self.segmenter.options_for(settings.score, settings.max_objects)
        except SOTRError as error:
            raise RequestError(422, "invalid_setting", str(error)) from None

        async def work(body: bytes) -> bytes:
            prepared = await self._in_pool(self._prepare, body)
            key = _BatchKey(_padded_size(prepared), settings.score, settings.max_objects)
            instances = await self._batcher.submit(key, prepared)
            self.metrics.objects.inc(len(instances))
            if settings.format == "json":
                return await self._in_pool(to_json, instances, self.segmenter.name, settings.masks)
            return await self._in_pool(self._overlay, body, instances)

        return await self._handle(request, work, "application/json" if settings.format == "json" else "image/png")

    async def upright(self, request: Request) -> Answer:
        """The picture in `request` as the model sees it, as a PNG file; raises as `predict` does."""
        return await self._handle(request, lambda body: self._in_pool(lambda: to_png(self._load(body))), "image/png")

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._network_thread.shutdown(wait=False, cancel_futures=True)

    async def _handle(self, request: Request, work: Callable[[bytes], Awaitable[bytes]], media_type: str) -> Answer:
        """Admit a request, read its picture and work on that, unless time is up or the client has gone."""
        with ExitStack() as place:
            place.enter_context(self.admission.request())
            body = None
            try:
                async with asyncio.timeout(self.limits.timeout):
                    body = await read_picture(request, self.limits)
                    answer = await _unless_gone(request, work(body))
            except TimeoutError:
                limit = f"within the {self.limits.timeout:g} s that this server allows; send a smaller one"
                if body is None:
                    raise RequestError(408, "too_slow", f"the picture did not come {limit}") from None
                raise RequestError(504, "timeout", f"the picture could not be handled {limit}") from None
            return Answer(answer, media_type, place.pop_all())

    async def _in_pool(self, function: Callable[..., R], *arguments: object) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _prepare(self, body: bytes) -> Any:
        try:
            return self.segmenter.prepare(body, max_pixels=self.limits.max_pixels)
        except SOTRError as error:
            raise RequestError.of_picture(error) from None

    def _load(self, body: bytes) -> NDArray[np.uint8]:
        try:
            return load_image(body, max_pixels=self.limits.max_pixels)
        except SOTRError as error:
            raise RequestError.of_picture(error) from None

    def _overlay(self, body: bytes, instances: Instances) -> bytes:
        # Decoded anew: the whole picture is not kept while its network input waits for its turn.
        return to_png(instances.draw(self._load(body)))

    def _segment(self, key: _BatchKey, batch: Sequence[Any]) -> list[Instances]:
        started = time.perf_counter()
        instances = self.segmenter.segment(batch, score=key.score, max_objects=key.max_objects)
        self.admission.note_batch(len(batch), time.perf_counter() - started)
        self.metrics.batches.observe(len(batch))
        return instances


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

"""Label Studio's ML backend: it asks for predictions of its tasks, whose images are fetched from it."""

import base64
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib import request as web
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from sotr.data.sources import http_opener
from sotr.errors import SOTRError
from sotr.results.label_studio import Control, control_of, prediction
from sotr.serving.exchange import Content, accepts_gzip, client_of, compact, packed
from sotr.serving.intake import PAUSE, parse_json, read_body
from sotr.serving.problems import RequestError
from sotr.serving.service import Service, Settings
from sotr.serving.settings import Limits
from sotr.serving.uploads import Upload
from sotr.tiling import OVERLAP

USUAL_ADDRESS = "http://localhost:8080"
"""Where Label Studio listens where it is told nothing else."""

MAX_TASKS_BYTES = 8_000_000
"""Bytes of a request with tasks: their annotations come along."""

TASKS_SIGNS = 1_000_000
"""Commas, brackets and quotation marks in it."""

HOW_TO = "this address is for Label Studio: add it there as a model's URL"

_LOG = logging.getLogger("sotr.serving")


@dataclass
class LabelStudio:
    """Which servers' images are fetched.

    Raises:
        SOTRError: an address is none.
    """

    addresses: tuple[str, ...]
    """Label Studio's, and those of other servers whose images its tasks name, such as https://images.example."""
    token: str = ""
    """What Label Studio wants to see; sent to it alone. Without one its own, which it tells when it is connected."""

    def __post_init__(self) -> None:
        self.addresses = tuple(address.strip().rstrip("/") for address in self.addresses if address.strip())
        for address in self.addresses or ("",):
            if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).netloc:
                raise SOTRError(f"label_studio_url has {address!r}; give addresses such as {USUAL_ADDRESS}")

    @classmethod
    def of(cls, addresses: str | None, environment: Mapping[str, str]) -> "LabelStudio":
        """What `sotr serve` is told, or else the environment in Label Studio's own variables."""
        chosen = addresses or environment.get("LABEL_STUDIO_URL") or USUAL_ADDRESS
        return cls(tuple(chosen.split(",")), environment.get("LABEL_STUDIO_API_KEY", ""))

    def address_of(self, image: str, task: object) -> str:
        """Where the image of a task is fetched.

        Raises:
            RequestError: from a server that is not named.
        """
        own = self.addresses[0]
        if image.startswith(("s3:", "gs:", "azure-blob:")):
            return (
                f"{own}/tasks/{quote(str(task))}/presign/?fileuri={base64.urlsafe_b64encode(image.encode()).decode()}"
            )
        address = own + image if image.startswith("/") else image
        if not any(_origin(address) == _origin(allowed) for allowed in self.addresses):
            message = f"images are not fetched from {address[:80]!r}; whoever runs this server adds --label-studio-url"
            raise RequestError(422, "foreign_image", message)
        return address

    def fetch(self, image: str, task: object, max_bytes: int, seconds: float) -> bytes:
        """The file of a task's image.

        Raises:
            RequestError: it cannot be had.
        """
        if image.startswith("data:"):
            try:
                return base64.b64decode(image.partition(",")[2], validate=True)
            except ValueError:
                raise RequestError(422, "unreadable_picture", "the task's image is no base64") from None
        address, deadline = self.address_of(image, task), time.monotonic() + seconds
        asked = web.Request(address.replace(" ", "%20"))
        if self.token and _origin(address) == _origin(self.addresses[0]):
            kind = "Bearer" if self.token.count(".") == 2 else "Token"
            asked.add_unredirected_header("Authorization", f"{kind} {self.token}")  # not to the store it leads to
        body = bytearray()
        try:
            with http_opener().open(asked, timeout=min(PAUSE, seconds)) as answer:
                while piece := answer.read(1 << 16):
                    body += piece
                    if len(body) > max_bytes:
                        message = "the task's image is larger than this server's limit"
                        raise RequestError(413, "body_too_large", message)
                    if time.monotonic() > deadline:
                        raise TimeoutError("timed out")
        except HTTPError as error:
            help_ = "; set LABEL_STUDIO_API_KEY" if error.code in (401, 403) else ""
            raise RequestError(422, "no_picture", f"{address[:80]} answers {error.code}{help_}") from None
        except (OSError, ValueError) as error:  # the latter of addresses that are none
            reason = getattr(error, "reason", error)
            raise RequestError(422, "no_picture", f"{address[:80]} cannot be fetched: {reason}") from None
        return bytes(body)


def add_label_studio(service: Service, studio: LabelStudio, score: float) -> APIRouter:
    """The routes of an ML backend, below `/label-studio`.

    Args:
        score: objects below are left out.
    """
    router = APIRouter(prefix="/label-studio", include_in_schema=False)
    segmenter = service.segmenter
    version = f"{segmenter.name}-{segmenter.digest()[:8]}"
    settings = Settings(score, None, "json", "rle", None, OVERLAP)

    async def read(request: Request, limits: Limits, upload: Upload) -> dict[str, Any]:
        text = await read_body(request, upload, min(MAX_TASKS_BYTES, limits.max_bytes))
        return parse_json(text, TASKS_SIGNS, HOW_TO)

    @router.get("")
    @router.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "UP", "model_class": "SOTR"})

    @router.post("/setup")
    async def setup(request: Request) -> Response:
        async def work(content: dict[str, Any]) -> Content:
            _control(content.get("schema"), segmenter.class_names)
            if not studio.token and isinstance(content.get("access_token"), str):
                studio.token = content["access_token"]
            return Content(compact({"model_version": version}), "application/json")

        return await service.handle(request, read, work)

    @router.post("/predict")
    async def predict(request: Request) -> Response:
        client, gzipped = client_of(request), accepts_gzip(request)

        async def work(content: dict[str, Any]) -> Content:
            tasks = content.get("tasks")
            if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
                raise RequestError(400, "no_tasks", f"'tasks' must be a list of tasks; {HOW_TO}")
            control = _control(content.get("label_config"), segmenter.class_names)

            async def find(task: dict[str, Any]) -> dict[str, Any]:
                image = task["data"].get(control.key) if isinstance(task.get("data"), dict) else None
                if not isinstance(image, str):
                    raise RequestError(422, "no_picture", f"the task's data have no text {control.key!r}")
                limits = service.limits
                body = await service.fetch(studio.fetch, image, task.get("id"), limits.max_bytes, limits.timeout)
                found = await service.find(body, settings, client)
                return await service.in_pool(prediction, found.instances, control, version)

            def failed(task: dict[str, Any], error: RequestError) -> dict[str, Any]:
                _LOG.warning("Label Studio's task %.40r: %s", task.get("id"), error)
                # Label Studio takes as many results as it sent tasks.
                return {"model_version": version, "score": 0.0, "result": [], "error": str(error)}

            results: Sequence[dict[str, Any]] = await service.find_each(client, tasks, find, failed) if tasks else []
            answer = {"results": results, "model_version": version}
            return await service.in_pool(packed, lambda: compact(answer), "application/json", gzipped)

        return await service.handle(request, read, work)

    return router


def _control(configuration: object, class_names: tuple[str, ...]) -> Control:
    if not isinstance(configuration, str):
        raise RequestError(400, "no_labels", f"there is no labeling configuration; {HOW_TO}")
    try:
        return control_of(configuration, class_names)
    except SOTRError as error:
        raise RequestError(422, "no_labels", str(error)) from None


def _origin(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    return parts.scheme.lower(), parts.netloc.lower()

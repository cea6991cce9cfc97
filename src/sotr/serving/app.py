"""The service's addresses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from sotr.data.sizes import good_tile
from sotr.model.predictor import Predictor
from sotr.results.drawing import COLORS
from sotr.serving.answers import Format, MaskKind
from sotr.serving.door import Door
from sotr.serving.interface import (
    ACCESS_PROBLEMS,
    BUSY,
    DESCRIPTION,
    IMAGE_BODY,
    IMAGES_BODY,
    PREDICTED,
    PROBLEMS,
    UPRIGHT,
    ModelDescription,
    Status,
)
from sotr.serving.label_studio import LabelStudio, add_label_studio
from sotr.serving.monitor import Monitor
from sotr.serving.problems import RequestError, add_problem_handlers
from sotr.serving.protocol import quiet_when_full
from sotr.serving.service import Service, Settings
from sotr.serving.settings import Access, Limits
from sotr.tiling import MIN_TILE, OVERLAP

PAGE = Path(__file__).parent / "page"

MAX_OBJECTS = 1000
"""Objects that a client may ask for: memory grows with their number."""


class PageFiles(StaticFiles):
    """The page's files; browsers ask each time whether they have changed, and get them only then."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """See `StaticFiles`."""
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(
    segmenter: Predictor[Any],
    limits: Limits,
    batch_size: int,
    sample: bytes,
    access_log: bool,
    access: Access = Access(),  # noqa: B008  # it is frozen
    studio: LabelStudio | None = None,
) -> FastAPI:
    """The ASGI application.

    Args:
        segmenter: the model.
        limits: what is accepted.
        batch_size: images that go through the network together, at most.
        sample: an image file that the page offers to try.
        access_log: write a line of JSON per request to standard error.
        access: who may ask.
        studio: a Label Studio to which the model is a backend.
    """
    service = Service(segmenter, limits, batch_size)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(quiet_when_full)
        service.decoders.start()
        yield
        service.close()

    app: FastAPI = FastAPIOffline(
        lifespan=lifespan,
        redoc_url=None,
        title=f"SOTR: {segmenter.name}",
        description=DESCRIPTION,
        version=version("sotr"),
        favicon_url="icon.svg",
        swagger_ui_parameters={"validatorUrl": None, "defaultModelsExpandDepth": 0},
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service
    files = frozenset(path.name for path in PAGE.iterdir() if path.is_file())
    app.add_middleware(Door, access=access, files=files)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type"],
            expose_headers=["Retry-After", "X-Note"],
        )
    app.add_middleware(Monitor, metrics=service.metrics, access_log=access_log)
    add_problem_handlers(app)
    # An exported file gives no objects below the score that it was exported for.
    usual_score = segmenter.options_for(None, None).score_threshold
    _add_picture_routes(app, service, usual_score)
    if studio is not None:
        app.include_router(add_label_studio(service, studio, usual_score))
    _add_information_routes(app, service, sample)
    _add_probes(app, service)
    _add_page(app, files)
    return app


def _add_page(app: FastAPI, files: frozenset[str]) -> None:
    """A route for each file: a mount would take every other address, and answer 404 where the method is wrong."""
    page = PageFiles(directory=PAGE)
    for name in files:

        async def file(request: Request, name: str = name) -> Response:
            return await page.get_response(name, request.scope)

        for path in {f"/{name}", "/" if name == "index.html" else f"/{name}"}:
            app.add_route(path, file, methods=["GET"], include_in_schema=False)


def _add_picture_routes(app: FastAPI, service: Service, usual_score: float) -> None:
    @app.post(
        "/predict",
        summary="Segment an image",
        openapi_extra=IMAGES_BODY,
        responses={200: PREDICTED, **PROBLEMS},
    )
    async def predict(
        request: Request,
        score: Annotated[float, Query(ge=0, le=1, description="leave out objects below this score")] = usual_score,
        max_objects: Annotated[
            int | None, Query(ge=1, le=MAX_OBJECTS, description="at most so many objects; default: the model's")
        ] = None,
        format: Annotated[
            Format,
            Query(
                description="the objects as JSON or GeoJSON; the image with them drawn on it, as PNG; or a label "
                "image (0, or an object's position plus 1) as 16-bit PNG, or TIFF if Accept asks for image/tiff"
            ),
        ] = "json",
        masks: Annotated[
            MaskKind,
            Query(description="in JSON: COCO RLE; COCO polygons (outlines, with cuts to holes); or a PNG per object"),
        ] = "rle",
        tile: Annotated[
            int | None,
            Query(
                ge=MIN_TILE,
                description="cut the image into overlapping tiles of so many pixels a side, and merge their objects: "
                "for large images of small objects; max_objects is then the limit of a tile",
            ),
        ] = None,
        overlap: Annotated[
            float, Query(gt=0, le=0.5, description="part of a tile's side that it shares with the next one")
        ] = OVERLAP,
    ) -> Response:
        """Finds the objects in one image, or in each of several.

        Formats: PNG, JPEG, TIFF, WebP, GIF (first frame), BMP and others."""
        return await service.predict(request, Settings(score, max_objects, format, masks, tile, overlap))

    @app.post(
        "/upright",
        summary="The image as the model sees it",
        openapi_extra=IMAGE_BODY,
        responses={200: UPRIGHT, **PROBLEMS},
        response_class=Response,
    )
    async def upright(request: Request) -> Response:
        """Turned upright, 8 bit RGB, as PNG: what masks fit on. For kinds that browsers do not show, such as TIFF."""
        return await service.upright(request)


def _add_information_routes(app: FastAPI, service: Service, sample: bytes) -> None:
    segmenter, limits = service.segmenter, service.limits

    @app.head("/model", include_in_schema=False)
    @app.get("/model", summary="The model and the limits", responses=ACCESS_PROBLEMS)
    async def model() -> ModelDescription:
        (shortest, longest), decoding = segmenter.edges, segmenter.decode_options
        classes = zip(segmenter.category_ids, segmenter.class_names, strict=True)
        description = {
            "name": segmenter.name,
            "version": version("sotr"),
            "device": str(segmenter.device),
            "input": {
                "shortest_edge": shortest,
                "longest_edge": longest,
                "tile": max(MIN_TILE, good_tile(segmenter.edges, segmenter.training_size)),
            },
            "classes": [{"id": number, "name": name} for number, name in classes],
            "colors": ["#{:02x}{:02x}{:02x}".format(*color) for color in COLORS],
            "lowest_score": decoding.score_threshold,
            "usual_score": segmenter.options_for(None, None).score_threshold,
            "max_objects": min(decoding.max_objects, MAX_OBJECTS),
            "limits": {
                "max_bytes": limits.max_bytes,
                "max_pixels": limits.max_pixels,
                "max_requests": limits.max_requests,
                "timeout": limits.timeout,
            },
        }
        return ModelDescription.model_validate(description)

    @app.head("/sample", include_in_schema=False)
    @app.get("/sample", summary="An image to try", response_class=Response, responses={200: UPRIGHT, **ACCESS_PROBLEMS})
    async def sample_picture() -> Response:
        return Response(sample, media_type="image/png")


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Whether the server lives")
    async def healthz() -> Status:
        return Status(status="ok")

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", summary="Whether the server would take an image now", responses={503: BUSY})
    async def readyz() -> Status:
        if service.stuck:
            raise RequestError(503, "stuck", f"{service.stuck}; this ends by itself", {"Retry-After": "5"})
        if service.admission.full:
            raise RequestError(503, "busy", "as many requests are under way as are accepted", {"Retry-After": "1"})
        return Status(status="ready")

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", summary="Prometheus metrics", response_class=Response, responses=ACCESS_PROBLEMS)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

"""The service's addresses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.staticfiles import StaticFiles

from sotr.model.predictor import Predictor
from sotr.results.drawing import COLORS
from sotr.serving.answers import MaskKind, Prediction
from sotr.serving.intake import FIELD, Limits
from sotr.serving.monitor import Monitor
from sotr.serving.problems import Problem, add_problem_handlers, problem_response
from sotr.serving.service import Service, Settings

PAGE = Path(__file__).parent / "page"

MAX_OBJECTS = 1000
"""Objects that a client may ask for: memory grows with their number."""

USUAL_SCORE = 0.3
"""Objects below this score are left out where a client asks for nothing else."""

DESCRIPTION = """
Instance segmentation: send a picture, get the objects in it with their masks. Coordinates are pixels of the upright
picture (EXIF rotation applied), origin at the top left, half-open.

Every error is JSON, `{"error": {"code": ..., "message": ...}}`. When the server is busy it answers 503 at once;
`Retry-After` says in how many seconds to try again.
"""

_FILE = {"type": "string", "format": "binary"}
_PICTURE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"One picture: as multipart field `{FIELD}`, or as the body itself.",
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: _FILE}}},
            "application/octet-stream": {"schema": _FILE},
            "image/*": {"schema": _FILE},
        },
    }
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "no picture in the request"},
    408: {"model": Problem, "description": "the picture came too slowly"},
    413: {"model": Problem, "description": "the picture has too many bytes or pixels"},
    415: {"model": Problem, "description": "neither a form nor a picture"},
    422: {"model": Problem, "description": "no readable picture, or a setting out of range"},
    503: {"model": Problem, "description": "too many requests; see the header Retry-After"},
    504: {"model": Problem, "description": "time is up"},
}


def create_app(segmenter: Predictor[Any], limits: Limits, batch_size: int, sample: bytes, access_log: bool) -> FastAPI:
    """The ASGI application.

    Args:
        segmenter: the model.
        limits: what is accepted.
        batch_size: pictures that go through the network together, at most.
        sample: a picture file that the page offers to try.
        access_log: write a line of JSON per request to standard error.
    """
    service = Service(segmenter, limits, batch_size)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
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
    )
    app.add_middleware(Monitor, metrics=service.metrics, access_log=access_log)
    add_problem_handlers(app)
    _add_picture_routes(app, service)
    _add_information_routes(app, service, sample)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return app


def _add_picture_routes(app: FastAPI, service: Service) -> None:
    # An exported file gives no objects below the score that it was exported for.
    usual_score = max(USUAL_SCORE, service.segmenter.decode_options.score_threshold)

    @app.post(
        "/predict",
        summary="Segment a picture",
        openapi_extra=_PICTURE_BODY,
        responses={200: {"model": Prediction, "content": {"image/png": {"schema": _FILE}}}, **_PROBLEMS},
    )
    async def predict(
        request: Request,
        score: Annotated[float, Query(ge=0, le=1, description="leave out objects below this score")] = usual_score,
        max_objects: Annotated[
            int | None, Query(ge=1, le=MAX_OBJECTS, description="at most so many objects; default: the model's")
        ] = None,
        format: Annotated[
            Literal["json", "overlay"], Query(description="the objects, or the picture with them drawn on it, as PNG")
        ] = "json",
        masks: Annotated[
            MaskKind,
            Query(description="in JSON: COCO RLE; COCO polygons (outlines, with cuts to holes); or a PNG per object"),
        ] = "rle",
    ) -> Response:
        """Finds the objects in one picture. Formats: PNG, JPEG, TIFF, WebP, GIF (first frame), BMP and others."""
        return await service.predict(request, Settings(score, max_objects, format, masks))

    @app.post(
        "/upright",
        summary="The picture as the model sees it",
        openapi_extra=_PICTURE_BODY,
        responses={200: {"content": {"image/png": {"schema": _FILE}}}, **_PROBLEMS},
        response_class=Response,
    )
    async def upright(request: Request) -> Response:
        """Turned upright, 8 bit RGB, as PNG: what masks fit on. For kinds that browsers do not show, such as TIFF."""
        return await service.upright(request)


def _add_information_routes(app: FastAPI, service: Service, sample: bytes) -> None:
    segmenter, limits = service.segmenter, service.limits

    @app.get("/model", summary="The model and the limits")
    async def model() -> dict[str, Any]:
        (shortest, longest), decoding = segmenter.edges, segmenter.decode_options
        classes = zip(segmenter.category_ids, segmenter.class_names, strict=True)
        return {
            "name": segmenter.name,
            "version": version("sotr"),
            "device": str(segmenter.device),
            "input": {"shortest_edge": shortest, "longest_edge": longest},
            "classes": [{"id": number, "name": name} for number, name in classes],
            "colors": ["#{:02x}{:02x}{:02x}".format(*color) for color in COLORS],
            "lowest_score": decoding.score_threshold,
            "max_objects": min(decoding.max_objects, MAX_OBJECTS),
            "limits": {
                "max_bytes": limits.max_bytes,
                "max_pixels": limits.max_pixels,
                "max_requests": limits.max_requests,
                "timeout": limits.timeout,
            },
        }

    @app.get("/sample", summary="A picture to try", response_class=Response)
    async def sample_picture() -> Response:
        return Response(sample, media_type="image/png")

    @app.get("/healthz", summary="Whether the server lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether the server would take a picture now", responses={503: _PROBLEMS[503]})
    async def readyz() -> Response:
        if service.admission.full:
            return problem_response(503, "busy", "as many requests are under way as are accepted", {"Retry-After": "1"})
        return Response('{"status":"ready"}', media_type="application/json")

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

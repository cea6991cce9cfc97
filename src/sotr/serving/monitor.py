"""What the service says about itself: Prometheus metrics and, if wanted, a line of JSON per request."""

import json
import logging
import sys
import time
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Metrics:
    """The service's counters; one set per application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "sotr_requests", "Requests by path and status.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "sotr_request_seconds", "Seconds from a request's head to its answer.", ("path",),
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100), registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge("sotr_pictures_in_flight", "Images being worked on or waiting.", registry=self.registry)
        self.shed = Counter(
            "sotr_requests_shed", "Requests refused because too many were there.", registry=self.registry
        )
        self.uploads = Gauge("sotr_uploads", "Images on their way to the server.", registry=self.registry)
        self.decoding = Gauge("sotr_decoders_busy", "Images being decoded.", registry=self.registry)
        self.decoding_seconds = Gauge(
            "sotr_decoding_seconds", "Seconds for which the oldest image has been decoded.", registry=self.registry
        )
        self.decoders_ended = Gauge(
            "sotr_decoders_ended", "Decoders ended because an image took too long.", registry=self.registry
        )
        self.network_seconds = Gauge(
            "sotr_network_seconds",
            "Seconds for which the network has been at work on its batch.",
            registry=self.registry,
        )
        self.objects = Counter("sotr_objects", "Objects found.", registry=self.registry)
        self.batches = Histogram(
            "sotr_batch_size", "Images that went through the network together.", buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )  # fmt: skip


class Monitor:
    """ASGI middleware that counts and times every request, and logs it if asked to."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        self.app = app
        self.metrics = metrics
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status, sent, received = 0, 0, 0

        async def count_received() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def count_sent(message: Message) -> None:
            nonlocal status, sent
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, count_received, count_sent)
        finally:
            seconds = time.perf_counter() - started
            # Only paths that exist become labels: clients must not be able to make new ones without end.
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, status or "gone").inc()
            self.metrics.seconds.labels(path).observe(seconds)
            if self.access_log:
                self._log(scope, status, seconds, received, sent)

    @staticmethod
    def _log(scope: Scope, status: int, seconds: float, received: int, sent: int) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "path": scope["path"],
            "status": status or None,
            "seconds": round(seconds, 4),
            "bytes_in": received,
            "bytes_out": sent,
        }
        print(json.dumps(line), file=sys.stderr, flush=True)  # noqa: T201


class _JSONLines(logging.Formatter):
    """A message as a line of JSON, like those of requests."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def json_logging() -> None:
    """Write what libraries log or warn of to standard error as lines of JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JSONLines())
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)

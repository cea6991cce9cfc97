"""The settings of a server, checked in one place."""

import ipaddress
import math
from dataclasses import dataclass, field
from pathlib import Path

from sotr.data.images import MAX_PIXELS
from sotr.errors import SOTRError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""Names under which this machine is asked from itself."""

SHORTEST_KEY = 16
"""Characters that a key must have: shorter ones can be guessed."""


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Raises:
        SOTRError: a limit is not positive, or more pixels than can be drawn.
    """

    max_bytes: int = 32_000_000
    """Bytes of an image's file."""
    max_pixels: int = 25_000_000
    """Width times height of an image."""
    max_requests: int = 32
    """Requests that are worked on at the same time, waiting ones included."""
    timeout: float = 60.0
    """Seconds that a request may take, from its head to its answer."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_requests", "timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise SOTRError(f"{name} is {getattr(self, name)}; it must be positive, and not infinite")
        if self.max_pixels > MAX_PIXELS:
            raise SOTRError(f"max_pixels is {self.max_pixels}; it must be at most {MAX_PIXELS}")

    @property
    def decode_seconds(self) -> float:
        """Seconds of processor time that decoding one image may take: several times what the slowest format needs."""
        return max(10.0, self.max_pixels / 2.5e6)

    @property
    def max_uploads(self) -> int:
        """Images that may be on their way to the server at the same time."""
        return max(8, self.max_requests)

    @property
    def max_uploads_of_one(self) -> int:
        """Those of them that come from one address."""
        return self.max_uploads * 3 // 4


@dataclass(frozen=True)
class Access:
    """Who may ask; by default everyone who reaches the server, under whatever name."""

    key: str | None = field(default=None, repr=False)
    """What a client must show."""
    hosts: tuple[str, ...] = ()
    """Names under which the server answers, without ports; none: every name."""
    origins: tuple[str, ...] = ()
    """Other servers' pages that may ask, such as https://lab.example."""


@dataclass(frozen=True)
class ServerSettings:
    """How a model is served; see `serve` for what the settings mean."""

    host: str
    port: int
    batch_size: int | None
    limits: Limits
    access: Access
    access_log: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SOTRError(f"port is {self.port}; it must lie in 0..65535")
        if self.batch_size is not None and self.batch_size < 1:
            raise SOTRError(f"batch_size is {self.batch_size}; it must be at least 1")

    def batch_size_on(self, device: object) -> int:
        """Images that go through the network together: on CPUs one, for more gain nothing there and take memory."""
        return self.batch_size or (1 if str(device) == "cpu" else 8)


def access_of(
    host: str, api_key_file: str | Path | None, auth: bool, allowed_hosts: str | None, cors_origin: str | None
) -> Access:
    """Who may ask a server that listens on `host`.

    Raises:
        SOTRError: other machines could ask without a key and nobody said that they may, or a setting is malformed.
    """
    local = is_loopback(host)
    if api_key_file is not None and not auth:
        raise SOTRError("api_key_file and no-auth contradict each other; give one of them")
    if not local and auth and api_key_file is None:
        raise SOTRError(
            f"{host} is open to other machines; give --api-key-file FILE with a key that clients must show, or "
            "--no-auth where everyone may ask or a proxy in front checks who does"
        )
    hosts = _listed(allowed_hosts)
    for name in hosts:
        if name != "*" and ("/" in name or "*" in name.removeprefix("*.")):
            raise SOTRError(f"allowed_hosts has {name!r}; give names such as lab.example or *.lab.example, or *")
    if not hosts and local:
        hosts = (*LOOPBACK_NAMES, host)
    origins = tuple(origin.rstrip("/") for origin in _listed(cors_origin))
    for origin in origins:
        scheme, _, rest = origin.partition("://")
        if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
            raise SOTRError(f"cors_origin has {origin!r}; give what a browser names, such as https://lab.example")
    key = None if api_key_file is None else _read_key(Path(api_key_file))
    return Access(key, () if "*" in hosts else tuple(name.strip("[]").lower() for name in hosts), origins)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    try:
        return host in LOOPBACK_NAMES or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise SOTRError(f"{path}: no such file; write a key into it, for example with: openssl rand -hex 32") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SOTRError(f"{path}: cannot be read; {getattr(error, 'strerror', None) or 'it must be text'}") from None
    if len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        raise SOTRError(
            f"{path}: must hold one key of at least {SHORTEST_KEY} letters, digits and signs, and nothing else; "
            "make one, for example with: openssl rand -hex 32"
        )
    return key

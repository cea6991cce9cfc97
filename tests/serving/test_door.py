"""Who may ask: names, other servers' pages, and the key."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from sotr.cli import run
from sotr.errors import SOTRError
from sotr.model.segmenter import Segmenter
from sotr.serving import Limits, create_app
from sotr.serving.settings import Access, access_of, is_loopback
from tests.serving.conftest import problem

KEY = "0123456789abcdef-and-more"


@pytest.fixture(scope="module")
def guarded(nuclei: Segmenter) -> Iterator[TestClient]:
    access = Access(KEY, ("localhost", "127.0.0.1", "::1", "*.lab.example"), ("https://notebook.example",))
    app = create_app(nuclei, Limits(), 1, b"sample", access_log=False, access=access)
    with TestClient(app, base_url="http://localhost:8000") as client:
        yield client


def test_what_shows_the_model_or_uses_it_needs_the_key(guarded: TestClient) -> None:
    for request in ("GET model", "POST predict", "POST upright", "GET sample", "GET metrics", "GET x/y"):
        method, path = request.split()
        refused = guarded.request(method, path)
        assert problem(refused)[:2] == (401, "no_key")
        assert refused.headers["www-authenticate"] == "Bearer"
        for headers in ({"Authorization": f"Bearer {KEY}x"}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": "é".encode()}):
            assert problem(guarded.request(method, path, headers=headers))[:2] == (401, "wrong_key")
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}):
        assert guarded.get("model", headers=headers).json()["name"] == "nuclei"
        assert problem(guarded.post("predict", headers=headers))[1] == "empty_body"
    for path in ("", "page.js", "page.css", "healthz", "readyz", "docs", "openapi.json"):
        assert guarded.get(path).status_code == 200


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        *((name, True) for name in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "a.lab.example")),
        *((name, False) for name in ("evil.com", "localhost.evil.com", "lab.example", "xlab.example", "")),
        ("127.0.0.1.evil.com:8000", False),
    ],
)
def test_names(guarded: TestClient, host: str, allowed: bool) -> None:
    response = guarded.get("healthz", headers={"Host": host})
    assert (response.status_code == 200) == allowed
    if not allowed:
        assert problem(response)[:2] == (421, "wrong_host")


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({}, False),
        ({"Origin": "http://localhost:8000"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Origin": "https://notebook.example", "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "http://localhost:3000"}, True),
        ({"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}, True),
        ({"Origin": "https://evil.com"}, True),
        ({"Origin": "null"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, True),
    ],
)
def test_forms_of_other_servers_pages_are_refused(guarded: TestClient, headers: dict[str, str], foreign: bool) -> None:
    response = guarded.post("predict", headers={"X-API-Key": KEY, **headers})
    assert problem(response)[:2] == ((403, "foreign_page") if foreign else (400, "empty_body"))


def test_named_origins_may_ask_and_read(guarded: TestClient) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    before = guarded.options("predict", headers={"Origin": "https://notebook.example", **asked})
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == "https://notebook.example"
    read = guarded.get("model", headers={"Origin": "https://notebook.example", "X-API-Key": KEY})
    assert read.headers["access-control-allow-origin"] == "https://notebook.example"
    other = guarded.get("model", headers={"Origin": "https://evil.com", "X-API-Key": KEY})
    assert "access-control-allow-origin" not in other.headers


def test_this_machine_alone_needs_no_key_and_others_do(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    assert access_of("127.0.0.1", None, True, None, None).hosts == ("localhost", "127.0.0.1", "::1", "127.0.0.1")
    assert access_of("0.0.0.0", tmp_path / "key", True, None, None) == Access(KEY)
    assert access_of("0.0.0.0", None, False, "a.example, *.b.example", "https://c.example/") == Access(
        None, ("a.example", "*.b.example"), ("https://c.example",)
    )
    assert access_of("127.0.0.1", None, True, "*", None).hosts == ()
    assert KEY not in repr(Access(KEY))
    assert is_loopback("127.1.2.3")
    assert not is_loopback("127.evil.com")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 is open to other machines; give --api-key-file FILE"),
        (["--api-key-file", "absent"], "absent: no such file"),
        (["--api-key-file", "short"], "short: must hold one key of at least 16"),
        (["--api-key-file", "two"], "two: must hold one key"),
        (["--api-key-file", "key", "--no-auth"], "contradict each other"),
        (["--allowed-hosts", "http://a.example/"], "allowed_hosts has 'http://a.example/'"),
        (["--cors-origin", "*"], "cors_origin has '*'"),
    ],
)
def test_what_cannot_guard_is_said_in_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("key").write_text(KEY)
    Path("short").write_text("secret")
    Path("two").write_text(f"{KEY}\n{KEY}\n")
    assert run(["serve", "--port", "0", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert KEY not in captured.err
    with pytest.raises(SOTRError):
        access_of("0.0.0.0", None, True, None, None)

"""The route table: literal matches, parameters, methods; bodies as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ctrl_exec.common.errors import InvalidInputError, MethodNotAllowedError, NotFoundError
from ctrl_exec.common.routing import PeerIdentity, Request, Response, Route, Router, json_response


def handler(*_: object) -> Response:
    return Response(204)


ROUTER = Router(
    (
        Route("GET", "/", "index", handler),
        Route("GET", "/status/{reqid}", "status", handler),
        Route("POST", "/run", "run", handler),
        Route("POST", "/pairing/{id}/approve", "approve", handler),
    )
)


@pytest.mark.parametrize(
    ("method", "path", "name", "parameters"),
    [
        ("GET", "/", "index", {}),
        ("HEAD", "/", "index", {}),
        ("POST", "/run", "run", {}),
        ("GET", "/status/ab", "status", {"reqid": "ab"}),
        ("GET", "/status/a%2Fb", "status", {"reqid": "a%2Fb"}),
        ("POST", "/pairing/7/approve", "approve", {"id": "7"}),
    ],
)
def test_a_route_is_found(method: str, path: str, name: str, parameters: dict[str, str]) -> None:
    match = ROUTER.match(method, path)
    assert (match.route.name, match.parameters) == (name, parameters)


@pytest.mark.parametrize(
    "path", ["", "//", "/run/", "/RUN", "/status", "/status/", "/status/a/b", "/./run", "*"]
)
def test_other_paths_are_unknown(path: str) -> None:
    with pytest.raises(NotFoundError):
        ROUTER.match("GET", path)
    with pytest.raises(NotFoundError):
        ROUTER.allowed(path)


def test_a_known_path_says_its_methods() -> None:
    with pytest.raises(MethodNotAllowedError) as caught:
        ROUTER.match("DELETE", "/run")
    assert caught.value.allow == ("OPTIONS", "POST") == ROUTER.allowed("/run")
    assert ROUTER.allowed("/status/x") == ("GET", "HEAD", "OPTIONS")


def test_two_routes_for_the_same_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two routes"):
        Router((Route("GET", "/", "a", handler), Route("GET", "/", "b", handler)))


def request(body: bytes) -> Request:
    connection: Any = None
    return Request(
        "POST", "/", (), "1.1", (("host", "a"),), body, "", 0, False, "", PeerIdentity(), connection
    )


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"a": 1, "a": 2}', b"NaN", b"[" * 200_000, b"9" * 5000]
)
def test_what_is_no_json_is_named(body: bytes) -> None:
    with pytest.raises(InvalidInputError) as caught:
        request(body).json()
    assert caught.value.field == "body"


def test_json_and_headers_of_a_request() -> None:
    assert request(b'{"a": [1]}').json() == {"a": [1]}
    assert request(b"").header("host") == "a"
    assert request(b"").header("none") is None


@pytest.mark.parametrize("text", ["é", "\ud800", 'a"\n'])
def test_a_json_answer_is_always_valid_utf_8(text: str) -> None:
    response = json_response(200, {"text": text})
    assert isinstance(response.body, bytes)
    assert json.loads(response.body.decode("utf-8")) == {"text": text}

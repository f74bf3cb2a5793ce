"""openapi.json against the code and against the seed: same routes, same fields, same examples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import validate

import ctrl_exec
from ctrl_exec.api.errors import STATUSES, error_response
from ctrl_exec.api.inquiry import CREDENTIALS
from ctrl_exec.api.routes import ALL_ROUTES
from ctrl_exec.api.v1.asking import TaskRoute
from ctrl_exec.common import errors
from ctrl_exec.common.answer import ERROR_WORDS
from ctrl_exec.common.conversation import EvictedError
from tests.support.contract import check_against, resolve, specification
from tests.support.processes import ROOT

OPERATIONS = [
    (path, method.upper(), operation)
    for path, methods in specification()["paths"].items()
    for method, operation in methods.items()
]
NAMES = [f"{method} {path}" for path, method, _ in OPERATIONS]


def test_the_document_is_valid_openapi_3_1() -> None:
    assert specification()["openapi"].startswith("3.1")
    validate(specification())


def test_the_document_carries_the_release_and_is_the_one_that_is_served() -> None:
    assert specification()["info"]["version"] == ctrl_exec.__version__
    link = ROOT / "ctrl_exec" / "api" / "openapi.json"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "openapi.json"


def test_document_and_route_table_are_equal() -> None:
    described = {(path, method) for path, method, _ in OPERATIONS}
    assert described == {(route.pattern, route.method) for route in ALL_ROUTES}


@pytest.mark.parametrize("route", ALL_ROUTES, ids=lambda route: route.name)
def test_a_body_has_the_keys_that_the_table_lets_in(route: Any) -> None:
    operation = specification()["paths"][route.pattern][route.method.lower()]
    body = operation.get("requestBody")
    if body is None:
        assert not route.keys
        return
    if getattr(route, "authorised_by", "") == "public" and not route.keys:
        return  # the handler reads the body itself
    assert body["required"] is route.needs_body
    _, schema = resolve(body["content"]["application/json"]["schema"])
    credentials = () if isinstance(route, TaskRoute) else CREDENTIALS
    assert set(schema["properties"]) == {*route.keys, *credentials}
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=NAMES)
def test_every_example_matches_its_schema(path: str, method: str, operation: dict[str, Any]) -> None:
    where = f"/paths/{path.replace('~', '~0').replace('/', '~1')}/{method.lower()}"
    if "requestBody" in operation:
        check_examples(f"{where}/requestBody", operation["requestBody"])
    for status, node in operation["responses"].items():
        pointer, response = resolve(node)
        check_examples(pointer or f"{where}/responses/{status}", response)
    for place, parameter in enumerate(operation.get("parameters", [])):
        check_against(f"{where}/parameters/{place}/schema", parameter["example"])


def check_examples(where: str, node: dict[str, Any]) -> None:
    for media, content in node.get("content", {}).items():
        shown = [each["value"] for each in content.get("examples", {}).values()]
        shown += [content["example"]] if "example" in content else []
        for example in shown:
            check_against(f"{where}/content/{media.replace('/', '~1')}/schema", example)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=NAMES)
def test_every_operation_says_all_it_can_answer(path: str, method: str, operation: dict[str, Any]) -> None:
    """Whatever the server itself or authorisation can answer stands beside each operation's own."""
    general = {
        "400",
        "403",
        "405",
        "408",
        "413",
        "414",
        "415",
        "417",
        "429",
        "431",
        "500",
        "501",
        "503",
        "505",
    }
    assert general <= set(operation["responses"])
    assert operation["summary"]
    assert operation["description"]
    for status, node in operation["responses"].items():
        assert status == "204" or resolve(node)[1]["content"]


@pytest.mark.parametrize("route", ALL_ROUTES, ids=lambda route: route.name)
def test_a_route_of_the_task_layer_has_the_query_that_is_described(route: Any) -> None:
    operation = specification()["paths"][route.pattern][route.method.lower()]
    described = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
    if isinstance(route, TaskRoute):
        assert described == set(route.query)
        assert "401" in operation["responses"]
        assert ("security" in operation) is (route.authorised_by != "public")


def test_the_error_words_of_the_document_are_those_of_the_code() -> None:
    _, schema = resolve({"$ref": "#/components/schemas/Error"})
    words = set(schema["properties"]["error"]["enum"])
    made = {rendering.word for rendering in STATUSES.values()} | set(ERROR_WORDS.values())
    elsewhere = {"denied", "locked", "unknown agent"}
    assert words == made - elsewhere


def all_errors() -> Iterator[errors.CtrlExecError]:
    made: dict[type, tuple[Any, ...]] = {
        errors.UnknownAgentError: (["a", "b"],),
        errors.MethodNotAllowedError: ("PUT", "/run", ["POST"]),
        errors.DeniedError: (3, "insufficient privilege"),
        errors.LockedError: ("deploy", ["db-01"]),
        errors.ProtocolError: (431, "too much"),
        EvictedError: (),
    }
    waiting = [errors.CtrlExecError]
    while waiting:
        cls = waiting.pop()
        waiting += [each for each in cls.__subclasses__() if each.__module__.startswith("ctrl_exec")]
        if cls is errors.ThrottledError:
            yield errors.ThrottledError("wait", retry_after_s=7)
        elif cls is errors.LostCommandError:
            yield errors.LostCommandError("its watcher died", pid=4711, started=1)
        else:
            yield cls(*made.get(cls, ("the detail",)))


@pytest.mark.parametrize("error", list(all_errors()), ids=lambda error: type(error).__name__)
def test_every_error_has_a_documented_answer(error: errors.CtrlExecError) -> None:
    response = error_response(error)
    assert isinstance(response.body, bytes)
    document = json.loads(response.body)
    schema = {
        errors.DeniedError: "Denied", errors.ForbiddenError: "Denied", errors.LockedError: "Locked",
        errors.UnknownAgentError: "UnknownAgent",
    }.get(type(error), "Error")  # fmt: skip
    check_against(f"/components/schemas/{schema}", document)
    headers = dict(response.headers)
    assert ("Retry-After" in headers) == (response.status in (429, 503))
    assert ("Allow" in headers) == (response.status == 405)
    if response.status == 500:
        assert "the detail" not in document["detail"]


def test_a_generic_denial_says_nothing_more() -> None:
    response = error_response(errors.DeniedError(2, "bad credentials"), is_generic=True)
    assert isinstance(response.body, bytes)
    assert json.loads(response.body) == {"ok": False, "error": "forbidden", "detail": "forbidden"}

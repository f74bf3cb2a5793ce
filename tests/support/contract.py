"""Whether an answer of the API is one that openapi.json promises; every test's answers are checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from tests.support.processes import ROOT

_DOCUMENT = "urn:ctrl-exec:openapi"
_ANY_PATH_STATUSES = (400, 401, 403, 404, 405, 408, 413, 414, 415, 417, 429, 431, 500, 501, 503, 505)


@cache
def specification() -> dict[str, Any]:
    """openapi.json."""
    found = json.loads((ROOT / "openapi.json").read_text())
    assert isinstance(found, dict)
    return found


@cache
def _validator(pointer: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    resource = Resource(contents=specification(), specification=DRAFT202012)
    registry: Any = Registry().with_resource(_DOCUMENT, resource)
    return Draft202012Validator({"$ref": f"{_DOCUMENT}#{pointer}"}, registry=registry)


def check_against(pointer: str, document: object) -> None:
    """The document matches the schema at the JSON pointer of openapi.json."""
    found = sorted(_validator(pointer).iter_errors(document), key=lambda error: list(error.path))
    assert not found, [(error.json_path, error.message) for error in found]


def resolve(node: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(pointer, node) behind a `$ref`; an empty pointer where there was none."""
    if "$ref" not in node:
        return "", node
    pointer = node["$ref"].removeprefix("#")
    found: Any = specification()
    for part in pointer.strip("/").split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return pointer, found


def template_of(path: str) -> str | None:
    """The path of the document that a request's path is an instance of."""
    plain = path.partition("?")[0]
    for template in specification()["paths"]:
        pattern = "/".join(
            "[^/]+" if part.startswith("{") else re.escape(part) for part in template.split("/")
        )
        if re.fullmatch(pattern, plain):
            return str(template)
    return None


def check_answer(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """The answer has a documented status, its headers, media type and body."""
    lower = {name.lower(): text for name, text in headers.items()}
    for name in ("date", "x-request-id", "cache-control", "x-content-type-options"):
        assert name in lower, (method, path, status, name)
    if status == 204:
        assert not body
        return
    assert lower.get("transfer-encoding") == "chunked" or lower["content-length"].isdigit()
    if method == "HEAD":
        assert not body
        return
    assert body, "no answer is ever empty"
    template = template_of(path)
    operation = specification()["paths"].get(template, {}).get(method.lower()) if template else None
    if operation is None:
        assert status in _ANY_PATH_STATUSES, (method, path, status)
        check_against(f"/components/schemas/{'Denied' if status == 403 else 'Error'}", json.loads(body))
        return
    assert str(status) in operation["responses"], (method, path, status, body)
    _check_response(operation["responses"][str(status)], f"{template}", method, status, lower, body)


def _check_response(
    node: dict[str, Any], template: str, method: str, status: int, headers: Mapping[str, str], body: bytes
) -> None:
    pointer, response = resolve(node)
    escaped = template.replace("~", "~0").replace("/", "~1")
    pointer = pointer or f"/paths/{escaped}/{method.lower()}/responses/{status}"
    media = headers["content-type"].partition(";")[0]
    assert media in response["content"], (template, media)
    if media == "application/json":
        check_against(f"{pointer}/content/application~1json/schema", json.loads(body))
    for name, header in response.get("headers", {}).items():
        where, found = resolve(header)
        if found.get("required"):
            assert name.lower() in headers, (template, status, name)
        if name.lower() in headers and found["schema"]["type"] == "string" and "pattern" in found["schema"]:
            check_against(f"{where}/schema", headers[name.lower()])

"""Every error has a place: found along the MRO, the nearest line wins."""

from __future__ import annotations

import json

from ctrl_exec.api.errors import STATUSES, error_response, rendering_of
from ctrl_exec.common import errors


class NewLockError(errors.LockedError):
    """Stands for a subclass that the table does not know."""


def test_a_subclass_has_its_parents_answer() -> None:
    assert rendering_of(NewLockError("x", ["a"])).status == 409
    assert rendering_of(errors.InvalidNameError("x")).status == 400
    assert rendering_of(errors.UnknownRunError("x")).word == "not found"
    assert rendering_of(errors.ConfigError("x")).status == 500


def test_the_root_has_a_place() -> None:
    assert errors.CtrlExecError in STATUSES


def test_headers_that_belong_to_a_status() -> None:
    busy = error_response(errors.BusyError("full", retry_after_s=3))
    assert ("Retry-After", "3") in busy.headers
    method = error_response(errors.MethodNotAllowedError("PUT", "/run", ["OPTIONS", "POST"]))
    assert ("Allow", "OPTIONS, POST") in method.headers


def test_a_server_error_tells_nothing_of_its_cause() -> None:
    for error in (
        errors.StorageError("full", path="/secret/place"),
        errors.ProgramError("x", program="/secret"),
    ):
        response = error_response(error)
        assert isinstance(response.body, bytes)
        assert "secret" not in json.dumps(json.loads(response.body))

"""Every error of ours has a place in both tables: an HTTP status and an exit code."""

from __future__ import annotations

import inspect

import pytest

from ctrl_exec.common import errors
from ctrl_exec.common.errors import CtrlExecError


def all_classes() -> list[type[CtrlExecError]]:
    found = [
        each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, CtrlExecError)
    ]
    return sorted(found, key=lambda each: each.__name__)


@pytest.mark.parametrize("cls", all_classes(), ids=lambda each: each.__name__)
def test_an_error_is_drawn_in_the_tree_and_says_what_it_is(cls: type[CtrlExecError]) -> None:
    assert cls.__name__ in (errors.__doc__ or "")
    assert cls.__doc__


def test_errors_carry_the_facts_of_the_decision() -> None:
    assert errors.UnknownAgentError(["a", "b"]).names == ("a", "b")
    assert str(errors.UnknownAgentError(["a", "b"])) == "not registered: a, b"
    assert errors.UnknownRunError("ab12").reqid == "ab12"
    assert errors.UnknownPairingError("x").request == "x"
    assert str(errors.LockedError("deploy", ["db-01"])) == "deploy is already running on db-01"
    assert str(errors.ConfigError("wrong", path="/a", line=3)) == "/a:3: wrong"
    assert str(errors.ConfigError("wrong", path="/a")) == "/a: wrong"
    assert (
        str(errors.MethodNotAllowedError("PUT", "/run", ["POST"])) == "PUT is not available on /run; use POST"
    )
    assert errors.DeniedError(3, "insufficient privilege").code == 3
    assert errors.ThrottledError("wait", retry_after_s=5).retry_after_s == 5
    assert errors.BusyError("full").retry_after_s == 1
    assert errors.ProtocolError(431, "large").status == 431
    assert str(errors.StorageError("full", path="/a")) == "/a: full"
    assert str(errors.ProgramError("gone", program="/b")) == "/b: gone"

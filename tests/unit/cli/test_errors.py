"""Errors at the prompt: every class has an exit code, a word and, where there is one, a next step."""

from __future__ import annotations

import pytest

from ctrl_exec.cli import errors as mapping
from ctrl_exec.common import errors


def all_classes(kind: type[errors.CtrlExecError]) -> list[type[errors.CtrlExecError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in all_classes(child))]


OURS = [kind for kind in all_classes(errors.CtrlExecError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", OURS)
def test_every_class_of_the_tree_has_a_row_of_its_own(kind: type[errors.CtrlExecError]) -> None:
    """A new error is a decision about its exit code."""
    assert kind in mapping.TABLE
    code, word, _ = mapping.row(kind)
    assert 1 <= code <= 5
    assert word


def test_a_class_that_is_not_listed_takes_its_parents_row() -> None:
    """Along the MRO, never a KeyError."""

    class StrangeError(errors.LockedError):
        """A child nobody listed."""

    assert mapping.row(StrangeError) == mapping.TABLE[errors.LockedError]


@pytest.mark.parametrize(
    ("error", "code", "document"),
    [
        (errors.UsageError("missing HOST"), 2, {"error": "usage", "detail": "missing HOST"}),
        (
            errors.ConfigError("bad", path="/c", line=3),
            2,
            {"error": "configuration", "detail": "/c:3: bad", "path": "/c", "line": 3},
        ),
        (
            errors.UnknownAgentError(["a"]),
            1,
            {"error": "unknown agent", "detail": "not registered: a", "agents": ["a"]},
        ),
        (
            errors.DeniedError(2, "bad credentials"),
            3,
            {"error": "bad credentials", "detail": "bad credentials", "code": 2},
        ),
        (
            errors.LockedError("s", ["db"]),
            4,
            {"error": "locked", "detail": "s is already running on db", "code": 4, "conflicts": ["db"]},
        ),
        (errors.UnknownRunError("ab"), 1, {"error": "not found", "detail": "no result for reqid ab"}),
    ],
)
def test_documents_of_errors(error: errors.CtrlExecError, code: int, document: dict[str, object]) -> None:
    """As the API's envelope: ok false, the class word, the detail, and the facts."""
    assert mapping.exit_code(error) == code
    assert mapping.as_document(error) == {"ok": False, **document}


def test_the_next_step_names_the_command() -> None:
    """`ctrl-exec run --help`, not a riddle."""
    assert mapping.next_step(errors.UsageError("x"), "run") == "see `ctrl-exec run --help`"
    assert mapping.next_step(errors.UsageError("x"), "") == "see `ctrl-exec --help`"

"""Objects of requests are read strictly: nothing coerced, every fault named at once."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ctrl_exec.common.errors import InvalidFieldsError
from ctrl_exec.tasks.forms import Form, raise_faults

READERS: dict[str, Any] = {
    "name": lambda form: form.name("k"),
    "text": lambda form: form.text("k", most=3),
    "matching": lambda form: form.matching("k", re.compile("[a-z]+"), "letters"),
    "flag": lambda form: form.flag("k"),
    "whole": lambda form: form.whole("k", 1, 9),
    "number": lambda form: form.number("k", 1, 9),
    "choice": lambda form: form.choice("k", ("A", "B"), synonyms={"C": "B"}),
    "strings": lambda form: form.strings("k", most=2),
    "mapping": lambda form: form.mapping("k"),
    "inner": lambda form: form.inner("k"),
    "items": lambda form: form.items("k", most=1),
}

GOOD = [
    ("name", "a b", "a b"), ("text", "ab\n", "ab\n"), ("matching", "abc", "abc"), ("flag", False, False),
    ("whole", 9, 9), ("number", 1.5, 1.5), ("choice", "A", "A"), ("choice", "C", "B"),
    ("strings", ["a", ""], ("a", "")), ("mapping", {"a": 1}, {"a": 1}),
]  # fmt: skip
BAD = [
    ("name", ""), ("name", "  "), ("name", "a\nb"), ("name", "x" * 201), ("name", 5), ("text", "abcd"),
    ("text", "a\x00"), ("text", "\ud800"), ("matching", "abc\n"), ("matching", 5), ("flag", 1), ("flag", "true"),
    ("whole", True), ("whole", 1.0), ("whole", "1"), ("whole", 0), ("whole", 10), ("number", True),
    ("number", "1"), ("number", 0.5), ("choice", "a"), ("choice", 1), ("strings", "ab"), ("strings", [1]),
    ("strings", ["a", "b", "c"]), ("strings", ["\x00"]), ("mapping", []), ("mapping", {"\x00": 1}),
    ("inner", []), ("items", {}), ("items", [1]), ("items", [{}, {}]),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "given", "expected"), GOOD)
def test_what_is_right_is_given(reader: str, given: object, expected: object) -> None:
    form = Form({"k": given})
    assert READERS[reader](form) == expected
    form.finish()


@pytest.mark.parametrize(("reader", "given"), [*BAD, *((reader, None) for reader in READERS)])
def test_what_is_wrong_is_named(reader: str, given: object) -> None:
    form = Form({"k": given})
    READERS[reader](form)
    with pytest.raises(InvalidFieldsError) as caught:
        form.finish()
    assert list(caught.value.fields) == ["k"]
    assert caught.value.field == "k"


@pytest.mark.parametrize("reader", READERS)
def test_a_required_key_is_missed(reader: str) -> None:
    form = Form({})
    READERS[reader](form)
    with pytest.raises(InvalidFieldsError, match="k: required"):
        form.finish()


def test_all_faults_are_told_with_their_place() -> None:
    form = Form({"steps": [{"taskId": 5}], "extra\n": 1, "inner": {"odd": 1}})
    for each in form.items("steps"):
        each.text("taskId")
        each.close()
    inner = form.inner("inner")
    assert inner is not None
    inner.close()
    with pytest.raises(InvalidFieldsError) as caught:
        form.finish()
    assert caught.value.fields == {
        "steps[0].taskId": "expected a string of 0 to 65536 characters",
        "inner.odd": "unknown key",
        "extra\\n": "unknown key",
    }


def test_a_null_is_the_default_and_many_faults_are_cut_short() -> None:
    form = Form({"a": None})
    assert form.whole("a", 0, default=7) == 7
    assert not form.has("a")
    form.finish()
    with pytest.raises(InvalidFieldsError, match="and 5 more") as caught:
        raise_faults({f"k{number}": "wrong" for number in range(15)})
    assert len(caught.value.fields) == 15

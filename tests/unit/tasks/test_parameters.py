"""Typed parameters: the seed's four types and two more, each right value taken and each wrong one named."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ctrl_exec.common.errors import InvalidFieldsError
from ctrl_exec.tasks.models import Parameter
from ctrl_exec.tasks.parameters import (
    ALL_MATCHES_LIMIT_S,
    as_text,
    complete,
    fault_of,
    pattern_time,
    secret_names,
)

SEED = (
    Parameter("COUNTRY_CODE", "SELECTOR", default="FR", options=(("US", "US"), ("FR", "France"))),
    Parameter("CLEAN", "CHECKBOX"),
    Parameter("MAX_RETRY", "INTEGER", default=1, least=0, most=10),
    Parameter("START_DATE", "DATE", least="2026-01-01", most="2026-12-31"),
    Parameter("NOTE", "TEXT", least=2, most=5, pattern="[a-z]+"),
    Parameter("PASSWORD", "SECRET", is_required=True),
)
GIVEN: dict[str, Any] = {
    "COUNTRY_CODE": "US", "CLEAN": True, "MAX_RETRY": 5, "START_DATE": "2026-01-25", "PASSWORD": "hunter2",
}  # fmt: skip


def test_the_seeds_parameter_map_is_taken() -> None:
    assert complete(SEED, GIVEN) == GIVEN


def test_what_is_left_out_has_its_default() -> None:
    assert complete(SEED, {"PASSWORD": "x"}) == {
        "COUNTRY_CODE": "FR", "CLEAN": False, "MAX_RETRY": 1, "PASSWORD": "x",
    }  # fmt: skip
    assert complete(SEED, {"PASSWORD": "x", "MAX_RETRY": None})["MAX_RETRY"] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("COUNTRY_CODE", "DE"), ("COUNTRY_CODE", "France"), ("COUNTRY_CODE", 1), ("COUNTRY_CODE", True),
        ("CLEAN", 1), ("CLEAN", "true"), ("CLEAN", 0), ("MAX_RETRY", "5"), ("MAX_RETRY", 5.0), ("MAX_RETRY", True),
        ("MAX_RETRY", -1), ("MAX_RETRY", 11), ("START_DATE", "2026-02-30"), ("START_DATE", "2025-12-31"),
        ("START_DATE", "2027-01-01"), ("START_DATE", "2026-1-25"), ("START_DATE", "20260125"),
        ("START_DATE", "2026-01-25T00:00:00"), ("START_DATE", 20260125), ("NOTE", "a"), ("NOTE", "abcdef"),
        ("NOTE", "ABC"), ("NOTE", "ab\n"), ("NOTE", 5), ("PASSWORD", 5), ("PASSWORD", "a\x00"), ("PASSWORD", None),
        ("UNKNOWN", 1), ("clean", True),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_and_nothing_is_coerced(name: str, content: object) -> None:
    with pytest.raises(InvalidFieldsError) as caught:
        complete(SEED, GIVEN | {name: content})
    assert list(caught.value.fields) == [f"parameterMap.{name}"]


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidFieldsError) as caught:
        complete(SEED, {"CLEAN": 1, "NOPE": 1})
    assert set(caught.value.fields) == {"parameterMap.CLEAN", "parameterMap.NOPE", "parameterMap.PASSWORD"}


def test_a_pattern_that_never_ends_is_no_match() -> None:
    """Managers write patterns; one that backtracks for ever must not hold a process of ours."""
    greedy = Parameter("NOTE", "TEXT", pattern="(a+)+$")
    assert fault_of(greedy, "aaaa") == ""
    assert fault_of(greedy, "a" * 60 + "!") != ""


EVIL = tuple(Parameter(f"P{n}", "TEXT", pattern="(a+)+$") for n in range(20))


def test_all_patterns_of_a_request_have_one_time_together() -> None:
    """Twenty that never end cost what one second is, not ten; and so do several tasks of one document."""
    begun = time.process_time()
    with pattern_time():
        for _ in range(3):
            with pytest.raises(InvalidFieldsError) as caught:
                complete(EVIL, {each.name: "a" * 60 + "!" for each in EVIL})
            assert len(caught.value.fields) == len(EVIL)
            assert "takes too long" in caught.value.fields["parameterMap.P19"]
    assert time.process_time() - begun < 3 * ALL_MATCHES_LIMIT_S
    # the next request has its own; what matches soon is not kept from it
    plain = Parameter("P", "TEXT", pattern="a+")
    assert complete((plain,), {"P": "aaa"}) == {"P": "aaa"}


def test_values_as_commands_get_them() -> None:
    assert [as_text(each) for each in (True, False, 5, "x", "2026-01-25")] == [
        "true",
        "false",
        "5",
        "x",
        "2026-01-25",
    ]
    assert secret_names(SEED) == {"PASSWORD"}

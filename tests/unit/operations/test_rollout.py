"""Batches: which hosts are in which, and when failures are too many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.operations.rollout import Batch, batches_of, check_batch, most_failures

TEN = tuple(f"h{number}" for number in range(10))


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        (Batch(3), [3, 3, 3, 1]), (Batch("20%"), [2] * 5), (Batch("1%"), [1] * 10), (Batch("25%"), [3, 3, 3, 1]),
        (Batch("30%"), [3, 3, 3, 1]), (Batch("100%"), [10]), (Batch(50), [10]), (Batch(4, canary=1), [1, 4, 4, 1]),
        (Batch(4, canary=12), [10]), (Batch("50%", canary=2), [2, 5, 3]),
    ],
)  # fmt: skip
def test_hosts_are_cut_in_the_order_asked(batch: Batch, sizes: list[int]) -> None:
    """A percentage is of all hosts, rounded up; the canaries are a batch of their own."""
    found = batches_of(TEN, check_batch(batch))
    assert [len(each) for each in found] == sizes
    assert sum(found, ()) == TEN


@given(st.integers(1, 300), st.integers(1, 100), st.integers(0, 5))
def test_every_host_is_in_exactly_one_batch(count: int, percent: int, canary: int) -> None:
    """Whatever the numbers, nobody is left out and no batch is empty."""
    hosts = tuple(f"h{number}" for number in range(count))
    found = batches_of(hosts, Batch(f"{percent}%", canary=canary))
    assert sum(found, ()) == hosts
    assert all(found)


def test_without_a_batch_there_are_none() -> None:
    """Then the run goes to all hosts at once."""
    assert batches_of(TEN, None) == ()


@pytest.mark.parametrize(
    ("given_", "hosts", "most"), [(0, 10, 0), (3, 10, 3), ("10%", 10, 1), ("10%", 19, 1), ("7%", 100, 7), ("0%", 5, 0)]
)  # fmt: skip
def test_failures_allowed(given_: int | str, hosts: int, most: int) -> None:
    """A percentage is of all hosts, rounded down."""
    assert most_failures(check_batch(Batch(1, max_failures=given_)), hosts) == most


@pytest.mark.parametrize(
    ("batch", "field"),
    [
        (Batch(0), "batch.size"), (Batch("0%"), "batch.size"), (Batch("101%"), "batch.size"), (Batch("x"), "batch.size"),
        (Batch("10"), "batch.size"), (Batch(True), "batch.size"), (Batch(10_001), "batch.size"), (Batch("٢%"), "batch.size"),
        (Batch(1, max_failures=-1), "batch.max_failures"), (Batch(1, max_failures="200%"), "batch.max_failures"),
        (Batch(1, pause_s=-1), "batch.pause"), (Batch(1, pause_s=float("nan")), "batch.pause"),
        (Batch(1, pause_s=90_000), "batch.pause"), (Batch(1, canary=-1), "batch.canary"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(batch: Batch, field: str) -> None:
    """Every refusal says which field."""
    with pytest.raises(InvalidInputError) as caught:
        check_batch(batch)
    assert caught.value.field == field

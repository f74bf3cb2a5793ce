"""The budget of output: what is kept, what is cut, and that it is counted."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.messages import HostResult
from ctrl_exec.operations.output import KEPT_END_BYTES, OutputBudget

BOTH_ENDS = 2 * KEPT_END_BYTES


def result(stdout: str, stderr: str = "", **facts) -> HostResult:
    return HostResult("a", "job", "ok", exit=0, stdout=stdout, stderr=stderr, **facts)


def test_within_the_limit_nothing_is_touched() -> None:
    """The very same result comes back."""
    given_result = result("x" * 100_000, "y" * 1000)
    assert OutputBudget(101_000, "utf-8").take(given_result) is given_result


def test_beyond_it_each_output_keeps_its_ends() -> None:
    """First and last 32 KiB, and the count of what is missing, added to what the agent dropped."""
    budget = OutputBudget(100_000, "utf-8")
    budget.take(result("x" * 90_000))
    cut = budget.take(result("a" * 50_000 + "b" * 50_000, "c" * 70_000, truncated=(5, 7)))
    assert cut.stdout == "a" * KEPT_END_BYTES + "b" * KEPT_END_BYTES
    assert len(cut.stderr) == BOTH_ENDS
    assert cut.truncated == (100_000 - BOTH_ENDS + 5, 70_000 - BOTH_ENDS + 7)


def test_short_outputs_are_always_kept() -> None:
    """An output no longer than both ends has nothing to cut."""
    budget = OutputBudget(10, "utf-8")
    for _ in range(3):
        assert budget.take(result("x" * BOTH_ENDS)).truncated == (0, 0)


def test_base64_is_cut_in_its_bytes() -> None:
    """What is left is base64 of both ends."""
    content = bytes(range(256)) * 1000
    budget = OutputBudget(1000, "base64")
    cut = budget.take(result(base64.b64encode(content).decode()))
    assert base64.b64decode(cut.stdout) == content[:KEPT_END_BYTES] + content[-KEPT_END_BYTES:]
    assert cut.truncated[0] == len(content) - BOTH_ENDS


def test_a_character_that_the_cut_goes_through_is_not_shown() -> None:
    """No replacement characters are made up."""
    cut = OutputBudget(1, "utf-8").take(result("x" + "ä" * 100_000))
    assert set(cut.stdout) == {"x", "ä"}


@pytest.mark.parametrize("encoding", ["utf-8", "base64"])
@given(outputs=st.lists(st.text(max_size=300), max_size=8), limit=st.integers(1, 500))
def test_any_outputs(encoding: str, outputs: list[str], limit: int) -> None:
    """Nothing small is ever lost, whatever it holds, also what is no base64."""
    budget = OutputBudget(limit, encoding)
    for output in outputs:
        assert budget.take(result(output)).stdout == output


@pytest.mark.parametrize("encoding", ["utf-8", "base64"])
def test_pieces_are_cut_as_a_whole_is(encoding: str) -> None:
    """The beginning and the end of each stream beyond the limit, and how much is missing."""
    budget = OutputBudget(100_000, encoding)
    content = b"".join(b"%09d\n" % number for number in range(40_000))
    kept = ""
    for start in range(0, len(content), 30_000):
        text, _ = budget.pass_on("h", "stdout", shown(content[start : start + 30_000], encoding))
        kept += text
    result = budget.end(HostResult("h", "job", "ok", stdout=shown(b"the end\n", encoding)))
    whole = (
        base64.b64decode(kept + result.stdout) if encoding == "base64" else (kept + result.stdout).encode()
    )
    assert len(whole) + result.truncated[0] == len(content) + 8
    assert whole.startswith(content[:90_000])
    assert whole.endswith(content[-32_000:] + b"the end\n")
    small = budget.pass_on("other", "stdout", shown(b"abc", encoding))
    assert small == (shown(b"abc", encoding), False), "every output keeps its beginning"


def shown(content: bytes, encoding: str) -> str:
    return base64.b64encode(content).decode() if encoding == "base64" else content.decode()

"""Rolling a run out in batches: which host is in which, and when failures are too many.

Owns the arithmetic of a `batch`, nothing that happens in time. Must not know agents or records.
"""

from __future__ import annotations

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.patterns import Pattern
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PAUSE_S = 86_400
MAX_COUNT = 10_000
_PERCENT = Pattern(r"([0-9]{1,3})%")


@value
class Batch:
    """How a run is rolled out.

    `size` hosts at a time, in the order asked: a number, or a percentage of the run's hosts
    (`"20%"`) rounded up, at least one. `canary` hosts go first as a batch of their own (0: none). A
    batch begins `pause_s` seconds after the last host of the one before said its last word, and not at
    all once more than `max_failures` hosts have ended otherwise than `ok`: a number, or a percentage of
    the run's hosts rounded down. What was not begun is `cancelled`.
    """

    size: int | str
    max_failures: int | str = 0
    pause_s: float = 0
    canary: int = 0


def check_batch(batch: Batch) -> Batch:
    """The batch itself, when every value in it is one. Raises: InvalidInputError naming the field."""
    _check_amount("batch.size", batch.size, 1)
    _check_amount("batch.max_failures", batch.max_failures, 0)
    # written so that NaN is refused too
    if isinstance(batch.pause_s, bool) or not 0 <= batch.pause_s <= MAX_PAUSE_S:
        raise InvalidInputError(
            f"batch.pause: expected a number from 0 to {MAX_PAUSE_S}", field="batch.pause"
        )
    if isinstance(batch.canary, bool) or not 0 <= batch.canary <= MAX_COUNT:
        raise InvalidInputError(f"batch.canary: expected 0 to {MAX_COUNT} hosts", field="batch.canary")
    return batch


def _check_amount(field: str, given: int | str, least: int) -> None:
    if isinstance(given, str):
        found = _PERCENT.fullmatch(given)
        if found is None or not least <= int(found[1]) <= 100:
            raise InvalidInputError(
                f'{field}: expected a number or a percentage from {least}% to 100%, as in "20%"', field=field
            )
    elif isinstance(given, bool) or not least <= given <= MAX_COUNT:
        raise InvalidInputError(f"{field}: expected {least} to {MAX_COUNT}, or a percentage", field=field)


def batches_of(hosts: Sequence[str], batch: Batch | None) -> tuple[tuple[str, ...], ...]:
    """The hosts in the order in which they are begun; empty without a batch."""
    if batch is None:
        return ()
    size = max(1, _amount(batch.size, len(hosts), rounds_up=True))
    first = min(batch.canary, len(hosts))
    cut = [tuple(hosts[:first])] if first else []
    cut += [tuple(hosts[start : start + size]) for start in range(first, len(hosts), size)]
    return tuple(cut)


def most_failures(batch: Batch, hosts: int) -> int:
    """How many hosts may fail before no further batch is begun."""
    return _amount(batch.max_failures, hosts, rounds_up=False)


def _amount(given: int | str, whole: int, *, rounds_up: bool) -> int:
    if isinstance(given, int):
        return given
    percent = int(given.removesuffix("%"))
    # whole numbers: a float would make 30 percent of 10 hosts four of them
    exact, rest = divmod(percent * whole, 100)
    return exact + 1 if rest and rounds_up else exact

"""The shared block: rows, counters that outlive their child, the count of long requests."""

from __future__ import annotations

from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.common.slots import FREE, READING, WORKING, Slots


def test_a_row_lives_from_claim_to_release() -> None:
    slots = Slots(2, 3)
    first, second = slots.claim(), slots.claim()
    assert first is not None
    assert second is not None
    assert slots.claim() is None
    assert slots.live_count == 2
    assert slots.state(first) == WORKING
    slots.set_state(first, READING)
    slots.note_answer(first, 4, 200)
    view = slots.view(first)
    assert (view.state, view.route, view.status, view.requests, view.is_long) == (READING, 4, 200, 1, False)
    slots.release(first)
    assert slots.state(first) == FREE
    assert slots.live_count == 1
    assert slots.claim() == first
    slots.close()


def test_counters_of_a_child_go_to_the_totals() -> None:
    slots = Slots(4, 2)
    index = slots.claim()
    assert index is not None

    def work() -> None:
        slots.add(index, 0, 5)
        slots.add(index, 1, 7)

    assert wait_status(fork_child(work), timeout_s=60) == (0, 0)
    assert slots.totals([index]) == [5, 7]
    assert slots.totals([]) == [0, 0]
    slots.release(index)
    assert slots.totals([]) == [5, 7]
    again = slots.claim()
    assert again is not None
    slots.add(again, 0, 1)
    assert slots.totals([again]) == [6, 7]
    slots.close()


def test_no_more_than_the_limit_are_long_however_many_ask_at_once() -> None:
    slots = Slots(32)
    rows = [slots.claim() for _ in range(32)]
    pids = []
    for row in rows:
        assert row is not None
        pids.append(fork_child(lambda row=row: 0 if slots.enter_long(row, 5) else 1))  # type: ignore[misc]
    codes = [wait_status(pid, timeout_s=60) for pid in pids]
    assert codes.count((0, 0)) == 5
    assert slots.long_count() == 5
    for row in rows:
        assert row is not None
        slots.leave_long(row)
    assert slots.long_count() == 0
    assert rows[0] is not None
    assert slots.enter_long(rows[0], 1)
    assert slots.enter_long(rows[0], 1)  # who is long already stays so
    slots.close()

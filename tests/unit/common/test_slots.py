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


def test_counters_are_all_childrens_and_none_is_lost() -> None:
    slots = Slots(4, 2)
    rounds, children = 2_000, 4

    def work() -> None:
        for _ in range(rounds):
            slots.add(((0, 1), (1, 7)))

    pids = [fork_child(work) for _ in range(children)]
    assert [wait_status(pid, timeout_s=60) for pid in pids] == [(0, 0)] * children
    assert slots.totals() == [rounds * children, 7 * rounds * children]
    slots.close()


def test_counters_outlive_the_row_of_who_counted() -> None:
    slots = Slots(4, 2)
    index = slots.claim()
    assert index is not None
    slots.add(((1, 5),))
    slots.release(index)
    assert slots.claim() == index
    assert slots.totals() == [0, 5]
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

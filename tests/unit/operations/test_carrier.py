"""Waiting that can be interrupted."""

from __future__ import annotations

import os
import time

from ctrl_exec.operations.carrier import Pause
from ctrl_exec.services.transport import Interrupt


def test_a_pause_lasts() -> None:
    """Without an interrupt the time passes."""
    started = time.monotonic()
    assert not Pause()(0.05)
    assert time.monotonic() - started >= 0.05


def test_a_pause_ends_with_the_interrupt() -> None:
    """A readable descriptor with a set interrupt ends it at once, also when it was set before."""
    reading, writing = os.pipe()
    flag = []
    pause = Pause(Interrupt((reading,), lambda: bool(flag)))
    os.write(writing, b"x")
    flag.append(1)
    assert pause(3600)
    assert Pause(Interrupt((), lambda: True))(3600)
    os.close(reading)
    os.close(writing)


def test_a_descriptor_readable_for_another_reason_neither_ends_nor_spins() -> None:
    """Bytes that mean nothing leave the pause as long as it is, and the processor idle."""
    reading, writing = os.pipe()
    os.write(writing, b"x")
    busy, started = time.process_time(), time.monotonic()
    assert not Pause(Interrupt((reading,), lambda: False))(0.3)
    assert time.monotonic() - started >= 0.3
    assert time.process_time() - busy < 0.25
    os.close(reading)
    os.close(writing)

"""How often one address may knock."""

from __future__ import annotations

from ctrl_exec.pairing.rate import PairingRate


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_beyond_the_count_an_address_is_blocked_for_a_time() -> None:
    """Three in a window of 10 s are let in, the fourth starts a block of 30 s; others are not touched."""
    clock = Clock()
    rate = PairingRate((3, 10, 30), monotonic=clock)
    assert [rate.admit("192.0.2.1") for _ in range(4)] == [True, True, True, False]
    assert rate.admit("192.0.2.2")
    clock.now += 29
    assert not rate.admit("192.0.2.1")
    clock.now += 2
    assert [rate.admit("192.0.2.1") for _ in range(4)] == [True, True, True, False]


def test_a_new_window_begins_after_the_old_one() -> None:
    """Slow callers are never blocked."""
    clock = Clock()
    rate = PairingRate((2, 10, 30), monotonic=clock)
    for _ in range(20):
        assert rate.admit("192.0.2.1")
        clock.now += 6


def test_loopback_is_exempt_and_odd_addresses_are_counted() -> None:
    """Tests, the demo and a person on the dispatcher itself are not limited."""
    rate = PairingRate((1, 10, 30), monotonic=Clock())
    assert all(rate.admit(ip) for ip in ("127.0.0.1", "127.9.9.9", "::1") for _ in range(5))
    assert rate.admit("")
    assert not rate.admit("")


def test_the_memory_is_bounded() -> None:
    """The address seen longest ago is forgotten beyond ten thousand."""
    rate = PairingRate((1, 10, 30), monotonic=Clock())
    for number in range(10_050):
        assert rate.admit(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert rate.admit("10.0.0.0")
    assert not rate.admit("10.0.39.60")

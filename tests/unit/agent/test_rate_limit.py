"""Limits by address: what counts, what is exempt, how long a block lasts, how much memory it takes."""

from __future__ import annotations

from ctrl_exec_agent.config import RateLimit
from ctrl_exec_agent.rate_limit import EXEMPT_S, PROBE, SILENT, TRUSTED, RateLimits

VOLUME, PROBES = RateLimit(10, 60, 300), RateLimit(3, 600, 3600)


def test_ten_connections_in_a_minute_block_for_five():
    limits = RateLimits(VOLUME, PROBES)
    broken = [limits.note("a", SILENT, float(second)) for second in range(10)]
    assert broken == [""] * 9 + ["volume"]
    assert limits.is_blocked("a", 9.0)
    assert not limits.is_blocked("b", 9.0)
    assert limits.is_blocked("a", 308.9)
    assert not limits.is_blocked("a", 309.0)


def test_the_window_slides():
    limits = RateLimits(VOLUME, PROBES)
    assert not any(limits.note("a", SILENT, 7.0 * turn) for turn in range(100))


def test_three_probes_in_ten_minutes_block_for_an_hour():
    limits = RateLimits(VOLUME, PROBES)
    assert [limits.note("a", PROBE, at) for at in (0.0, 200.0, 400.0)] == ["", "", "probe"]
    assert limits.is_blocked("a", 3999.0)
    assert not limits.is_blocked("a", 4000.0)


def test_a_trusted_serial_lifts_the_block_and_exempts_for_a_day():
    limits = RateLimits(VOLUME, PROBES)
    for at in range(3):
        limits.note("a", PROBE, float(at))
    assert limits.is_blocked("a", 3.0)
    limits.note("a", TRUSTED, 4.0)
    assert not limits.is_blocked("a", 5.0)
    assert not any(limits.note("a", PROBE, 5.0) for _ in range(50))
    after = 4.0 + EXEMPT_S
    assert [limits.note("a", PROBE, after) for _ in range(3)] == ["", "", "probe"]


def test_disabled_limits_block_nobody_and_can_be_switched_on():
    limits = RateLimits(VOLUME, PROBES, is_disabled=True)
    assert not any(limits.note("a", PROBE, 1.0) for _ in range(50))
    limits.configure(VOLUME, RateLimit(1, 10, 10), is_disabled=False)
    assert limits.note("a", PROBE, 2.0) == "probe"
    limits.configure(VOLUME, PROBES, is_disabled=True)
    assert not limits.is_blocked("a", 2.0)


def test_a_flood_of_addresses_takes_bounded_memory():
    limits = RateLimits(RateLimit(1, 60, 300), RateLimit(2, 60, 300))
    for number in range(25_000):
        limits.note(f"a{number}", PROBE, 1.0)
        limits.note(f"b{number}", TRUSTED, 1.0)
    held = [*limits._seen, limits._blocked_until, limits._trusted_until]
    assert all(len(each) <= 10_000 for each in held)
    assert limits.is_blocked("a24999", 2.0)

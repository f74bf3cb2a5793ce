"""`GET /health` over plain HTTP beside the standard library's server and one in C; kept connections."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from bench.load import Load
from bench.row import SKIPPED, Group, Row, absent, compared, measured
from bench.series import Series, at_least, at_most

if TYPE_CHECKING:
    from bench.session import Session


def measure(session: Session) -> Iterable[Row]:
    """Eight and thirty-two clients at once, then one."""
    ours = session.deployment.api("plain").port
    ports = {"ours": ours} | {
        name: session.daemon(session.baseline("stdlib_server", *options), f"stdlib-{name}").announcement()[
            "port"
        ]
        for name, options in (("stdlib", ()), ("stdlib raised", ("--raised",)))
    }
    has_c = True
    try:
        program = session.compiled("baselines/accept_fork.c")
        ports["C"] = session.daemon([str(program)], "accept-fork").announcement()["port"]
    except RuntimeError as error:
        has_c = False
        yield absent("health-c8-c", "to an accept+fork server in C", at_least(0.1), str(error), SKIPPED)
    for concurrency, limit in ((8, 1.5), (32, 2.2)):
        loads = _take_turns(session, ports, concurrency)
        rates = {name: Series(tuple(each.rate for each in found)) for name, found in loads.items()}
        name, what = f"health-c{concurrency}", f"`GET /health`, plain, {concurrency} clients"
        yield compared(
            name,
            f"{what}, requests a second, to the stdlib server as it comes",
            ("ours /s", rates["ours"]),
            ("stdlib /s", rates["stdlib"]),
            at_least(limit),
            floor=session.floor,
        )
        yield compared(
            f"{name}-raised",
            f"{what}, to the stdlib server with raised limits",
            ("ours /s", rates["ours"]),
            ("stdlib raised /s", rates["stdlib raised"]),
            floor=session.floor,
        )
        if has_c:
            yield compared(
                f"{name}-c",
                f"{what}, to an accept+fork server in C",
                ("ours /s", rates["ours"]),
                ("C /s", rates["C"]),
                at_least(0.1),
                floor=session.floor,
            )
        yield from _tail(session, name, what, loads, concurrency)
        failed = Series(tuple(100 * each.failed / (each.failed + each.requests) for each in loads["ours"]))
        yield measured(
            f"{name}-failed",
            f"{what}: answered with an error or not at all",
            ("failed %", failed),
            "%",
            at_most(0),
            note=next((each.last_failure for each in loads["ours"] if each.failed), ""),
        )
    yield from _kept(session)


def _take_turns(session: Session, ports: dict[str, int], concurrency: int) -> dict[str, list[Load]]:
    loads: dict[str, list[Load]] = {name: [] for name in ports}
    for port in ports.values():
        session.generator.run(port, concurrency, seconds=0.3, allows_failures=True)
    for turn in range(session.sizes.rounds):
        for name in sorted(ports, reverse=bool(turn % 2)):
            loads[name].append(
                session.generator.run(
                    ports[name], concurrency, seconds=session.sizes.load_s, allows_failures=True
                )
            )
    return loads


def _tail(
    session: Session, name: str, what: str, loads: dict[str, list[Load]], concurrency: int
) -> Iterable[Row]:
    middle, tail = (_micro(loads["ours"], pick) for pick in (lambda one: one.p50_us, lambda one: one.p99_us))
    others = "; ".join(
        f"{each} {_micro(loads[each], lambda one: one.p99_us).median / 1e3:.1f} ms"
        for each in loads
        if each != "ours"
    )
    yield compared(
        f"{name}-p99",
        f"{what}: p99 to our own p50",
        ("p99 µs", tail),
        ("p50 µs", middle),
        at_most(2.5) if concurrency == 32 else None,
        floor=session.floor,
        note=f"p99 of the others: {others}",
    )


def _micro(loads: list[Load], pick: Callable[[Load], float]) -> Series:
    return Series(tuple(pick(each) for each in loads))


def _kept(session: Session) -> Iterable[Row]:
    port = session.deployment.api("kept", api_keepalive_requests=1_000_000, api_keepalive_idle=30).port
    fresh, kept = [], []
    for _ in range(session.sizes.rounds):
        fresh.append(session.generator.run(port, 1, seconds=session.sizes.load_s / 2).rate)
        kept.append(session.generator.run(port, 1, seconds=session.sizes.load_s / 2, keep_alive=True).rate)
    yield compared(
        "keepalive",
        "requests a second on one kept connection, to new connections",
        ("kept /s", Series(tuple(kept))),
        ("new /s", Series(tuple(fresh))),
        at_least(8),
        floor=session.floor,
    )
    yield measured(
        "health-c1",
        "`GET /health`, plain, one client after another",
        ("ours /s", Series(tuple(fresh))),
        "/s",
        floor=session.floor,
    )


GROUP = Group("health", "GET /health, plain HTTP, beside stdlib and C; kept connections", measure)

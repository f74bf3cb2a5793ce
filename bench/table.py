"""The table of rows as text."""

from __future__ import annotations

from collections.abc import Iterable

from bench.row import Row

_HEADER = ("row", "value", "target", "noise", "status", "what")


def figure(value: float) -> str:
    """The value in three digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cells(row: Row) -> tuple[str, ...]:
    """What the table shows of a row."""
    value = "-" if row.value is None else f"{figure(row.value)} {row.unit}"
    noise = f"±{row.noise:.0%}" if row.value is not None else ""
    what = row.what + (f" ({row.note})" if row.note else "")
    return (row.name, value, str(row.target or ""), noise, row.status, what)


def render(rows: Iterable[Row]) -> str:
    """All rows, a header and a rule above, columns aligned."""
    lines = [_HEADER, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER) - 1)]
    rule = tuple("-" * width for width in widths)
    return "\n".join(_line(line, widths) for line in [lines[0], (*rule, "----"), *lines[1:]])


def _line(line: tuple[str, ...], widths: list[int]) -> str:
    fixed = [
        text.rjust(width) if column in (1, 3) else text.ljust(width)
        for column, (text, width) in enumerate(zip(line, widths, strict=False))
    ]
    return "  ".join([*fixed, line[-1]]).rstrip()

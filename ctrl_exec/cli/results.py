"""How the results of a run look to a person: a header and the output for each host, or gathered.

Owns the text form of core §10 and the exit code of a set of results. Must not know how they came.
"""

from __future__ import annotations

from ctrl_exec.cli import errors
from ctrl_exec.cli.output import GREEN, RED, YELLOW, escaped, plural, printable
from ctrl_exec.common.patterns import Pattern

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.output import Output
    from ctrl_exec.common.messages import HostResult

GATHER_ABOVE = 10
# Colours of a script are let through to a terminal; nothing else that a terminal would act on is.
_COLOUR = Pattern(r"(\x1b\[[0-9;]{0,32}m)")
_NUMBERED = Pattern(r"(.*?)([0-9]+)([^0-9]*)")
_GOOD = ("ok", "accepted")


class ResultPrinter:
    """Prints results in the order asked, each as soon as all before it are known."""

    def __init__(self, output: Output, hosts: Sequence[str], *, is_gathering: bool) -> None:
        self._output = output
        self._waiting = list(hosts)
        self._knows_hosts = bool(hosts)
        self._known: dict[str, HostResult] = {}
        self._is_gathering = is_gathering

    @property
    def knows_hosts(self) -> bool:
        """Whether it was told the hosts beforehand, so that it could print in their order."""
        return self._knows_hosts

    def add(self, result: HostResult) -> None:
        """Take one host's result and print what can be printed."""
        self._known[result.host] = result
        if not self._is_gathering:
            while self._waiting and self._waiting[0] in self._known:
                show_result(self._output, self._known[self._waiting.pop(0)])

    def finish(self, results: Iterable[HostResult]) -> None:
        """Print what is still unprinted; `results` are all of them, in the order asked."""
        if self._is_gathering:
            show_gathered(self._output, results)
            return
        left = set(self._waiting)
        for result in results:
            if result.host in left:
                show_result(self._output, result)
        self._waiting.clear()


def prints_gathered(arguments: Arguments, count: int) -> bool:
    """Whether results of this many hosts are shown once where they are alike."""
    return arguments.flag("gather") or (count > GATHER_ABOVE and not arguments.flag("no-gather"))


def show_results(output: Output, results: Sequence[HostResult], *, is_gathering: bool) -> None:
    """Print all results that there are, in the order asked."""
    printer = ResultPrinter(output, [result.host for result in results], is_gathering=is_gathering)
    printer.finish(results)


def show_result(output: Output, result: HostResult, names: str = "", count: int = 1) -> None:
    """Print one result; `names` stands for `count` hosts that share it."""
    word, colour = verdict(result)
    facts = [output.coloured(word, colour), f"exit:{shown_exit(result)}"]
    if count == 1:
        facts.append(f"{result.rtt_ms}ms")
    else:
        facts.append(plural(count, "host"))
    facts.append(f"req:{printable(result.reqid)}")
    output.line(f"==> {printable(names or result.host)}  [{'  '.join(facts)}]")
    if result.error:
        output.line(f"    ERROR: {printable(result.error)}")
    show_text(output, result.stdout, "")
    show_text(output, result.stderr, "    STDERR: ")
    for name, dropped in zip(("stdout", "stderr"), result.truncated, strict=True):
        if dropped:
            output.line(f"    CUT: {dropped} bytes of {name} were dropped")


def verdict(result: HostResult) -> tuple[str, str]:
    """Give the word and the colour of a result."""
    if result.state == "ok" and result.exit == 0:
        return "OK", GREEN
    if result.is_final:
        return "FAIL", RED
    return result.state.upper(), YELLOW


def shown_exit(result: HostResult) -> str:
    """Give the exit code, or a dash while there is none."""
    has_none = result.exit is None or (not result.is_final and not result.error)
    return "-" if has_none else str(result.exit)


def show_text(output: Output, text: str, prefix: str) -> None:
    """Print output of a script, each line behind the prefix, made harmless for a terminal."""
    if not text:
        return
    if output.stdout.isatty():
        text = harmless(text)
    if prefix:
        text = "".join(prefix + line for line in text.splitlines(keepends=True))
    output.raw(text if text.endswith("\n") else text + "\n")


def harmless(text: str) -> str:
    """Give the text without what a terminal would act on, save line ends, tabs and colours."""
    if text.isprintable():
        return text
    parts = _COLOUR.compiled().split(text.replace("\r\n", "\n"))
    kept = "".join(part if at % 2 else _escape_controls(part) for at, part in enumerate(parts))
    return kept + "\x1b[0m" if len(parts) > 1 else kept


def _escape_controls(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in "\n\t" else escaped(each) for each in text)


def show_gathered(output: Output, results: Iterable[HostResult]) -> None:
    """Print results that are alike once, under one header; the largest group first."""
    groups: dict[tuple[object, ...], list[HostResult]] = {}
    for result in results:
        alike = (result.state, result.exit, result.stdout, result.stderr, result.error, result.truncated)
        groups.setdefault(alike, []).append(result)
    for members in sorted(groups.values(), key=lambda group: (verdict(group[0])[0] != "OK", -len(group))):
        show_result(output, members[0], folded(member.host for member in members), len(members))


def folded(names: Iterable[str]) -> str:
    """Give host names in the short form that commands understand: `db,web[01-03,07]`."""
    series: dict[tuple[str, str], list[str]] = {}
    shown: list[str] = []
    for name in names:
        found = _NUMBERED.fullmatch(name)
        if found and len(found[2]) <= 9:
            series.setdefault((found[1], found[3]), []).append(found[2])
        else:
            shown.append(name)
    for (prefix, suffix), digits in series.items():
        for spans in number_spans(digits):
            shown.append(f"{prefix}{spans}{suffix}" if spans.isdigit() else f"{prefix}[{spans}]{suffix}")
    return ",".join(sorted(shown))


def number_spans(digits: Sequence[str]) -> list[str]:
    """Give numbers as spans, one text a width: a leading zero fixes it, 8, 9, 10 count on without one."""
    padded = {len(each) for each in digits if each.startswith("0")}
    by_width: dict[int, list[int]] = {}
    for each in digits:
        by_width.setdefault(len(each) if len(each) in padded else 0, []).append(int(each))
    return [spans_of(sorted(numbers), width) for width, numbers in by_width.items()]


def spans_of(numbers: Sequence[int], width: int) -> str:
    """Give sorted numbers as `01-03,07`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(
        f"{first:0{width}d}" if first == last else f"{first:0{width}d}-{last:0{width}d}"
        for first, last in spans
    )


def exit_code(results: Iterable[HostResult]) -> int:
    """Give 0 when all succeeded, 5 when nobody could be reached, else 1."""
    states = {"failed" if result.state == "ok" and result.exit else result.state for result in results}
    if states <= set(_GOOD):
        return errors.OK
    return errors.NOBODY if states == {"unreachable"} else errors.FAILED


def summary(results: Sequence[HostResult]) -> str:
    """Give `50 hosts: 48 ok, 2 failed`, states in the order of their first host."""
    return f"{plural(len(results), 'host')}: {counted(results)}"


def counted(results: Iterable[HostResult]) -> str:
    """Give `48 ok, 2 failed`."""
    counts: dict[str, int] = {}
    for result in results:
        counts[result.state] = counts.get(result.state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items())

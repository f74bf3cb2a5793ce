"""What the command line prints: tables, JSON, results, and nothing a terminal would act on."""

from __future__ import annotations

import io
import json

import pytest

from ctrl_exec.cli.output import Output, plural, printable
from ctrl_exec.cli.results import (
    ResultPrinter,
    exit_code,
    folded,
    harmless,
    show_gathered,
    show_result,
    summary,
)
from ctrl_exec.common.messages import HostResult
from ctrl_exec.services.registry import AgentRecord
from ctrl_exec.services.targets import resolve_targets


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def output(
    *, is_json: bool = False, is_quiet: bool = False, tty: bool = False, colour: bool = True
) -> Output:
    stream = Terminal if tty else io.StringIO
    return Output(stream(), stream(), is_json=is_json, is_quiet=is_quiet, is_colour_allowed=colour)


def shown(target: Output) -> str:
    assert isinstance(target.stdout, io.StringIO)
    return target.stdout.getvalue()


def result(host: str = "web-01", **facts: object) -> HostResult:
    found: dict[str, object] = {"script": "deploy", "state": "ok", "exit": 0, "reqid": "4f1d", "rtt_ms": 12}
    return HostResult(host=host, **(found | facts))  # type: ignore[arg-type]


def test_a_table_has_a_header_a_rule_and_a_row_each() -> None:
    """Columns are as wide as their widest cell; no blanks at the end of a line."""
    target = output()
    target.table(("HOST", "SCRIPT"), [("a", "deploy"), ("web-01", "x")])
    assert shown(target) == "HOST    SCRIPT\n------  ------\na       deploy\nweb-01  x\n"


def test_an_empty_table_keeps_its_header() -> None:
    """Nothing running looks like nothing running, not like a failure."""
    target = output()
    target.table(("HOST", "SCRIPT"), [])
    assert shown(target) == "HOST  SCRIPT\n----  ------\n"


def test_json_silences_everything_else() -> None:
    """One document and nothing besides it."""
    target = output(is_json=True)
    target.line("x")
    target.raw("y")
    target.table(("A",), [("b",)])
    target.message("m")
    target.answer({"ok": True, "text": "ä"}, lambda: target.line("never"))
    assert json.loads(shown(target)) == {"ok": True, "text": "ä"}
    assert target.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_quiet_keeps_results_warnings_and_errors() -> None:
    """Only the talk goes."""
    target = output(is_quiet=True)
    target.line("result")
    target.message("talk")
    target.warning("careful")
    target.error("failed")
    assert shown(target) == "result\n"
    assert target.stderr.getvalue() == "warning: careful\nctrl-exec: failed\n"  # type: ignore[attr-defined]


def test_colours_are_for_terminals_that_may_have_them() -> None:
    """NO_COLOR, --no-color and a pipe all mean plain text."""
    assert output(tty=True).coloured("x", "31") == "\x1b[31mx\x1b[0m"
    assert output(tty=True, colour=False).coloured("x", "31") == "x"
    assert output().coloured("x", "31") == "x"


def test_control_characters_are_shown_not_sent() -> None:
    """A host name or tag from a file cannot move the cursor."""
    assert printable("a\x1b[2Jb\n\u202ec\u00e4") == "a\\x1b[2Jb\\n\\u202ecä"


def test_one_result_as_the_contract_draws_it() -> None:
    """Header, error, output, stderr."""
    target = output()
    show_result(target, result(exit=3, state="failed", stdout="out\n", stderr="e1\ne2", error="exit 3"))
    assert shown(target) == (
        "==> web-01  [FAIL  exit:3  12ms  req:4f1d]\n    ERROR: exit 3\nout\n    STDERR: e1\n    STDERR: e2\n"
    )


def test_a_good_result_without_output_is_one_line() -> None:
    """Nothing is made up."""
    target = output()
    show_result(target, result())
    assert shown(target) == "==> web-01  [OK  exit:0  12ms  req:4f1d]\n"


def test_a_host_still_running_is_neither_ok_nor_failed() -> None:
    """Its state is the word, its exit a dash."""
    target = output()
    show_result(target, result(state="running", exit=None))
    assert shown(target) == "==> web-01  [RUNNING  exit:-  12ms  req:4f1d]\n"


def test_dropped_output_is_said() -> None:
    """Nobody takes a part for the whole."""
    target = output()
    show_result(target, result(stdout="x", truncated=(5, 0)))
    assert shown(target).endswith("x\n    CUT: 5 bytes of stdout were dropped\n")


def test_terminals_get_colours_of_scripts_and_no_other_sequence() -> None:
    """Titles, cursor moves and clipboard writes are shown as text; pipes get the bytes as they are."""
    text = "\x1b[31mred\x1b[0m \x1b]52;c;eA==\x07 a\tb\r\n"
    assert harmless(text) == "\x1b[31mred\x1b[0m \\x1b]52;c;eA==\\x07 a\tb\n\x1b[0m"
    plain = output()
    show_result(plain, result(stdout=text))
    assert shown(plain).endswith(text)
    terminal = output(tty=True)
    show_result(terminal, result(stdout=text))
    assert "\x1b]52" not in shown(terminal)


def test_results_are_printed_in_the_order_asked_as_soon_as_they_can_be() -> None:
    """An early answer waits for those before it, not for those behind."""
    target = output()
    printer = ResultPrinter(target, ["a", "b", "c"], is_gathering=False)
    printer.add(result("b"))
    assert shown(target) == ""
    printer.add(result("a"))
    assert [line[4] for line in shown(target).splitlines()] == ["a", "b"]
    printer.finish([result("a"), result("b"), result("c")])
    assert [line[4] for line in shown(target).splitlines()] == ["a", "b", "c"]


def test_like_results_of_many_hosts_are_gathered() -> None:
    """Successes first, the largest group first, names in short form."""
    target = output()
    results = [result(f"web{number:02d}", stdout="v1\n") for number in range(1, 12)]
    results += [result("db", stdout="v2\n"), result("bad", state="failed", exit=1)]
    show_gathered(target, results)
    assert shown(target) == (
        "==> web[01-11]  [OK  exit:0  11 hosts  req:4f1d]\nv1\n"
        "==> db  [OK  exit:0  12ms  req:4f1d]\nv2\n"
        "==> bad  [FAIL  exit:1  12ms  req:4f1d]\n"
    )


NAMES = [
    ["web1"],
    ["web01", "web02", "web03"],
    ["web8", "web9", "web10", "web11"],
    ["web08", "web09", "web10"],
    ["a1b2", "a1b3", "db", "db-7.example.net", "x1-y1", "x2-y1"],
    ["n099", "n100", "n101", "n7"],
    ["1", "2", "003"],
]


class Records:
    """A registry of given names."""

    def __init__(self, names: list[str]) -> None:
        self._records = {name: AgentRecord(hostname=name) for name in names}

    def find(self, name: str) -> AgentRecord | None:
        return self._records.get(name)

    def records(self) -> tuple[AgentRecord, ...]:
        return tuple(self._records.values())


@pytest.mark.parametrize("names", NAMES)
def test_folded_names_are_patterns_that_mean_the_same_hosts(names: list[str]) -> None:
    """What is printed can be given back to `ctrl-exec run`."""
    patterns = split_patterns(folded(names))
    found = resolve_targets(patterns, Records(names), 1000)
    assert found.unknown == ()
    assert sorted(host.name for host in found.hosts) == sorted(names)


def split_patterns(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([("ok", 0), ("ok", 0)], 0),
        ([("accepted", None)], 0),
        ([("ok", 0), ("failed", 1)], 1),
        ([("ok", 7)], 1),
        ([("unreachable", -1), ("unreachable", -1)], 5),
        ([("unreachable", -1), ("ok", 0)], 1),
        ([("unreachable", -1), ("refused", -1)], 1),
        ([("timeout", -1)], 1),
        ([("running", None)], 1),
    ],
)
def test_exit_codes_of_results(states: list[tuple[str, int | None]], expected: int) -> None:
    """0 all succeeded, 5 nobody was reached, 1 anything else."""
    assert exit_code([result(state=state, exit=code) for state, code in states]) == expected


def test_a_summary_counts_states() -> None:
    """The first line of `status`."""
    assert summary([result(), result(state="lost"), result()]) == "3 hosts: 2 ok, 1 lost"
    assert plural(1, "host") == "1 host"

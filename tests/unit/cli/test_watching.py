"""How a run looks while it goes on: whole lines behind names, the table of hosts, silence noticed."""

from __future__ import annotations

import io
from typing import Any

import pytest

from ctrl_exec.cli.arguments import Arguments
from ctrl_exec.cli.batches import batch_lines
from ctrl_exec.cli.output import Output
from ctrl_exec.cli.progress import Progress
from ctrl_exec.cli.watching import Silence, Watcher, show_event
from ctrl_exec.cli.wish import run_wish
from ctrl_exec.common.errors import UsageError
from ctrl_exec.common.messages import HostResult
from tests.support.polling import eventually


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def watched(*events: dict[str, Any], **settings: Any) -> tuple[str, str, Watcher]:
    """What a watcher prints on (stdout, stderr) of these events."""
    stdout, stderr = settings.pop("stdout", None) or io.StringIO(), io.StringIO()
    watcher = Watcher(Output(stdout, stderr, **settings), shows_output=True)
    for event in events:
        watcher.take(event)
    watcher.close()
    return stdout.getvalue(), stderr.getvalue(), watcher


def start(*hosts: str) -> dict[str, Any]:
    return {"id": 0, "event": "start", "hosts": list(hosts)}


def out(host: str, text: str, stream: str = "stdout") -> dict[str, Any]:
    return {"id": 1, "event": stream, "host": host, "text": text}


def ended(host: str, state: str = "ok", code: int = 0) -> dict[str, Any]:
    return {
        "id": 9, "event": "exit", "host": host, "script": "x", "state": state, "exit": code, "rtt": "3ms", "reqid": "ab" * 8,
    }  # fmt: skip


def test_lines_are_whole_and_stand_behind_their_host() -> None:
    """Pieces of two hosts in any order; an unfinished line waits, at the latest for its host's end."""
    stdout, stderr, _ = watched(
        start("a", "long"), out("a", "on"), out("long", "x\nhalf"), out("a", "e\ntwo\n"), out("a", "no end"),
        out("a", "bad\n", "stderr"), ended("a"), out("long", " line"),
    )  # fmt: skip
    assert stdout == "long: x\na:    one\na:    two\na:    no end\nlong: half line\n"
    assert stderr == "a:    bad\n"


def test_one_host_has_its_output_alone() -> None:
    """Nothing in front of it, and no verdict where all is well."""
    stdout, stderr, watcher = watched(start("a"), out("a", "1\n2\n"), out("a", "w\n", "stderr"), ended("a"))
    assert (stdout, stderr) == ("1\n2\n", "w\n")
    watcher.show_verdicts()
    assert watcher.results["a"].exit == 0


def test_verdicts_are_gathered_and_tell_what_failed() -> None:
    stdout = io.StringIO()
    *_, watcher = watched(
        start("n1", "n2", "b"), ended("n1"), ended("n2"), ended("b", "failed", 3), stdout=stdout
    )
    watcher.show_verdicts()
    assert stdout.getvalue() == (
        f"==> n[1-2]  [OK  exit:0  2 hosts  req:{'ab' * 8}]\n==> b  [FAIL  exit:3  3ms  req:{'ab' * 8}]\n"
    )


def test_an_endless_line_is_not_held_back_for_ever() -> None:
    stdout, _, _ = watched(start("a"), out("a", "x" * 70000))
    assert stdout == "x" * 70000 + "\n"


def test_a_terminal_is_not_written_to_by_the_script_itself() -> None:
    stdout, _, _ = watched(start("a"), out("a", "\x1b]0;title\x07x\n"), stdout=Terminal())
    assert stdout == "\\x1b]0;title\\x07x\n"


def test_json_shows_no_line() -> None:
    assert watched(start("a"), out("a", "x\n"), ended("a"), is_json=True)[:2] == ("", "")


def test_notes_and_batches_are_messages() -> None:
    about = start("n1", "n2") | {"notes": {"n1": "older agent: its output comes at the end"}}
    batch = {"id": 2, "event": "batch", "batch": 2, "hosts": ["n1", "n2"]}
    stdout, stderr, _ = watched(about, batch)
    assert (stdout, stderr) == ("", "n1: older agent: its output comes at the end\nbatch 2: n[1-2]\n")


def test_an_older_agents_late_output_is_remarked_once() -> None:
    """At the start where it was known, else with its last word; not for one whose output came in time."""
    note = "older agent: its output came at the end"
    about = start("n1", "n2", "n3") | {"notes": {"n1": "older agent: its output comes at the end"}}
    ends = [ended("n1") | {"note": note}, ended("n2") | {"note": note}, ended("n3")]
    stdout, stderr, watcher = watched(about, {"id": 3, "event": "start", "host": "n3"}, *ends)
    assert stdout == ""
    assert stderr == f"n1: older agent: its output comes at the end\nn2: {note}\n"
    assert watcher.hosts == ("n1", "n2", "n3")


def rollout(*begun: bool, complete: bool = False, error: str = "", **states: str) -> list[str]:
    """The lines of a rollout of a1, a2 | b1 | c1."""
    hosts = (("a1", "a2"), ("b1",), ("c1",))
    results = [
        HostResult(host, "job", states.get(host, "pending"), error=error if host == "c1" else "")
        for batch in hosts
        for host in batch
    ]
    batches = [{"hosts": list(each), "begun": is_begun} for each, is_begun in zip(hosts, begun, strict=True)]
    return list(batch_lines({"batches": batches, "complete": complete}, results))


def test_batches_are_told_with_where_they_stand() -> None:
    """Under way, between two of them, and when they have come to a stop."""
    assert rollout(True, False, False, a1="ok", a2="running") == [
        "batch 1 of 3  running  a[1-2]: 1 ok, 1 running",
        "batch 2 of 3  waiting  b1",
        "batch 3 of 3  waiting  c1",
    ]
    assert rollout(True, False, False, a1="ok", a2="failed") == [
        "batch 1 of 3  done     a[1-2]: 1 ok, 1 failed",
        "batch 2 of 3  pausing  b1",
        "batch 3 of 3  waiting  c1",
    ]
    error = "not started: 1 host failed, at most 0 may"
    ends = {"a1": "ok", "a2": "ok", "b1": "failed", "c1": "cancelled"}
    assert rollout(True, True, False, complete=True, error=error, **ends) == [
        "batch 1 of 3  done     a[1-2]: 2 ok",
        "batch 2 of 3  done     b1: 1 failed",
        "batch 3 of 3  stopped  c1",
        f"stopped: {error}",
    ]
    ends["c1"] = "ok"
    assert rollout(True, True, True, complete=True, **ends)[2:] == ["batch 3 of 3  done     c1: 1 ok"]


def test_the_table_shows_who_is_waited_for() -> None:
    """A row each with what it last said; the finished are counted; what does not fit is a number."""
    progress = Progress(Output(io.StringIO(), io.StringIO()), ())
    runs = {"id": 1, "event": "start", "host": "c"}
    for event in (start("a", "bb", "c", "d"), runs):
        show_event(progress, event)
    assert progress.rows(9)[2] == "c   running"
    for event in (start("a", "bb", "c", "d"), out("bb", "1\nlast\n"), ended("a"), ended("c", "failed", 1)):
        show_event(progress, event)
    assert progress.rows(9) == ["bb  running  last", "d   pending"]
    assert progress.text(3.2) == "[############------------]  2/4  1 ok, 1 failed  3s"
    show_event(progress, start("a", "b", "c", "d"))
    assert progress.rows(2) == ["a  pending", "… and 3 more"]
    assert progress.rows(0) == []


def test_silence_of_all_is_noticed_and_explained() -> None:
    """Not of one among others that speak; once."""
    told: list[int] = []
    silence = Silence(0.05, lambda: told.append(1))
    silence.check()
    silence.note(start("a", "b"))
    silence.check()
    assert told == []
    silence.note(ended("a"))

    def is_told() -> bool:
        silence.check()
        return bool(told)

    eventually(is_told, what="the silence is noticed")
    silence.check()
    assert told == [1]
    explained = silence.explained([{"host": "a"}, {"host": "b"}])
    assert explained == [{"host": "a"}, {"host": "b", "error": "read timeout after 0.05s"}]


def wish(**options: str) -> Any:
    given = {name.replace("_", "-"): (text,) for name, text in options.items()}
    return run_wish(Arguments(given, ("a", "deploy")), ("a",))


def test_batches_as_the_api_takes_them() -> None:
    """A number or a percentage; a canary alone is followed by all the others."""
    assert wish().batch is None
    assert wish(batch="10%", max_failures="2", pause="1m").body()["batch"] == {
        "size": "10%", "max_failures": 2, "pause": 60.0, "canary": 0,
    }  # fmt: skip
    assert wish(canary="1").batch == {"size": "100%", "max_failures": 0, "pause": 0, "canary": 1}
    assert wish(batch="3").request().batch.size == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": "0"}, "--batch: expected a number of hosts or a percentage such as 10%, not '0'"),
        ({"batch": "101%"}, "--batch: expected a number of hosts or a percentage such as 10%, not '101%'"),
        ({"batch": "%"}, "--batch: expected a number of hosts or a percentage such as 10%, not '%'"),
        ({"pause": "5"}, "--pause goes with --batch or --canary"),
        ({"follow": "", "async": ""}, "--follow shows text as it comes: it goes neither with --async nor with base64"),
    ],
)  # fmt: skip
def test_wrong_wishes_are_named(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        wish(**options)
    assert str(caught.value) == words

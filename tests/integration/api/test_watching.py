"""Watching a run over HTTP, resuming where a stream broke, ending the run; on a live API with real agents."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.contract import check_against
from tests.support.fleet import Fleet
from tests.support.polling import eventually

TALK = """\
#!/bin/sh
number=0
while [ ! -e "$1" ]; do
    number=$((number + 1))
    echo "line $number"
    [ $((number % 5)) = 0 ] && echo "error $number" >&2
    sleep 0.02
done
echo last
"""
STUBBORN = "#!/bin/sh\ntrap '' TERM\necho begun\nwhile :; do sleep 1; done\n"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two agents with a script that talks and one that does not want to end."""
    made = Fleet(tmp_path_factory.mktemp("live"), settings={"api_drain": 1, "api_max_long": 3})
    try:
        made.add("host-a", "host-b")
        for agent in made.agents.values():
            agent.script("talk", TALK)
            agent.script("stubborn", STUBBORN)
            assert agent.running is not None
            agent.running.stop()
            made.start_agent(agent)
        made.start_api()
        yield made
    finally:
        made.close()


class Stream:
    """A stream that is being read, as soon as the streams left before it have made room; a context manager."""

    def __init__(self, fleet: Fleet, reqid: str, *, query: str = "", **headers: str) -> None:
        named = {name.replace("_", "-"): text for name, text in headers.items()}

        def ask() -> bool:
            self._connection = http.client.HTTPConnection("127.0.0.1", fleet.api_port, timeout=60)
            self._connection.request("GET", f"/runs/{reqid}/output{query}", headers=named)
            self.answer = self._connection.getresponse()
            if self.answer.status == 503:
                self.__exit__()
            return self.answer.status != 503

        eventually(ask, what="there is room for the stream")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()
        self._connection.close()

    def lines(self) -> Iterator[dict[str, Any]]:
        """The events of JSON lines, until the stream ends or breaks; a torn last line is none."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            while line := self.answer.readline():
                if not line.endswith(b"\n"):
                    return
                event = json.loads(line)
                check_against("/components/schemas/RunEvent", event)
                yield event

    def until(self, kind: str) -> list[dict[str, Any]]:
        """The events up to the first of that kind."""
        found = []
        for event in self.lines():
            found.append(event)
            if event["event"] == kind:
                return found
        raise AssertionError(found)


def events_of(text: str) -> list[dict[str, Any]]:
    """What a browser makes of Server-Sent Events."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(
            line.partition(": ")[::2] for line in block.split("\n") if line and not line.startswith(":")
        )
        if "data" in fields:
            found.append({"id": int(fields["id"]), "event": fields["event"]} | json.loads(fields["data"]))
    return found


def start(fleet: Fleet, script: str, *args: object, **body: object) -> str:
    made = {
        "hosts": ["host-a", "host-b"],
        "script": script,
        "args": [str(each) for each in args],
        "async": True,
    }
    answer = fleet.http("POST", "/run", made | body)
    assert answer.status == 202, answer.body
    return str(answer.json["reqid"])


def ended(fleet: Fleet, reqid: str) -> dict[str, Any]:
    """The run's record once it is complete."""

    def probe() -> dict[str, Any] | None:
        shown = fleet.http("GET", f"/status/{reqid}").json
        return shown if shown["complete"] else None

    found = eventually(probe)
    assert found is not None
    return found


def output_of(events: list[dict[str, Any]], host: str, stream: str = "stdout") -> str:
    return "".join(each["text"] for each in events if each["event"] == stream and each["host"] == host)


def check_whole(fleet: Fleet, reqid: str, events: list[dict[str, Any]]) -> None:
    """The events tell all that is on record, once each, in order."""
    begun = [each.get("host", "") for each in events if each["event"] == "start"]
    assert begun[0] == "", "the run's own beginning comes first"
    assert len(begun) == len(set(begun)), "and each host's at most once"
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "end"
    numbers = [each["id"] for each in events[:-1]]
    assert numbers == sorted(set(numbers))
    for result in ended(fleet, reqid)["results"]:
        assert output_of(events, result["host"]) == result["stdout"]
        assert output_of(events, result["host"], "stderr") == result["stderr"]
        (last,) = [each for each in events if each["event"] == "exit" and each["host"] == result["host"]]
        assert (last["exit"], last["state"]) == (result["exit"], result["state"])


def test_output_comes_while_the_script_runs(live: Fleet, gate: Path) -> None:
    """As JSON lines: the start, what each host prints, how it ended, the end."""
    reqid = start(live, "talk", gate)
    with Stream(live, reqid) as stream:
        assert stream.answer.headers["Content-Type"] == "application/x-ndjson"
        events = stream.until("stderr")
        assert not live.http("GET", f"/status/{reqid}").json["complete"]
        gate.touch()
        events += stream.until("end")
        assert list(stream.lines()) == []
    assert events[0]["script"] == "talk"
    assert events[0]["hosts"] == ["host-a", "host-b"]
    assert events[-1]["counts"] == {"ok": 2}
    check_whole(live, reqid, events)


def test_as_server_sent_events(live: Fleet, gate: Path) -> None:
    """The same events, for browsers; of a finished run all at once."""
    reqid = start(live, "talk", gate)
    with Stream(live, reqid, Accept="text/event-stream") as stream:
        assert stream.answer.headers["Content-Type"] == "text/event-stream"
        assert stream.answer.readline() == b"retry: 1000\n"
        gate.touch()
        events = events_of(stream.answer.read().decode())
    check_whole(live, reqid, events)
    answer = live.http("GET", f"/runs/{reqid}/output", headers={"Accept": "text/event-stream"})
    again = events_of(answer.body.decode())
    assert output_of(again, "host-a") == output_of(events, "host-a")
    check_whole(live, reqid, again)


def test_a_stream_goes_on_where_it_broke(live: Fleet, gate: Path) -> None:
    """By `?after=` or `Last-Event-ID`, again and again, and after the end of the run too: nothing twice."""
    reqid = start(live, "talk", gate)
    events: list[dict[str, Any]] = []
    for turn in range(6):
        place = str(events[-1]["id"]) if events else ""
        resumed = {"query": f"?after={place}"} if turn % 2 else {"Last_Event_ID": place}
        with Stream(live, reqid, **(resumed if place else {})) as stream:
            for event in stream.lines():
                events.append(event)
                if len(events) % 10 == 0:
                    break
    gate.touch()
    ended(live, reqid)
    with Stream(live, reqid, query=f"?after={events[-1]['id']}") as stream:
        events += stream.until("end")
    check_whole(live, reqid, events)


def test_whoever_asks_again_after_the_end_is_told_of_the_end(live: Fleet, gate: Path) -> None:
    """And of nothing else: it may have been lost on its way."""
    gate.touch()
    reqid = start(live, "talk", gate)
    ended(live, reqid)
    lines = live.http("GET", f"/runs/{reqid}/output").body.splitlines()
    place = json.loads(lines[-1])["id"]
    assert live.http("GET", f"/runs/{reqid}/output?after={place}").body.splitlines() == lines[-1:]


@pytest.mark.parametrize("query", ["after=-1", "after=x", "after=", "after=1&after=2", "before=1"])
def test_no_place_in_a_run(live: Fleet, query: str) -> None:
    assert live.http("GET", f"/runs/{'a' * 16}/output?{query}").status == 400
    assert live.http("GET", f"/runs/{'a' * 16}/output", headers={"Last-Event-ID": "x"}).status == 400


def test_runs_that_are_none(live: Fleet) -> None:
    """Unknown, or no id at all: 404, for output and cancel."""
    for reqid in ("a" * 16, "nothing", "..%2f..%2fetc"):
        assert live.http("GET", f"/runs/{reqid}/output").status == 404
        assert live.http("POST", f"/runs/{reqid}/cancel").status == 404


def test_methods(live: Fleet, gate: Path) -> None:
    gate.touch()
    reqid = start(live, "talk", gate)
    ended(live, reqid)
    assert live.http("HEAD", f"/runs/{reqid}/output").headers["Content-Type"] == "application/x-ndjson"
    assert live.http("OPTIONS", f"/runs/{reqid}/output").headers["Allow"] == "GET, HEAD, OPTIONS"
    assert live.http("POST", f"/runs/{reqid}/output", {}).status == 405
    assert live.http("GET", f"/runs/{reqid}/cancel").headers["Allow"] == "OPTIONS, POST"
    assert live.http("POST", f"/runs/{reqid}/cancel", {"hosts": ["host-a"]}).status == 400


def test_clients_of_http_1_0(live: Fleet, gate: Path) -> None:
    """They get the same lines, not chunked, up to the end of the connection."""
    gate.touch()
    reqid = start(live, "talk", gate)
    ended(live, reqid)
    with socket.create_connection(("127.0.0.1", live.api_port), 60) as sock, sock.makefile("rb") as answer:
        sock.sendall(f"GET /runs/{reqid}/output HTTP/1.0\r\n\r\n".encode())
        head, _, body = answer.read().partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    check_whole(live, reqid, [json.loads(line) for line in body.splitlines()])


def test_streams_are_long_requests(live: Fleet, gate: Path) -> None:
    """Beyond their number the next one is told to come back; one whose client leaves makes room at once."""
    reqid = start(live, "talk", gate)
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(Stream(live, reqid)) for _ in range(3)]
        for each in streams:
            assert each.answer.status == 200
            next(each.lines())
        refused = live.http("GET", f"/runs/{reqid}/output")
        assert (refused.status, refused.json["error"]) == (503, "service unavailable")
        streams[0].__exit__()
        fresh = eventually(lambda: open_stream(live, reqid))
        assert fresh is not None
        fresh.__exit__()
    gate.touch()
    ended(live, reqid)


def open_stream(fleet: Fleet, reqid: str) -> Stream | None:
    stream = Stream(fleet, reqid)
    if stream.answer.status == 200:
        return stream
    stream.__exit__()
    return None


def test_the_api_is_killed_and_started_again(live: Fleet, gate: Path) -> None:
    """Parent and child of the stream: whoever resumes misses nothing and gets nothing twice."""
    reqid = start(live, "talk", gate)
    events: list[dict[str, Any]] = []
    for _ in range(2):
        place = f"?after={events[-1]['id']}" if events else ""
        with Stream(live, reqid, query=place) as stream:
            for event in stream.lines():
                events.append(event)
                if len(events) % 12 == 0:
                    break
            assert live.api is not None
            children = Path(f"/proc/{live.api.pid}/task/{live.api.pid}/children").read_text().split()
            for pid in [live.api.pid, *map(int, children)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            live.api.process.wait(60)
            events += stream.lines()  # what was on its way
        live.start_api()
    with Stream(live, reqid, query=f"?after={events[-1]['id']}") as stream:
        gate.touch()
        events += stream.until("end")
    check_whole(live, reqid, events)


def test_a_drain_ends_streams_and_not_runs(live: Fleet, gate: Path) -> None:
    """The stream ends properly, without `end`; the run goes on, and so does whoever asks again."""
    reqid = start(live, "talk", gate)
    with Stream(live, reqid) as stream:
        events = [next(stream.lines())]
        assert live.api is not None
        live.api.process.terminate()
        events += stream.lines()
        live.api.process.wait(60)
    assert events[-1]["event"] not in ("end", "exit")
    live.start_api()
    with Stream(live, reqid, query=f"?after={events[-1]['id']}") as stream:
        gate.touch()
        events += stream.until("end")
    check_whole(live, reqid, events)


def test_cancel_ends_what_runs(live: Fleet) -> None:
    """Host by host; also a script that does not listen to TERM. A second cancel finds it over."""
    reqid = start(live, "stubborn")
    with Stream(live, reqid) as stream:
        stream.until("stdout")
        report: Any = live.http("POST", f"/runs/{reqid}/cancel").json
        # what the agents say of the cancel may be known before the scripts' results are
        assert [(each["host"], each["ended"]) for each in report["hosts"]] == [
            ("host-a", True),
            ("host-b", True),
        ]
        assert stream.until("end")[-1]["state"] == "cancelled"
    again: Any = live.http("POST", f"/runs/{reqid}/cancel", {"username": "alice"}).json
    assert (again["state"], again["complete"]) == ("cancelled", True)
    assert [(each["state"], each["ended"]) for each in again["hosts"]] == [("cancelled", True)] * 2
    record = ended(live, reqid)
    assert [(each["exit"], each["error"], each["stdout"]) for each in record["results"]] == [
        (126, "cancelled", "begun\n"), (126, "cancelled", "begun\n"),
    ]  # fmt: skip


def test_a_rollout_stops_at_the_first_failure(live: Fleet) -> None:
    """A canary first; what was not begun is cancelled, and the record tells which batch a host was in."""
    body = {"hosts": ["host-a", "host-b"], "script": "fail", "batch": {"canary": 1}}
    answer = live.http("POST", "/run", body)
    results: Any = answer.json["results"]
    assert [each["state"] for each in results] == ["failed", "cancelled"]
    assert answer.json["batches"] == [
        {"hosts": ["host-a"], "begun": True},
        {"hosts": ["host-b"], "begun": False},
    ]
    kept = live.http("GET", f"/status/{answer.json['reqid']}").json
    assert kept["batches"] == answer.json["batches"]
    whole: Any = live.http(
        "POST", "/run", body | {"batch": {"size": "50%", "max_failures": 1, "pause": 0.0}}
    ).json
    assert [each["state"] for each in whole["results"]] == ["failed", "failed"]


@pytest.mark.parametrize(
    "batch",
    [
        {}, [], "20%", 5, {"size": 0}, {"size": "0%"}, {"size": "101%"}, {"size": "5"}, {"size": True}, {"size": 1.5},
        {"size": 1, "max_failures": -1}, {"size": 1, "pause": -1}, {"size": 1, "pause": "5"}, {"size": 1, "canary": "10%"},
        {"size": 1, "color": "red"}, {"max_failures": 1}, {"size": None}, {"size": 1, "pause": True}, {"canary": -1},
    ],
    ids=str,
)  # fmt: skip
def test_no_rollout(live: Fleet, batch: object) -> None:
    answer = live.http("POST", "/run", {"hosts": ["host-a"], "script": "hello", "batch": batch})
    assert answer.status == 400
    assert "batch" in str(answer.json["detail"])

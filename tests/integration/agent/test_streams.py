"""Live output of real agents: lines as they are printed, attached to again, and whole whatever breaks."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import signal
import socket
import struct
import sys
from pathlib import Path

import pytest

from tests.support.agents import AgentHost, Streaming, receive, send
from tests.support.polling import eventually
from tests.support.processes import children_of

REQID = "00112233aabbccdd"
MANY = 12 << 20  # more than the buffers of a connection hold


def order(script: str, **more: object) -> dict[str, object]:
    """The body of a streamed run."""
    return {"script": script, "args": [], "reqid": REQID, "stream": True} | more


def stepping_script(host: AgentHost, name: str = "steps") -> Path:
    """A script that prints one line for each line that is written to the file that is returned; `end` ends it."""
    steps = host.directory / "steps-fifo"
    os.mkfifo(steps)
    host.script(
        name, f"while read line; do [ $line = end ] && exit 3; echo $line; echo err-$line >&2; done < {steps}"
    )
    return steps


def carrier_of(host: AgentHost) -> int:
    """The pid of the agent's child that carries the run."""
    record = json.loads((host.state / f"runs/main/{REQID}.json").read_text())
    return int(record["carrier"].partition("-")[0])


def test_lines_come_while_the_script_runs_and_the_last_one_is_the_result(host: AgentHost):
    steps = stepping_script(host)
    with host.start(), host.streaming_of(steps, order("steps")) as (stream, fifo):
        assert stream.headers["content-type"] == "application/x-ndjson"
        lines = stream.lines()
        for number, word in enumerate(("one", "zwö", "three"), start=1):
            if number > 1:
                fifo.write(f"{word}\n")
            for _ in (1, 2):
                next(lines)
            assert stream.texts["stdout"].endswith(f"{word}\n")
            assert stream.texts["stderr"].endswith(f"err-{word}\n")
            assert stream.at == {name: len(text.encode()) for name, text in stream.texts.items()}
        fifo.write("end\n")
        result = stream.finish()
        assert stream.last == {
            "script": "steps", "exit": 3, "stdout": "", "stderr": "", "reqid": REQID, "from": {"stdout": 15, "stderr": 27},
        }  # fmt: skip
        assert result["stdout"] == "one\nzwö\nthree\n"
        assert host.result(REQID).json()["stdout"] == "one\nzwö\nthree\n"


def test_a_silent_script_is_said_to_run(host: AgentHost):
    """Before it has printed anything, to the peer that ordered it and to others; once on each connection."""
    steps = stepping_script(host)
    opening = {"stream": "stdout", "text": "", "at": 0}
    with host.start(), host.connect() as connection:
        send(connection, "POST", "/run", order("steps"))
        with connection.makefile("rb") as file, steps.open("w", buffering=1) as fifo:
            stream = Streaming(connection, file)  # whose head comes while nothing was printed
            with host.streaming("GET", f"/result/{REQID}?stream=1") as again:
                fifo.write("one\n")
                for each in (stream, again):
                    next(each.lines())
                fifo.write("end\n")
                for each in (stream, again):
                    assert each.finish()["stdout"] == "one\n"
                    assert each.openings == [opening]


def test_an_order_that_comes_again_is_answered_in_lines_from_the_record(agent: AgentHost):
    agent.script("hello", "echo hi; exit 4")
    agent.reload()
    found = []
    for _ in range(2):
        answer = agent.ask("POST", "/run", order("hello"))
        assert answer.headers["content-type"] == "application/x-ndjson"
        found.append(json.loads(answer.body))
    assert [(each["exit"], each["stdout"]) for each in found] == [(4, "hi\n")] * 2


def test_a_script_that_ends_at_once_gives_one_line_and_the_connection_stays(agent: AgentHost):
    agent.script("hello", "echo hi; echo oh >&2; exit 4")
    agent.reload()
    with agent.connect() as connection:
        for reqid in (REQID, "ffffffffffffffff"):
            send(connection, "POST", "/run", order("hello", reqid=reqid))
            answer = receive(connection)
            assert answer.headers["content-type"] == "application/x-ndjson"
            assert answer.headers["connection"] == "keep-alive"
            assert json.loads(answer.body) == {
                "script": "hello", "exit": 4, "stdout": "hi\n", "stderr": "oh\n", "reqid": reqid,
            }  # fmt: skip


def test_a_connection_is_kept_after_a_streamed_run(host: AgentHost):
    host.script("slow", "echo a; sleep 0.2; echo b")
    with host.start(), host.connect() as connection:
        for reqid in (REQID, "ffffffffffffffff"):
            send(connection, "POST", "/run", order("slow", reqid=reqid))
            with connection.makefile("rb") as file:
                assert Streaming(connection, file).finish()["stdout"] == "a\nb\n"
        send(connection, "POST", "/ping", {"reqid": REQID})
        assert receive(connection).status == 200


@pytest.mark.parametrize("encoding", ["utf-8", "base64"])
def test_much_output_of_any_bytes_is_whole_and_in_order(host: AgentHost, encoding: str):
    # whole characters before the byte where it is asked for again: no half one is decoded otherwise then
    content = os.urandom(299_996) + b"\n" * 4 + os.urandom(400_001) + "zwölf Boxkämpfer ".encode() * 20_000
    (host.directory / "content").write_bytes(content)
    host.script("bytes", f"cat {host.directory}/content; head -c 100000 {host.directory}/content >&2")
    expected = (
        (lambda raw: base64.b64encode(raw).decode())
        if encoding == "base64"
        else (lambda raw: raw.decode("utf-8", "replace"))
    )
    with host.start(), host.streaming("POST", "/run", order("bytes", encoding=encoding)) as stream:
        result = stream.finish()
        assert (result["exit"], result["stdout"] == expected(content)) == (0, True)
        assert result["stderr"] == expected(content[:100_000])
        record = host.result(REQID).json()
        assert (record["stdout"] == result["stdout"], record["stderr"] == result["stderr"]) == (True, True)
        with host.streaming("GET", f"/result/{REQID}?stream=1&stdout=300000") as again:
            assert expected(content).endswith(again.finish()["stdout"])


def test_output_beyond_the_limit_is_counted_also_when_it_is_streamed(host: AgentHost):
    host.configure("max_output = 100000\n")
    host.script("flood", "head -c 250000 /dev/zero | tr '\\0' x; sleep 0.1")
    with host.start(), host.streaming("POST", "/run", order("flood")) as stream:
        result = stream.finish()
    assert (len(result["stdout"]), result["truncated"]) == (100_000, {"stdout": 150_000, "stderr": 0})


def test_refusals_are_what_they_are_without_streaming(host: AgentHost):
    with host.start():
        assert host.ask("POST", "/run", order("none")).json() == {
            "script": "none", "exit": -1, "error": "script not permitted", "reqid": REQID,
        }  # fmt: skip


def test_when_the_connection_breaks_the_script_goes_on_and_lines_are_fetched_from_where_one_was(
    host: AgentHost,
):
    steps = stepping_script(host)
    with host.start():
        with host.streaming_of(steps, order("steps")) as (stream, fifo):
            lines = stream.lines()
            next(lines), next(lines)
            stream.connection.shutdown(socket.SHUT_RDWR)
            fifo.write("two\nthree\n")
            at = stream.at
            with host.streaming(
                "GET", f"/result/{REQID}?stream=1&stdout={at['stdout']}&stderr={at['stderr']}"
            ) as again:
                found = again.lines()
                while again.texts["stdout"].count("\n") < 2 or again.texts["stderr"].count("\n") < 2:
                    next(found)
                fifo.write("four\nend\n")
                result = again.finish()
        assert result["stdout"] == "two\nthree\nfour\n"
        assert result["stderr"] == "err-two\nerr-three\nerr-four\n"
        assert (result["status"], result["exit"]) == ("done", 3)
        assert host.result(REQID).json()["stdout"] == "one\ntwo\nthree\nfour\n"


def test_several_follow_one_run_from_different_places(host: AgentHost):
    steps = stepping_script(host)
    with host.start(), host.streaming_of(steps, order("steps")) as (stream, fifo):
        lines = stream.lines()
        next(lines), next(lines)
        with (
            host.streaming("GET", f"/result/{REQID}?stream=1") as first,
            host.streaming("GET", f"/result/{REQID}?stream=1&stdout=4") as second,
        ):
            fifo.write("two\nend\n")
            assert first.finish()["stdout"] == "one\ntwo\n"
            assert second.finish()["stdout"] == "two\n"
        assert stream.finish()["stdout"] == "one\ntwo\n"


def test_when_the_agents_child_is_killed_the_run_is_lost_with_the_lines_so_far(host: AgentHost):
    host.script("slow", f"echo $$ > {host.directory}/pid; echo one; echo two >&2; sleep 60")
    with host.start():
        with host.streaming("POST", "/run", order("slow")) as stream:
            lines = stream.lines()
            next(lines), next(lines)
            os.kill(carrier_of(host), signal.SIGKILL)
            with pytest.raises((ConnectionError, OSError)):
                next(lines)
        try:
            with host.streaming("GET", f"/result/{REQID}?stream=1") as again:
                result = again.finish()
            assert (result["status"], result["stdout"], result["stderr"]) == ("lost", "one\n", "two\n")
            plain = host.result(REQID).json()
            assert (plain["status"], plain["stdout"], plain["stderr"]) == ("lost", "one\n", "two\n")
            assert host.cancel(REQID).json() == {"status": "ok", "ended": True, "reqid": REQID}
        finally:
            pid = int((host.directory / "pid").read_text())
            eventually(lambda: not Path(f"/proc/{pid}/fd").exists())


def test_a_slow_reader_does_not_slow_the_script(host: AgentHost):
    done = host.directory / "done"
    host.configure(f"max_output = {MANY}\n")
    host.script("flood", f"head -c {MANY} /dev/zero | tr '\\0' x; touch {done}")
    with host.start(), host.streaming("POST", "/run", order("flood")) as stream:
        eventually(done.exists)
        eventually(lambda: host.result(REQID).json()["status"] == "done")
        total = sum(len(line["text"]) for line in stream.lines_unkept())
        assert total + len(stream.last["stdout"]) == MANY


def test_a_run_that_is_not_streamed_can_be_followed_too(host: AgentHost):
    steps = stepping_script(host)
    body = order("steps", stream=False) | {"async": True}
    with host.start():
        assert host.ask("POST", "/run", body).status == 202
        with steps.open("w", buffering=1) as fifo:
            fifo.write("one\n")
            with host.streaming("GET", f"/result/{REQID}?stream=1") as stream:
                next(stream.lines())
                fifo.write("end\n")
                assert stream.finish()["stdout"] == "one\n"


def test_what_cannot_be_followed_is_refused(agent: AgentHost):
    assert agent.ask("GET", f"/result/{REQID}?stream=1").json() == {"status": "unknown", "reqid": REQID}
    for wrong in ("x", "-1", "1e3", "9" * 16, "%C2%B2"):
        assert agent.ask("GET", f"/result/{REQID}?stream=1&stdout={wrong}").status == 400
    other = agent.ca.dispatcher("other")
    agent.trust(other.serial, "other")
    agent.script("hello", "echo hi")
    agent.reload()
    agent.run("hello", reqid=REQID)
    assert agent.ask("GET", f"/result/{REQID}?stream=1", leaf=other).status == 404


@pytest.mark.parametrize("size", [20 << 20, pytest.param(100 << 20, marks=pytest.mark.long)])
def test_the_agents_processes_stay_small_however_much_is_printed(host: AgentHost, size: int):
    host.configure(f"max_output = {size}\n")
    host.script("flood", f"head -c {size} /dev/zero; sleep 0.1")
    with host.start(), host.streaming("POST", "/run", order("flood")) as stream:
        carrier = carrier_of(host)
        total = sum(len(line["text"]) for line in stream.lines_unkept())
        peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{carrier}/status").read_text())
        assert total + len(stream.last["stdout"]) == size
        assert peak is not None
        assert int(peak[1]) < 64 * 1024
        with host.streaming("GET", f"/result/{REQID}") as whole:
            (follower,) = [each for each in children_of(host.running.pid) if each != carrier]  # type: ignore[union-attr]
            assert whole.body_bytes() > size
            peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{follower}/status").read_text())
            assert peak is not None
            assert int(peak[1]) < 64 * 1024


def test_secrets_reach_the_script_and_nothing_else(host: AgentHost):
    given = host.directory / "given"
    host.script("tell", f'tee {given}; echo "$@"; env')
    with host.start():
        found = host.run("tell", reqid=REQID, secrets={"DB": "hush-hush"})
        assert json.loads(given.read_text())["secrets"] == {"DB": "hush-hush"}
        assert json.loads(found["stdout"].splitlines()[0])["secrets"] == {"DB": "********"}
        assert "hush" not in "".join(found["stdout"].splitlines()[1:])
        assert "secrets" not in json.loads(host.run("tell")["stdout"].splitlines()[0])
        refused = host.ask("POST", "/run", order("tell", secrets={"DB": 1}))
        assert refused.status == 400
        assert "hush" not in host.log()


def test_a_secret_that_a_script_prints_is_kept_and_shown_nowhere(host: AgentHost):
    """Cut by the script's writes, by lines, in JSON; followed, asked for afterwards, and in the files."""
    secret = 'hush-"hush"\nzwö'
    steps = host.directory / "steps-fifo"
    os.mkfifo(steps)
    host.script("tell", f'cat >&2; while read -r line; do printf "$line"; done < {steps}; echo; printf hush-')
    sent = order("tell", secrets={"DB": secret})
    with host.start(), host.connect() as connection:
        send(connection, "POST", "/run", sent)
        with connection.makefile("rb") as file, steps.open("w", buffering=1) as fifo:
            stream = Streaming(connection, file)
            lines = stream.lines()
            fifo.write('a hush-\n"hu\n')
            while "a " not in stream.texts["stdout"]:
                next(lines)
            with host.streaming("GET", f"/result/{REQID}?stream=1&stdout=2") as follower:
                fifo.write('sh"\\n\n')
                fifo.write("zwö b hush-x zwö\n")
                fifo.close()
                for each, text in ((stream, "a "), (follower, "")):
                    assert each.finish()["stdout"] == text + "******** b hush-x ********\nhush-"
        assert '"DB": "********"' in host.result(REQID).json()["stderr"]
        whole = host.ask("GET", f"/result/{REQID}?encoding=base64").json()
        assert whole["stdout"].endswith("hush-")
    kept = b"".join(path.read_bytes() for path in host.state.rglob("*") if path.is_file())
    assert b"********" in kept
    assert b'"hush"' not in kept
    assert "zwö".encode() not in kept
    assert b"zw\\u00f6" not in kept


def test_a_secret_is_masked_before_the_output_is_encoded(host: AgentHost):
    """And before it is counted."""
    host.configure("max_output = 11\n")
    host.script("tell", "printf 'x'; printf 'hush-hush and more'")
    with host.start():
        found = host.run("tell", secrets={"DB": "hush-hush"}, encoding="base64")
        assert base64.b64decode(found["stdout"]) == b"x******** a"
        assert found["truncated"]["stdout"] == len("nd more")


def test_a_follower_whose_connection_breaks_again_and_again_loses_and_repeats_nothing(host: AgentHost):
    count, chance = 150, random.Random(7)
    host.script(
        "count",
        f"#!{sys.executable} -ISu\nimport os, time\nfor n in range({count}):\n"
        "    os.write(1, f'line {n} ä\\n'.encode()); os.write(2, f'err {n}\\n'.encode()); time.sleep(0.01)\n",
    )
    texts = {"stdout": "", "stderr": ""}
    at = {"stdout": 0, "stderr": 0}
    method, path, body = "POST", "/run", order("count")
    connections = 0
    with host.start():
        while True:
            connections += 1
            with host.streaming(method, path, body) as stream:
                stream.at |= at
                for _ in zip(range(chance.randrange(1, 6)), stream.lines(), strict=False):
                    pass
                last = stream.last
                if not last:
                    hard = struct.pack("ii", 1, 0)  # a reset, as from a process that was killed
                    stream.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
            for name, text in stream.texts.items():
                texts[name] += text
            at = stream.at
            if last:
                break
            method, path, body = (
                "GET",
                f"/result/{REQID}?stream=1&stdout={at['stdout']}&stderr={at['stderr']}",
                None,
            )
        assert connections > 5
        assert last["exit"] == 0
        assert texts["stdout"] + last["stdout"] == "".join(f"line {n} ä\n" for n in range(count))
        assert texts["stderr"] + last["stderr"] == "".join(f"err {n}\n" for n in range(count))
        assert host.result(REQID).json()["stdout"] == texts["stdout"] + last["stdout"]

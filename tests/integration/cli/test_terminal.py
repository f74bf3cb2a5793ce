"""`ctrl-exec` on a terminal: progress, colours, and what Ctrl-C does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping

from tests.integration.cli.instance import Instance
from tests.support.polling import eventually
from tests.support.processes import command, environment


class Terminal:
    """A program whose three streams are a pseudo-terminal."""

    def __init__(self, *words: object, env: Mapping[str, str] | None = None, columns: int = 100) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
        self.text = ""
        self.process = subprocess.Popen(
            command("ctrl-exec", *words), env=environment(env), stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)

    def read_until(self, is_there: Callable[[str], object], timeout_s: float = 60) -> str:
        """Read until the text satisfies the probe or the program has ended."""
        deadline = time.monotonic() + timeout_s
        while not is_there(self.text) and time.monotonic() < deadline:
            if not select.select([self._master], [], [], 0.2)[0]:
                continue
            try:
                piece = os.read(self._master, 65536)
            except OSError:  # EIO: nobody holds the other end any more
                break
            self.text += piece.decode()
        return self.text

    def finish(self) -> int:
        """Read to the end and give the exit code."""
        self.read_until(lambda _: False)
        return self.process.wait(60)

    def close(self) -> None:
        """End whatever still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)
        os.close(self._master)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


BAR = re.compile(r"\[[#-]{24}\]  \d+/\d+")


def test_a_terminal_gets_a_live_line_and_colours(shared: Instance) -> None:
    """Drawn on stderr, erased before the results, no log lines between them."""
    with Terminal("--config", shared.conf, "run", "web-01", "bad-01", "deploy") as terminal:
        assert terminal.finish() == 1
    assert BAR.search(terminal.text)
    assert "\x1b[32mOK\x1b[0m" in terminal.text
    assert "\x1b[31mFAIL\x1b[0m" in terminal.text
    assert "ACTION=" not in terminal.text
    # what was drawn is wiped right before the first result
    assert re.search(r"\x1b\[[JK]==> web-01", terminal.text)


def test_the_line_fits_a_narrow_terminal(shared: Instance) -> None:
    """One that wrapped could not be erased."""
    with Terminal("--config", shared.conf, "run", "web-01", "web-02", "deploy", columns=30) as terminal:
        assert terminal.finish() == 0
    drawn = re.findall(r"\r\x1b\[K([^\r\x1b]*)", terminal.text)
    assert any(drawn)
    assert max(map(len, (line.split("\n")[0] for line in drawn if line.startswith("[")))) <= 29


def test_no_color_and_one_host_mean_a_plain_terminal(shared: Instance) -> None:
    """NO_COLOR takes the colours away; for one host there is nothing to count."""
    with Terminal("--config", shared.conf, "run", "web-01", "deploy", env={"NO_COLOR": "1"}) as terminal:
        assert terminal.finish() == 0
    assert "\x1b" not in terminal.text
    with Terminal("--config", shared.conf, "ping", "web-01", "--no-color") as terminal:
        assert terminal.finish() == 0
    assert "\x1b" not in terminal.text


def test_json_on_a_terminal_is_one_document(shared: Instance) -> None:
    """No bar, no colour, no log line."""
    with Terminal("--config", shared.conf, "--json", "run", "web-01", "web-02", "deploy") as terminal:
        assert terminal.finish() == 0
    assert json.loads(terminal.text)["ok"] is True


def test_a_script_cannot_write_to_the_terminal_itself(shared: Instance) -> None:
    """A title sequence is shown as text, a colour is let through and reset."""
    with Terminal("--config", shared.conf, "run", "rude", "deploy") as terminal:
        assert terminal.finish() == 0
    assert "\\x1b]0;title\\x07\x1b[31mred\x1b[0m" in terminal.text
    assert "\x1b]0;" not in terminal.text


def test_ctrl_c_lets_go_of_a_run_that_goes_on(shared: Instance) -> None:
    """Exit 130, the command to come back, and a record that a carrier still grows."""
    with Terminal("--config", shared.conf, "run", "web-01", "slow", "hold") as terminal:
        terminal.read_until(lambda text: "1/2" in text)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.finish() == 130
    found = re.search(r"ctrl-exec output -f ([0-9a-f]{16})", terminal.text)
    assert found, terminal.text
    record = shared.document("status", found[1])
    assert (record["state"], record["pending"]) == ("running", ["slow"])
    assert {"host": "slow", "script": "hold"} in shared.document("list-locks")["locks"]


def test_sigterm_lets_go_too(shared: Instance) -> None:
    """A terminal that is closed, a service manager that stops us: the run is not lost."""
    argv = command("ctrl-exec", "--config", shared.conf, "--json", "run", "slow", "hold-on")
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:

        def is_held() -> bool:
            return {"host": "slow", "script": "hold-on"} in shared.document("list-locks")["locks"]

        eventually(is_held, what="the run has begun")
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    document = json.loads(stdout)
    assert document["results"][0]["state"] in ("pending", "running")
    assert shared.document("status", document["reqid"])["complete"] is False


def test_an_ignored_ctrl_c_stays_ignored(shared: Instance) -> None:
    """A background job of a script has SIGINT ignored; it is not turned on again."""
    argv = command("ctrl-exec", "--config", shared.conf, "run", "slow", "ignore", "--read-timeout", "2")
    process = subprocess.Popen(
        argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    with process:

        def is_held() -> bool:
            return {"host": "slow", "script": "ignore"} in shared.document("list-locks")["locks"]

        eventually(is_held, what="the run has begun")
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"read timeout after 2s" in stdout

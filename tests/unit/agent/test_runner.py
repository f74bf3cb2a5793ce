"""Running one script: its process, streams, limits and end, each against real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ctrl_exec.common.descendants import living, reap_others
from ctrl_exec_agent.runner import PATH, Job, Outcome, run_script, script_environment
from tests.support.descriptors import open_descriptors
from tests.support.polling import eventually
from tests.support.processes import environment


class Scripts:
    """Writes scripts and runs them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, text: str, **job: object) -> Outcome:
        path = self.directory / f"script-{os.urandom(4).hex()}"
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return run_script(Job(str(path), environment={"PATH": PATH}, **job))  # type: ignore[arg-type]


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)


def group_members(pgid: int) -> list[int]:
    """The pids of the group that are no zombies."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, _, group = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == pgid and state not in (b"Z", b"X"):
            found.append(int(entry))
    return found


def inherited_by_programs() -> set[int]:
    """What whoever started the tests left open to all programs; the agent closes it at its start."""
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if os.get_inheritable(fd):
                found.add(fd)
    return found


def test_a_script_finds_exactly_its_session_directory_umask_environment_and_descriptors(scripts: Scripts):
    outcome = scripts.run(
        f"#!{sys.executable} -IS\n"
        "import os, json\n"
        "print(json.dumps([os.getsid(0) == os.getpid() == os.getpgrp(), os.getcwd(), os.umask(0),\n"
        "  dict(os.environ), sorted(int(fd) for fd in os.listdir('/proc/self/fd')\n"
        "                           if os.path.lexists('/proc/self/fd/' + fd))]))\n"
    )
    session, directory, umask, variables, descriptors = json.loads(outcome.stdout)
    assert session is True
    assert directory == "/"
    assert umask == 0o022
    assert variables == {"PATH": PATH} | ({"LC_CTYPE": "C.UTF-8"} if "LC_CTYPE" in variables else {})
    assert descriptors == sorted({0, 1, 2} | inherited_by_programs())


def test_its_environment_is_built_up_from_a_few_variables():
    ours = {"HOME": "/h", "LANG": "C", "LC_ALL": "C", "TZ": "UTC", "TERM": "x", "USER": "u", "LOGNAME": "l"}
    evil = {"LD_PRELOAD": "/evil.so", "PATH": "/evil", "PYTHONPATH": "/evil", "BASH_ENV": "/evil", "IFS": "x"}
    assert script_environment(ours | evil) == ours | {"PATH": PATH}
    assert script_environment({}) == {"PATH": PATH}


def test_signals_are_at_their_defaults_also_when_ours_are_not(scripts: Scripts):
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        outcome = scripts.run("grep -E 'SigIgn|SigBlk' /proc/self/status")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    _, blocked, _, ignored = outcome.stdout.split()
    assert int(blocked, 16) == 0
    assert int(ignored, 16) & 0x7FFFFFFF == 0  # the C library keeps 32 and 33 to itself


@pytest.mark.parametrize("code", [0, 1, 3, 125, 126, 127, 255])
def test_the_exit_code_is_the_scripts_own(scripts: Scripts, code: int):
    outcome = scripts.run(f"echo out; echo err >&2; exit {code}")
    assert (outcome.exit, outcome.stdout, outcome.stderr, outcome.error) == (code, b"out\n", b"err\n", "")


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV", "HUP", "PIPE"])
def test_death_by_a_signal_is_126_and_says_so(scripts: Scripts, name: str):
    outcome = scripts.run(f"ulimit -c 0; kill -{name} $$; sleep 10")
    assert outcome.exit == 126
    assert f"SIG{name}" in outcome.error


def test_what_cannot_be_executed_is_126_and_says_why(tmp_path: Path):
    assert (
        run_script(Job("/no/such/file")).error
        == "/no/such/file: cannot be executed (No such file or directory)"
    )
    for name, mode, reason in (("plain", 0o644, "Permission denied"), ("text", 0o755, "Exec format error")):
        (tmp_path / name).write_text("no shebang")
        (tmp_path / name).chmod(mode)
        outcome = run_script(Job(str(tmp_path / name)))
        assert outcome.exit == 126
        assert reason in outcome.error
    assert run_script(Job("/bin/true", ("a\0b",))).exit == 126
    assert run_script(Job("/bin/true", ("x" * 200_000,))).exit == 126


def test_arguments_arrive_byte_for_byte_without_a_shell(scripts: Scripts):
    args = ("a b", "", "$(id)", "'\"", "*", "-n", "ä€", "line\nbreak", "; rm -rf /")
    outcome = scripts.run('for a; do printf "%s\\0" "$a"; done', args=args)
    assert outcome.stdout.split(b"\0")[:-1] == [arg.encode() for arg in args]


def test_stdin_is_given_whole_and_then_ends(scripts: Scripts):
    content = os.urandom(3_000_000)
    outcome = scripts.run("sha256sum", stdin=content, limit_bytes=1000)
    import hashlib

    assert outcome.stdout.split()[0].decode() == hashlib.sha256(content).hexdigest()


def test_two_hundred_scripts_that_never_read_a_megabyte_of_stdin_all_succeed(scripts: Scripts):
    content = b"x" * (1 << 20)
    path = scripts.directory / "deaf"
    path.write_text("#!/bin/sh\necho done; exit 7\n")
    path.chmod(0o755)
    job = Job(str(path), environment={"PATH": PATH}, stdin=content)
    assert {(each.exit, each.stdout) for each in (run_script(job) for _ in range(200))} == {(7, b"done\n")}


def test_unread_stdin_is_dropped_after_its_time(scripts: Scripts):
    outcome = scripts.run("sleep 1.5; wc -c", stdin=b"x" * 3_000_000, stdin_timeout_s=0.3)
    assert outcome.exit == 0
    assert 0 < int(outcome.stdout) < 3_000_000


@pytest.mark.parametrize(
    ("text", "stdout", "stderr"),
    [
        ("head -c 50m /dev/zero", 50 << 20, 0),
        ("head -c 50m /dev/zero >&2", 0, 50 << 20),
        ("for i in 1 2 3 4 5; do head -c 10m /dev/zero; head -c 10m /dev/zero >&2; done", 50 << 20, 50 << 20),
    ],
)
def test_fifty_megabytes_on_either_stream_or_both(scripts: Scripts, text: str, stdout: int, stderr: int):
    whole = scripts.run(text, limit_bytes=64 << 20)
    assert (whole.exit, len(whole.stdout), len(whole.stderr)) == (0, stdout, stderr)
    cut = scripts.run(text, limit_bytes=1 << 20)
    assert len(cut.stdout) + cut.dropped_stdout == stdout
    assert len(cut.stderr) + cut.dropped_stderr == stderr
    assert max(len(cut.stdout), len(cut.stderr)) == 1 << 20


def test_binary_output_is_kept_as_it_is(scripts: Scripts):
    outcome = scripts.run(f"#!{sys.executable} -IS\nimport os\nos.write(1, bytes(range(256)) * 100)\n")
    assert outcome.stdout == bytes(range(256)) * 100


def test_a_gigabyte_of_output_takes_bounded_memory(tmp_path: Path):
    script = tmp_path / "flood"
    script.write_text("#!/bin/sh\nhead -c 1G /dev/zero & head -c 1G /dev/zero >&2; wait\n")
    script.chmod(0o755)
    program = (
        "import re; from ctrl_exec_agent.runner import *\n"
        f"o = run_script(Job({str(script)!r}, environment={{'PATH': PATH}}))\n"
        "print(o.exit, len(o.stdout) + o.dropped_stdout, len(o.stderr) + o.dropped_stderr,\n"
        "      re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, check=True, timeout=170
    )
    code, stdout, stderr, peak_kib = map(int, found.stdout.split())
    assert (code, stdout, stderr) == (0, 1 << 30, 1 << 30)
    assert peak_kib < 100 * 1024


def test_the_time_limit_ends_the_whole_group_also_who_ignores_term(scripts: Scripts):
    outcome = scripts.run(
        "echo $$; (trap '' TERM; sleep 60) & (trap '' TERM; while :; do sleep 1; done) & sleep 60",
        timeout_s=0.5, term_grace_s=0.5,
    )  # fmt: skip
    assert outcome.timed_out
    assert outcome.exit == -1
    assert outcome.error == "script timed out after 0.5s"
    assert group_members(int(outcome.stdout)) == []


def test_a_script_that_heeds_term_may_say_goodbye(scripts: Scripts):
    outcome = scripts.run(
        "trap 'head -c 1m /dev/zero; echo bye >&2; exit 9' TERM; sleep 60 & wait", timeout_s=0.3
    )
    assert outcome.timed_out
    assert outcome.stderr == b"bye\n"
    assert len(outcome.stdout) == 1 << 20


def test_a_stopped_script_is_ended_at_its_limit(scripts: Scripts):
    assert scripts.run("kill -STOP $$", timeout_s=0.3).timed_out


def test_what_the_main_process_leaves_in_its_group_is_ended_with_it(scripts: Scripts):
    outcome = scripts.run("echo $$; sleep 60 & (trap '' TERM; sleep 60) & exit 4", term_grace_s=0.3)
    assert (outcome.exit, outcome.timed_out, outcome.error) == (4, False, "")
    assert group_members(int(outcome.stdout)) == []


def test_closing_its_descriptors_early_is_no_end(scripts: Scripts, tmp_path: Path):
    outcome = scripts.run(f"echo early; exec <&- >&- 2>&-; sleep 0.5; touch {tmp_path}/late; exit 5")
    assert (outcome.exit, outcome.stdout) == (5, b"early\n")
    assert (tmp_path / "late").exists()


def test_a_daemon_that_keeps_the_pipes_does_not_hold_us(scripts: Scripts, tmp_path: Path):
    outcome = scripts.run(
        f"#!{sys.executable} -IS\n"
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork(): os._exit(0)\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    while True: os.write(1, b'x' * 1000); time.sleep(0.001)\n"
        "os.wait()\n"
        "print('main ends', flush=True)\n"
    )
    assert outcome.exit == 0
    assert b"main ends\n" in outcome.stdout
    # its next write finds the pipe closed
    pid = int(eventually((tmp_path / "pid").read_text))
    eventually(lambda: not Path(f"/proc/{pid}").exists() or b") Z" in Path(f"/proc/{pid}/stat").read_bytes())


def test_the_sessions_copy_of_the_lock_is_at_a_number_of_its_own(scripts: Scripts, tmp_path: Path):
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        outcome = scripts.run("ls /proc/self/fd | tr '\\n' ' '; readlink /proc/self/fd/99", lock=fd)
    finally:
        os.close(fd)
    assert b" 99 " in outcome.stdout
    assert str(tmp_path / "lock").encode() in outcome.stdout


def test_a_status_taken_by_somebody_else_is_no_success(scripts: Scripts):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        outcome = scripts.run("exit 0")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert outcome.exit == 126


def test_no_descriptor_is_left_open(scripts: Scripts):
    before = open_descriptors()
    scripts.run("exit 0", stdin=b"x" * 1_000_000)
    run_script(Job("/no/such/file"))
    assert open_descriptors() == before


def test_without_descriptors_the_script_is_not_run_and_nothing_is_left(tmp_path: Path):
    """Every number of free descriptors from none to enough: an outcome each time, never a stray process."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho ran\n")
    script.chmod(0o755)
    program = (
        "import os, resource; from ctrl_exec_agent.runner import *\n"
        f"job = Job({str(script)!r}, environment={{'PATH': PATH}})\n"
        "run_script(job)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n"
        "full = []\n"
        "try:\n"
        "    while True: full.append(os.dup(0))\n"
        "except OSError: pass\n"
        "for free in range(13):\n"
        "    outcome = run_script(job)\n"
        "    print(free, outcome.exit, len(outcome.stdout), outcome.error)\n"
        "    os.close(full.pop())\n"
        "try: print(os.waitpid(-1, os.WNOHANG))\n"
        "except ChildProcessError: print('no children')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        check=True,
        timeout=60,
        text=True,
    )
    *outcomes, last = ended.stdout.splitlines()
    assert last == "no children"
    assert outcomes[0].startswith("0 126 0 ")
    assert "Too many open files" in outcomes[0]
    assert outcomes[-1] == "12 0 4 "
    assert all(line.split()[1:3] in (["126", "0"], ["0", "4"]) for line in outcomes)


def test_the_status_of_a_child_that_is_not_the_scripts_stays_its_parents_to_take(scripts: Scripts):
    child = subprocess.Popen([sys.executable, "-ISc", "raise SystemExit(5)"])
    stat = Path(f"/proc/{child.pid}/stat")
    eventually(lambda: b") Z" in stat.read_bytes())
    assert scripts.run("setsid sleep 60 & trap '' TERM; sleep 60", timeout_s=0.2, term_grace_s=0.2).timed_out
    assert child.wait(20) == 5
    reap_others(None)  # what was given to us meanwhile


def test_the_time_limit_ends_also_what_has_left_the_group(scripts: Scripts, tmp_path: Path):
    pid_file = tmp_path / "pid"
    outcome = scripts.run(
        f"setsid sh -c 'trap \"\" TERM; echo $$ > {pid_file}; while :; do sleep 1; done' >&- 2>&- & "
        f"while ! [ -s {pid_file} ]; do sleep 0.01; done; echo there; sleep 60",
        timeout_s=1, term_grace_s=0.2,
    )  # fmt: skip
    assert (outcome.timed_out, outcome.is_gone, outcome.stdout) == (True, True, b"there\n")
    assert int(pid_file.read_text()) not in {each.pid for each in living()}

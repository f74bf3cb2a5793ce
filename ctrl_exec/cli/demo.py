"""`ctrl-exec demo`: a private fleet on loopback, paired and run for real, gone at Ctrl-C.

Owns a temporary directory and the processes below it; everything is done by the programs an admin
would use, with the commands shown as they run. Touches nothing of the system and needs no root.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
import time
from contextlib import suppress

from ctrl_exec.cli.command import Command, Option
from ctrl_exec.common.errors import ServiceError, UsageError
from ctrl_exec.common.process import end_group, spawn, wait_status
from ctrl_exec.common.program import run_program
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.cli.demo_tasks import DemoTask
    from ctrl_exec.cli.output import Output

MAX_AGENTS = 50
START_TIMEOUT_S = 30.0
_PAUSE_S = 0.05

DISPATCHER_CONF = """\
# A private dispatcher: everything below one directory, nothing of the system.
etc_dir = {home}/etc
state_dir = {home}/state
api_port = {api_port}
api_auth_default = allow
api_socket = {api_socket}
pairing_bind = 127.0.0.1
pairing_port = {pairing_port}
log_target = stderr
"""

AGENT_CONF = """\
hostname = {name}
etc_dir = {home}/etc
state_dir = {home}/state
bind = {ip}
port = {port}
log_target = stderr

[tags]
env = demo
number = {number}
"""

SCRIPTS_CONF = """\
# name = /absolute/path: what a dispatcher may run here, and nothing else
hello = {scripts}/hello
report = {scripts}/report
fail = {scripts}/fail
wait = {scripts}/wait
"""

SCRIPTS = {
    "hello": '#!/bin/sh\necho "hello $*"\n',
    "report": "#!/bin/sh\nuname -sr\nuptime\ndf -h /\n",
    "fail": "#!/bin/sh\necho 'this one fails' >&2\nexit 3\n",
    "wait": '#!/bin/sh\nsleep "${1:-5}"\necho "waited ${1:-5} s"\n',
}


@value
class DemoAgent:
    """One agent of the demo: its name, where it listens, where it lives, which one it is."""

    name: str
    ip: str
    port: int
    conf: str
    number: int


class Demo:
    """The processes and files of one demo."""

    def __init__(self, home: str, output: Output) -> None:
        self.home = home
        self.output = output
        self.programs = own_directory()
        self.conf = f"{home}/dispatcher/ctrl-exec.conf"
        self._held: list[socket.socket] = []
        self._running: list[int] = []
        self.api_port = self.hold_port("127.0.0.1", 7445)
        self.pairing_port = self.hold_port("127.0.0.1", 7444)

    def hold_port(self, ip: str, wanted: int) -> int:
        """The wanted port if nobody has it, else a free one; no other demo takes it meanwhile.

        Raises: ServiceError.
        """
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._held.append(held)
        for port in (wanted, 0):
            with suppress(OSError):
                held.bind((ip, port))
                # asked for alone, then shared with our own server, which asks with SO_REUSEADDR (socket(7))
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                return int(held.getsockname()[1])
        raise ServiceError(f"no free port on {ip}")

    def release_ports(self) -> None:
        """Let go of all ports: their servers have them now, or nobody needs them any more."""
        while self._held:
            self._held.pop().close()

    def write(self, path: str, text: str, mode: int = 0o640) -> None:
        """Write a file below the demo's directory, with its parents."""
        full = os.path.join(self.home, path)
        os.makedirs(os.path.dirname(full), mode=0o750, exist_ok=True)
        fd = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(fd, "w", encoding="utf-8") as stream:
            stream.write(text)

    def argv(self, program: str, *words: str) -> list[str]:
        """The command line of one of our programs, on the demo's dispatcher where it is one of its own."""
        path = os.path.join(self.programs, program)
        if not os.access(path, os.X_OK):
            raise ServiceError(f"{path} is not there; `make install` puts all programs into one directory")
        config = () if "--config" in words else ("--config", self.conf)
        return [path, *config, *words]

    def call(self, program: str, *words: str) -> str:
        """Run a program to its end and give its output.

        Raises: ServiceError with what it said if it fails.
        """
        result = run_program(self.argv(program, *words), environment=_environment(), timeout_s=120)
        if not result.succeeded:
            said = (result.stderr or result.stdout).decode("utf-8", "replace").strip()
            raise ServiceError(f"{program} {' '.join(words)} failed: {said}")
        return result.stdout.decode("utf-8", "replace")

    def show_call(self, *words: str) -> str:
        """Show a command of `ctrl-exec` as it is typed and what it answers. Raises: ServiceError."""
        self.output.line("\n$ ctrl-exec " + shlex.join(words).replace(self.home + "/", ""))
        answer = self.call("ctrl-exec", *words)
        self.output.line(answer.rstrip())
        return answer

    def start(self, log_name: str, program: str, *words: str) -> int:
        """Start a program that stays; its output goes to `<home>/log/<log_name>`."""
        path = f"{self.home}/log/{log_name}"
        self.write(path, "")
        log = os.open(path, os.O_WRONLY | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            argv = self.argv(program, *words)
            pid = spawn(argv, environment=_environment(), stdin=null, stdout=log, stderr=log)
        finally:
            os.close(log)
            os.close(null)
        self._running.append(pid)
        return pid

    def log(self, log_name: str) -> str:
        """What a started program has said so far."""
        with open(f"{self.home}/log/{log_name}", encoding="utf-8", errors="replace") as stream:
            return stream.read()

    def stop(self, pid: int) -> None:
        """End one started program and its group."""
        self._running.remove(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        ended = wait_status(pid, timeout_s=10)
        end_group(pid, None)
        if ended is None:
            wait_status(pid, timeout_s=10)

    def stop_all(self) -> None:
        """End everything that was started, the last one first."""
        for pid in reversed(list(self._running)):
            self.stop(pid)

    def is_running(self, pid: int) -> bool:
        """Whether a started program still runs."""
        return wait_status(pid, timeout_s=0) is None

    def until(self, probe: Callable[[], bool], what: str) -> None:
        """Wait until the probe is true. Raises: ServiceError after START_TIMEOUT_S."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not probe():
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{what} did not happen within {START_TIMEOUT_S:.0f} s; see {self.home}/log"
                )
            time.sleep(_PAUSE_S)


def set_up(demo: Demo, count: int) -> list[DemoAgent]:
    """Make the CA, the dispatcher's identity, and the files of the agents."""
    demo.write(
        demo.conf,
        DISPATCHER_CONF.format(
            home=f"{demo.home}/dispatcher",
            api_port=demo.api_port,
            api_socket=socket_path(demo.home),
            pairing_port=demo.pairing_port,
        ),
    )
    demo.call("ctrl-exec", "setup-ca")
    demo.call("ctrl-exec", "setup-ctrl-exec")
    for name, text in SCRIPTS.items():
        demo.write(f"scripts/{name}", text, 0o750)
    agents = []
    for number in range(1, count + 1):
        ip = f"127.0.10.{number}"
        home = f"{demo.home}/demo-{number:02d}"
        port = demo.hold_port(ip, 7443)
        agent = DemoAgent(f"demo-{number:02d}", ip, port, f"{home}/etc/agent.conf", number)
        demo.write(
            agent.conf, AGENT_CONF.format(name=agent.name, home=home, ip=ip, port=agent.port, number=number)
        )
        demo.write(f"{home}/etc/scripts.conf", SCRIPTS_CONF.format(scripts=f"{demo.home}/scripts"))
        agents.append(agent)
    return agents


def socket_path(home: str) -> str:
    """Where the API listens for the command line; nowhere if the kernel takes no path of that length."""
    from ctrl_exec.config import SOCKET_PATH_LIMIT_BYTES

    path = f"{home}/api.sock"
    return path if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT_BYTES else ""


def pair(demo: Demo, agents: list[DemoAgent]) -> None:
    """Pair every agent as an admin does: request, compare the two codes, approve.

    Raises: ServiceError if a code differs or something does not answer.
    """
    pairing = demo.start("pairing.log", "ctrl-exec", "pairing-mode")
    demo.until(lambda: is_listening("127.0.0.1", demo.pairing_port), "pairing mode")
    for agent in agents:
        log_name = f"{agent.name}-pairing.log"
        words = ("request-pairing", "--dispatcher", "127.0.0.1", "--port", str(demo.pairing_port))
        request = demo.start(log_name, "ctrl-exec-agent", "--config", agent.conf, *words)
        waiting: list[dict[str, str]] = []

        def is_waiting(name: str = agent.name, found: list[dict[str, str]] = waiting) -> bool:
            listed = json.loads(demo.call("ctrl-exec", "list-requests", "--json"))["requests"]
            found[:] = [each for each in listed if each["hostname"] == name and each.get("code")]
            return bool(found)

        demo.until(is_waiting, f"the pairing request of {agent.name}")
        code = waiting[0]["code"]
        demo.until(lambda name=log_name, code=code: code in demo.log(name), f"the same code at {agent.name}")  # type: ignore[misc]
        where = ("--ip", agent.ip, "--agent-port", str(agent.port), "--lookup-by", "ip")
        tags = ("--tags", f"env=demo,number={agent.number}")
        demo.call("ctrl-exec", "approve", waiting[0]["id"], *where, *tags)
        demo.until(lambda pid=request: not demo.is_running(pid), f"the certificate of {agent.name}")  # type: ignore[misc]
        demo.output.line(f"  {agent.name}  paired, both sides showed {code}")
    demo.stop(pairing)


def serve(demo: Demo, agents: list[DemoAgent]) -> None:
    """Start agents, API and scheduler, and wait until they answer."""
    for agent in agents:
        demo.start(f"{agent.name}.log", "ctrl-exec-agent", "--config", agent.conf, "serve")
    demo.start("api.log", "ctrl-exec-api")
    demo.start("scheduler.log", "ctrl-exec-scheduler")
    for agent in agents:
        demo.until(lambda each=agent: is_listening(each.ip, each.port), agent.name)  # type: ignore[misc]
    demo.until(lambda: is_listening("127.0.0.1", demo.api_port), "the API")
    demo.release_ports()


def show(demo: Demo) -> DemoTask:
    """Run a script on all agents, have a task executed, and say what to try next."""
    from ctrl_exec.cli.demo_tasks import add_task, advice

    output = demo.output
    demo.show_call("run", "--all", "hello", "--", "from", "the", "demo")
    task = add_task(demo)
    program = os.path.join(demo.programs, "ctrl-exec")
    url = f"http://127.0.0.1:{demo.api_port}"
    output.line(
        f"""
The fleet is up. In another terminal:

  export CTRL_EXEC_CONFIG={demo.conf}
  {program} list-agents
  {program} ping --all
  {program} run demo-01 report
  {program} run -t number=1 wait -- 3
  {program} run --all fail
{advice(program, url, task)}
  curl -s {url}/
  curl -s {url}/discovery
  curl -s {url}/run -d '{{"hosts": ["@all"], "script": "hello", "args": ["curl"]}}'
  curl -s {url}/run -d '{{"hosts": ["demo-01"], "script": "wait", "async": true}}'
  xdg-open {url}/docs

The API lets everyone on this machine in (api_auth_default = allow); a real one asks an auth hook.
Logs: {demo.home}/log. Ctrl-C ends everything and removes the directory."""
    )
    output.stdout.flush()
    return task


def as_document(demo: Demo, agents: list[DemoAgent], task: DemoTask) -> dict[str, object]:
    """Give where everything is, for a program that drives the demo."""
    return {
        "ok": True,
        "config": demo.conf,
        "api": f"http://127.0.0.1:{demo.api_port}",
        "agents": [{"name": each.name, "ip": each.ip, "port": each.port} for each in agents],
        "task": {"taskId": task.task_id, "executionId": task.execution_id, "status": task.status},
        "token": task.token,
        "logs": f"{demo.home}/log",
    }


def execute_demo(context: Context, arguments: Arguments) -> int:
    """Set up, pair, run, show, stay up."""
    import shutil
    import tempfile

    count = agents_wanted(arguments.text("agents"))
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: _stop(stopped, got))
    home = tempfile.mkdtemp(prefix="ctrl-exec-demo-")
    demo = Demo(home, context.output)
    try:
        context.output.line(f"A private fleet in {home}: one dispatcher, {count} agents on loopback.")
        agents = set_up(demo, count)
        pair(demo, agents)
        serve(demo, agents)
        task = show(demo)
        context.output.answer(as_document(demo, agents, task), lambda: None)
        context.output.flush()
        while not stopped and not arguments.flag("once"):
            signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        context.output.line("\nstopping")
        demo.stop_all()
        demo.release_ports()
        shutil.rmtree(home, ignore_errors=True)
    return 0


def _stop(stopped: list[int], number: int) -> None:
    if not stopped:  # a second one must not interrupt the cleaning up
        stopped.append(number)
        raise KeyboardInterrupt


def agents_wanted(text: str | None) -> int:
    """How many agents `--agents` asks for, 3 without it. Raises: UsageError."""
    if text is None:
        return 3
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_AGENTS):
        raise UsageError(f"--agents {text}: expected a number from 1 to {MAX_AGENTS}")
    return int(text)


def own_directory() -> str:
    """Where our programs are: beside the one that was started."""
    import shutil

    return os.path.dirname(os.path.abspath(shutil.which(sys.argv[0]) or sys.argv[0]))


def is_listening(ip: str, port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex((ip, port)) == 0


def _environment() -> dict[str, str]:
    kept = ["PATH", "HOME", "USER", "LANG", "PYTHONPATH", "VIRTUAL_ENV"]
    kept += [name for name in os.environ if name.startswith("COV")]
    return {name: os.environ[name] for name in kept if name in os.environ}


COMMANDS = {
    "demo": Command(
        "set up a private fleet on loopback, run a script on it, stay up until Ctrl-C",
        execute_demo,
        options=(
            Option(("--agents",), f"how many agents, 1 to {MAX_AGENTS} (default: 3)", "N"),
            Option(("--once",), "end after the run has been shown"),
        ),
        description=(
            "Makes a CA, a dispatcher and agents in a temporary directory, pairs them, runs a script on all "
            "of them, has a task executed, now and by the clock, and keeps everything running. Needs no root"
            " and touches nothing of the system."
        ),
        examples=("ctrl-exec demo --agents 5",),
        exit_codes=(0, 1, 2),
    ),
}

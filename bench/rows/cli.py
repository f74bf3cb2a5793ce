"""The command line as a whole process: start, one host, many hosts, beside Python alone and others' tools."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.baselines import ssh, tools
from bench.deployment import NETWORK
from bench.row import FAILED, SKIPPED, Group, Row, absent, compared, measured
from bench.series import Series, at_most
from bench.timing import alternate, run_program

if TYPE_CHECKING:
    from bench.session import Session


_ROUNDS = 3  # some of the others take ten seconds a time


def wall_of(argv: list[str], env: dict[str, str] | None = None) -> Callable[[], float]:
    """A work that runs the program and gives its milliseconds."""
    return lambda: run_program(argv, env=env).wall_s * 1e3


@contextmanager
def ssh_server(session: Session) -> Iterator[ssh.SshServer | str]:
    """An sshd for a while, or why there is none."""
    tools.program("sshd")
    if why := ssh.why_not():
        yield why
        return
    home = session.work / f"ssh-{len(list(session.work.glob('ssh-*')))}"
    try:
        server = ssh.start(home)
    except RuntimeError as error:
        yield str(error)
        return
    try:
        yield server
    finally:
        server.stop()


def measure_one(session: Session) -> Iterable[Row]:
    """Starting, and one host."""
    deployment = session.deployment
    _ = deployment.agent
    run = session.launcher("ctrl-exec", "--config", deployment.conf, "run", "real-01", "true")
    works = {
        "python": wall_of([session.python, "-I", "-c", "pass"]),
        "version": wall_of(session.launcher("ctrl-exec", "--version")),
        "run": wall_of(run),
    }
    with ssh_server(session) as server:
        if isinstance(server, ssh.SshServer):
            works["ssh_cold"] = wall_of(server.cold("127.78.0.1", "true"))
            works["ssh_warm"] = wall_of(server.warm("127.78.0.1", "true"))
        for work in works.values():
            work()
        found = alternate(session.sizes.repeats, **works)
    python, ours = ("python3 -I -c pass ms", found["python"]), ("run ms", found["run"])
    yield compared(
        "cli-version",
        "`ctrl-exec --version`, to `python3 -I -c pass`",
        ("--version ms", found["version"]),
        python,
        at_most(2.0),
        floor=session.floor,
    )
    yield compared(
        "cli-run",
        "`ctrl-exec run HOST true`, to `python3 -I -c pass`",
        ours,
        python,
        at_most(3.6),
        floor=session.floor,
    )
    if isinstance(server, str):
        yield absent("cli-run-ssh", "to `ssh HOST true`, cold", at_most(0.33), server, SKIPPED)
    else:
        yield compared(
            "cli-run-ssh",
            "`ctrl-exec run HOST true`, to `ssh HOST true`, cold",
            ours,
            ("ssh cold ms", found["ssh_cold"]),
            at_most(0.33),
            floor=session.floor,
        )
    yield from _with_daemon(session, found.get("ssh_warm"), ours)


def _with_daemon(session: Session, ssh_warm: Series | None, direct: tuple[str, Series]) -> Iterable[Row]:
    name, target = "cli-run-daemon", at_most(2.5)
    what = "`ctrl-exec run HOST true` over the daemon's socket, to `ssh` with ControlMaster"
    deployment = session.deployment
    socket_path = session.work / "api.sock"
    api = deployment.api("socket", api_socket=socket_path)
    # whoever may use the socket uses it; without the key there is no other way, so that it is sure
    conf = deployment.write_conf("cli-socket.conf", api_socket=socket_path, key=session.work / "not-ours.key")
    argv = session.launcher("ctrl-exec", "--config", conf, "run", "real-01", "true")
    run_program(argv)
    if "ACTION=dispatch" not in api.daemon.log():
        yield absent(name, what, target, "the command line did not use the daemon's socket", FAILED)
        if ssh_warm is not None:
            yield compared(
                "cli-run-ssh-warm",
                "`ctrl-exec run HOST true` without a daemon, to `ssh` with ControlMaster",
                direct,
                ("ssh warm ms", ssh_warm),
                floor=session.floor,
            )
        return
    ours = ("run ms", alternate(session.sizes.repeats, ours=wall_of(argv))["ours"])
    if ssh_warm is None:
        yield measured(name, what, ours, "ms", note="no ssh to compare with")
        return
    yield compared(name, what, ours, ("ssh warm ms", ssh_warm), target, floor=session.floor)


def measure_many(session: Session) -> Iterable[Row]:
    """Fifty hosts: fifty real agents, and one sshd on fifty addresses."""
    deployment = session.deployment
    deployment.agents(session.sizes.real)
    ours = session.launcher(
        "ctrl-exec", "--config", deployment.conf, "run", f"real-[01-{session.sizes.real:02d}]", "true"
    )
    works: dict[str, Callable[[], float]] = {"ours": wall_of(ours)}
    absent_tools: dict[str, str] = {}
    with ssh_server(session) as server:
        if isinstance(server, ssh.SshServer):
            for name, made in _others(session, server).items():
                if isinstance(made, str):
                    absent_tools[name] = made
                else:
                    works[name] = made
        else:
            absent_tools = dict.fromkeys(("pdsh", "parallel-ssh", "ansible", "clush"), server)
        for work in works.values():
            work()
        found = _rounds(session, works)
    limits = {"pdsh": at_most(0.12), "parallel-ssh": at_most(0.25), "ansible": at_most(0.05), "clush": None}
    for name, limit in limits.items():
        what = f"`true` on {session.sizes.real} hosts, whole process, to {_shown(name)}"
        if name in absent_tools:
            yield absent(f"cli-50-{name}", what, limit, absent_tools[name], SKIPPED)
        else:
            yield compared(
                f"cli-50-{name}",
                what,
                ("ours ms", found["ours"]),
                (f"{name} ms", found[name]),
                limit,
                floor=session.floor,
                note=session.versions.get(name, ""),
            )


def _shown(name: str) -> str:
    return "`ansible -m raw`" if name == "ansible" else name


def _rounds(session: Session, works: dict[str, Callable[[], float]]) -> dict[str, Series]:
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(min(session.sizes.rounds, _ROUNDS)):
        for name, work in works.items():
            found[name].append(work())
        session.say(
            f"{session.sizes.real} hosts: "
            + ", ".join(f"{name} {each[-1]:.0f} ms" for name, each in found.items())
        )
    return {name: Series(tuple(values)) for name, values in found.items()}


def _others(session: Session, server: ssh.SshServer) -> dict[str, Callable[[], float] | str]:
    """How each tool asks the fifty hosts, or why it can't."""
    hosts = [f"{NETWORK}.{number}" for number in range(1, session.sizes.real + 1)]
    span = f"{NETWORK}.[1-{session.sizes.real}]"
    base = {name: os.environ.get(name, "") for name in ("PATH", "HOME", "USER", "LOGNAME")} | {
        "LANG": "C.UTF-8"
    }
    made: dict[str, Callable[[], float] | str] = {}
    pdsh = tools.program("pdsh")
    made["pdsh"] = (
        wall_of(
            [pdsh, "-R", "ssh", "-w", span, "true"], base | {"PDSH_SSH_ARGS_APPEND": f"-F {server.config}"}
        )
        if pdsh
        else "no pdsh (Debian: pdsh)"
    )
    clush = tools.program("clush")
    made["clush"] = (
        wall_of([clush, "-q", "-w", span, "-o", f"-F {server.config}", "true"], base)
        if clush
        else "no clush (PyPI: ClusterShell)"
    )
    python = tools.python_with("parallel-ssh")
    script = session.baseline("parallel_ssh")[2]
    made["parallel-ssh"] = (
        wall_of([python, script, str(server.key), str(server.port), *hosts], base)
        if python
        else "no parallel-ssh (PyPI: parallel-ssh)"
    )
    ansible = tools.program("ansible")
    settings_file = server.home / "ansible.cfg"
    settings_file.write_text("")
    settings = {
        "ANSIBLE_CONFIG": str(settings_file),
        "ANSIBLE_HOME": str(server.home / "ansible"),
        "ANSIBLE_SSH_COMMON_ARGS": f"-F {server.config}",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(server.home / "cp"),
        "ANSIBLE_LOCALHOST_WARNING": "False",
    }
    made["ansible"] = (
        wall_of(
            [
                ansible,
                "-i",
                ",".join(hosts) + ",",
                "all",
                "-m",
                "raw",
                "-a",
                "true",
                "-f",
                str(session.sizes.real),
            ],
            base | settings,
        )
        if ansible
        else "no ansible (PyPI: ansible-core)"
    )
    for name in ("clush", "parallel-ssh", "ansible"):
        if not isinstance(made[name], str):
            session.versions[name] = tools.version(name)
    return made


ONE = Group("cli", "the CLI's start and one host, beside Python alone and ssh", measure_one)
MANY = Group("cli-50", "50 hosts, whole process, beside pdsh, parallel-ssh, ansible, clush", measure_many)

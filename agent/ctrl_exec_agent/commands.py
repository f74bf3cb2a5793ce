"""The agent's commands beside `serve`: for the admin of the host, at a prompt or in a script.

Owns their command lines and their output. Never imported by the daemon: argparse would stay in its
memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import ctrl_exec
from ctrl_exec.common.clock import openssl_time
from ctrl_exec.common.errors import CtrlExecError, StorageError, UsageError
from ctrl_exec.common.files import read_bounded
from ctrl_exec.common.log import Log
from ctrl_exec.common.messages import output_text
from ctrl_exec.common.names import new_reqid
from ctrl_exec.common.value import value
from ctrl_exec_agent import renewal
from ctrl_exec_agent.allowlist import load_allowlist
from ctrl_exec_agent.carried import answer_of, script_stdin
from ctrl_exec_agent.config import load_agent_config
from ctrl_exec_agent.generation import PROGRAM, Source, check_profiles, is_paired
from ctrl_exec_agent.runner import Job, run_script, script_environment
from ctrl_exec_agent.trust import load_trust_map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    from ctrl_exec_agent.allowlist import Script
    from ctrl_exec_agent.config import AgentConfig
    from ctrl_exec_agent.runner import Outcome

EXIT_TIMED_OUT = 124
LATER = "executor"  # a command of the product that this version does not have


@value
class Context:
    """What every command gets: its options, the settings, the program's environment."""

    options: argparse.Namespace
    config: AgentConfig
    environment: Mapping[str, str]

    def show(self, document: dict[str, Any], text: str) -> None:
        """The document with `--json`, else the text."""
        print(json.dumps(document) if self.options.json else text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\ntry: {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the nearest choice where there is one, instead of all of them."""
        if action.choices is not None and value not in action.choices:
            if value == LATER:
                raise argparse.ArgumentError(None, f"{value} is not part of version {ctrl_exec.__version__}")
            import difflib

            near = difflib.get_close_matches(str(value), [str(each) for each in action.choices], n=1)
            known = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(action.choices)}"
            raise argparse.ArgumentError(None, f"{value!r} is not known; {known}")


def execute(arguments: Sequence[str], environment: Mapping[str, str], serve: Callable[[Source], int]) -> int:
    """Run one command; gives its exit code.

    Raises: UsageError; ConfigError; any CtrlExecError of the command.
    """
    options = _parser().parse_args(_options_first(arguments))
    if options.command is None:
        raise UsageError(f"a command is missing\ntry: {PROGRAM} --help")
    if options.command == "serve":
        return serve(Source(options.config, options.allowlist, environment))
    if options.command == "self-check":
        from ctrl_exec_agent.self_check import self_check

        return self_check(Source(options.config, options.allowlist, environment), as_json=options.json)
    config = load_agent_config(options.config, allowlist=options.allowlist)
    return int(options.execute(Context(options, config, environment)))


def _options_first(arguments: Sequence[str]) -> list[str]:
    """The common options moved to the front, so that they may stand anywhere before `--`."""
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    front, rest, at = [], [], 0
    while at < end:
        word = words[at]
        if word in ("--config", "--allowlist") and at + 1 < end:
            front += words[at : at + 2]
            at += 1
        elif word == "--json" or word.startswith(("--config=", "--allowlist=")):
            front.append(word)
        else:
            rest.append(word)
        at += 1
    return front + rest + words[end:]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Runs allow-listed scripts for dispatchers it trusts.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {ctrl_exec.__version__}")
    parser.add_argument(
        "--config", metavar="FILE", help="settings (default: /etc/ctrl-exec-agent/agent.conf)"
    )
    parser.add_argument("--allowlist", metavar="FILE", help="scripts.conf (default: in etc_dir)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", parser_class=_Parser
    )
    commands.add_parser("serve", help="be the daemon: listen for dispatchers")
    _add_pairing(commands)
    commands.add_parser("self-check", help="check settings, scripts, certificates and trust")
    for name, run, summary in (
        ("pairing-status", _pairing_status, "say whether and with whom this agent is paired"),
        ("paired", _paired, "exit 0 if this agent is paired, 1 if not"),
        ("self-ping", _self_ping, "ask the running agent for its certificate"),
        ("promote-cert", _promote_cert, "put a staged certificate in its place"),
        ("cert-staged", _cert_staged, "exit 0 if a renewed certificate waits, 1 if not"),
    ):
        command = commands.add_parser(name, help=summary)
        command.set_defaults(execute=run)
        if name == "self-ping":
            command.add_argument("--port", type=int, help="where it listens, if agent.conf says port = 0")
    local = commands.add_parser("run-local", help="run an allow-listed script as a dispatcher would")
    local.add_argument("script", metavar="SCRIPT")
    local.add_argument("args", metavar="ARG", nargs="*", help="its arguments, after --")
    local.add_argument("--timeout", type=int, metavar="SECONDS", help="end it after this time")
    local.set_defaults(execute=_run_local)
    return parser


def _add_pairing(commands: Any) -> None:
    pairing = commands.add_parser("request-pairing", help="ask a dispatcher for a certificate")
    pairing.add_argument(
        "--dispatcher", required=True, metavar="HOST", help="the dispatcher's name or address"
    )
    pairing.add_argument("--port", type=int, default=7444, help="its pairing port (default: 7444)")
    pairing.add_argument("--ca-fingerprint", metavar="FP", help="SHA-256 of its CA: no code to compare here")
    pairing.add_argument("--token", metavar="TOKEN", help="a pairing token (better: --token-file)")
    pairing.add_argument("--token-file", metavar="FILE", help="a file that holds a pairing token")
    pairing.add_argument(
        "--lookup-by", choices=("hostname", "ip"), help="ask to be dialled by name or by address"
    )
    pairing.add_argument(
        "--ip", metavar="ADDRESS", help="the address to be dialled at, if not the calling one"
    )
    pairing.add_argument("--legacy", action="store_true", help="accept an older dispatcher, open to a relay")
    pairing.add_argument(
        "--timeout", type=int, default=600, metavar="SECONDS", help="how long to wait (default: 600)"
    )
    pairing.set_defaults(execute=_request_pairing)


def _request_pairing(context: Context) -> int:
    from ctrl_exec_agent.enrolment import PairingWish, request_pairing

    options = context.options
    wish = PairingWish(
        dispatcher=options.dispatcher,
        port=options.port,
        ca_fingerprint=options.ca_fingerprint or "",
        token=_token_of(options.token, options.token_file),
        is_legacy=options.legacy,
        timeout_s=options.timeout,
        lookup_by=options.lookup_by or "",
        ip=options.ip or "",
    )
    enrolled = request_pairing(context.config, wish, lambda text: print(text, file=sys.stderr, flush=True))
    log = Log(PROGRAM, context.config.log_target, context.config.log_format)
    log.info("pair-complete", dispatcher=enrolled.dispatcher_id, serial=enrolled.dispatcher_serial)
    document = {
        "ok": True, "paired": True, "dispatcher": enrolled.dispatcher_id,
        "dispatcher_serial": enrolled.dispatcher_serial,
    }  # fmt: skip
    context.show(document, f"paired with {enrolled.dispatcher_id}; now: systemctl restart {PROGRAM}")
    return 0


def _token_of(token: str | None, path: str | None) -> str:
    if path is None:
        return token or ""
    if token is not None:
        raise UsageError("--token and --token-file: give one of them")
    try:
        content = sys.stdin.readline(4096) if path == "-" else read_bounded(path, 4096, follow=True).decode()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {path}: no such file, or not text") from error
    return content.split("\n")[0].strip()


def _pairing_status(context: Context) -> int:
    config = context.config
    if not is_paired(config):
        context.show(
            {"ok": True, "paired": False},
            f"not paired; pair with: {PROGRAM} request-pairing --dispatcher HOST",
        )
        return 1
    certificate = renewal.load_certificate(config.cert_path)
    dispatchers = sorted(set(load_trust_map(config.trust_path).serials.values()))
    expiry = openssl_time(certificate.not_after)
    document = {
        "ok": True, "paired": True, "dispatchers": dispatchers, "serial": certificate.serial,
        "fingerprint": certificate.fingerprint, "expiry": expiry,
    }  # fmt: skip
    trusted = ", ".join(dispatchers) or "nobody: the trust map is empty"
    context.show(document, f"paired; trusts {trusted}; certificate {certificate.serial} until {expiry}")
    return 0


def _paired(context: Context) -> int:
    trusts = bool(load_trust_map(context.config.trust_path).serials)
    paired = is_paired(context.config) and trusts
    context.show({"ok": True, "paired": paired}, "paired" if paired else "not paired")
    return 0 if paired else 1


def _self_ping(context: Context) -> int:
    from ctrl_exec_agent.self_check import ask_own_certificate

    address, certificate = ask_own_certificate(context.config, context.options.port)
    expiry = openssl_time(certificate.not_after)
    document = {"ok": True, "address": address, "serial": certificate.serial, "expiry": expiry}
    context.show(document, f"ok: the agent answers on {address}; its certificate is valid until {expiry}")
    return 0


def _promote_cert(context: Context) -> int:
    certificate = renewal.promote(context.config)
    expiry = openssl_time(certificate.not_after)
    document = {"ok": True, "serial": certificate.serial, "expiry": expiry}
    context.show(
        document,
        f"promoted certificate {certificate.serial}, valid until {expiry}; now: systemctl reload {PROGRAM}",
    )
    return 0


def _cert_staged(context: Context) -> int:
    config = context.config
    if not renewal.has_staged(config):
        context.show({"ok": True, "staged": False}, "no certificate is staged")
        return 1
    context.show({"ok": True, "staged": True, "path": config.staging_path}, f"staged: {config.staging_path}")
    return 0


def _run_local(context: Context) -> int:
    """What a dispatcher would get, without record and lock: those belong to the daemon's user."""
    config, options = context.config, context.options
    allowlist = load_allowlist(config.scripts_path, config.script_dirs)
    check_profiles(config, allowlist)
    script = allowlist.find(options.script)
    if script is None:
        raise CtrlExecError(f"script not permitted: {options.script!r} is not in {config.scripts_path}")
    try:
        path = allowlist.resolve(script)
    except StorageError as error:
        raise CtrlExecError(f"script not permitted: {error}") from error
    outcome = run_script(_local_job(context, script, path))
    _show_outcome(context, outcome)
    return EXIT_TIMED_OUT if outcome.timed_out else outcome.exit


def _local_job(context: Context, script: Script, path: str) -> Job:
    options = context.options
    if options.timeout is not None and options.timeout < 1:
        raise UsageError("--timeout: expected a number of seconds from 1 on")
    limits = [limit for limit in (options.timeout, script.timeout_s) if limit is not None]
    told = {
        "script": script.name,
        "args": options.args,
        "reqid": new_reqid(),
        "peer_ip": "127.0.0.1",
        "username": context.environment.get("USER", ""),
        "token": "",
        "dispatcher": "",
    }
    return Job(
        path,
        tuple(options.args),
        script_environment(context.environment),
        script_stdin(told),
        timeout_s=min(limits) if limits else None,
        stdin_timeout_s=context.config.stdin_timeout,
        limit_bytes=context.config.max_output,
    )


def _show_outcome(context: Context, outcome: Outcome) -> None:
    if context.options.json:
        document = {"ok": outcome.exit == 0, "script": context.options.script} | answer_of(outcome, None)
        document |= {"stdout": output_text(outcome.stdout, None), "stderr": output_text(outcome.stderr, None)}
        print(json.dumps(document))
        return
    for stream, output in ((sys.stdout, outcome.stdout), (sys.stderr, outcome.stderr)):
        stream.buffer.write(output)
        stream.flush()
    user = os.geteuid()
    print(f"{PROGRAM}: exit {outcome.exit}, run as uid {user}", file=sys.stderr)
    if outcome.error:
        print(f"{PROGRAM}: {outcome.error}", file=sys.stderr)

"""The agent's program: one command after the options, `serve` for the daemon.

Owns argv, the environment, exit codes and what is printed. Exit codes: 0 done, 1 it failed, 2 a
wrong command line, 78 a configuration that an admin must set right (also: not paired yet).
"""

from __future__ import annotations

import os
import sys

from ctrl_exec.common.errors import CertificateError, ConfigError, CtrlExecError, UsageError
from ctrl_exec.common.process import seal_descriptors, use_default_sigchld
from ctrl_exec.common.settings import NO_SUCH_FILE
from ctrl_exec_agent.generation import PROGRAM, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_FAILED, EXIT_USAGE, EXIT_CONFIG, EXIT_INTERRUPTED = 1, 2, 78, 130
_UMASK = 0o027


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    use_default_sigchld()
    seal_descriptors()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if "serve" in arguments:
            served = _serve_source(arguments)
            if served is not None:
                return _serve(served)
        from ctrl_exec_agent.commands import execute

        return execute(arguments, dict(os.environ), _serve)
    except UsageError as error:
        return _fail(error, EXIT_USAGE, arguments)
    except (ConfigError, CertificateError) as error:
        return _fail(error, EXIT_CONFIG, arguments)
    except CtrlExecError as error:
        return _fail(error, EXIT_FAILED, arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has had enough; nothing may be flushed to it at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _serve_source(arguments: list[str]) -> Source | None:
    """The daemon's plain command line, read without argparse, which would cost it 1.5 MB for good."""
    given: dict[str, str] = {}
    rest = list(arguments)
    rest.remove("serve")
    while rest:
        option, equals, text = rest.pop(0).partition("=")
        if option not in ("--config", "--allowlist") or option in given or not (equals or rest):
            return None
        given[option] = text if equals else rest.pop(0)
    return Source(given.get("--config"), given.get("--allowlist"), dict(os.environ))


def _serve(source: Source) -> int:
    """Be the daemon."""
    from ctrl_exec_agent.server import AgentServer

    os.umask(_UMASK)
    server = AgentServer(_absolute(source))
    os.chdir("/")
    server.serve()
    return 0


def _absolute(source: Source) -> Source:
    def absolute(path: str | None) -> str | None:
        return os.path.abspath(path) if path else None

    return Source(absolute(source.config_path), absolute(source.allowlist_path), source.environment)


def _fail(error: CtrlExecError, code: int, arguments: list[str]) -> int:
    if "--json" in arguments:
        import json

        print(json.dumps({"ok": False, "error": str(error)}))
    print(f"{PROGRAM}: {error}", file=sys.stderr)
    if isinstance(error, ConfigError) and error.detail == NO_SUCH_FILE:
        print(
            "`make install-system ROLE=agent` makes the system's; --config FILE names another",
            file=sys.stderr,
        )
    return code

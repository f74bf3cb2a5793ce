"""The two ways in which a command reaches the dispatcher: over the daemon's socket, or here.

Owns the choice between them, made anew where nothing was asked of the daemon yet, and what each command
asks on either. Both give the same documents, those of the API, and raise the same errors. The daemon's way
needs neither the dispatcher's key nor its state; the other does the work in this process, as the service
user.
"""

from __future__ import annotations

import os

from ctrl_exec.cli.daemon import GRACE_S, Daemon, Question, UnsentError
from ctrl_exec.common import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, TypeVar

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.cli.progress import Release
    from ctrl_exec.cli.wish import Wish
    from ctrl_exec.common.messages import HostResult

    T = TypeVar("T")


class Way:
    """How one command reaches the dispatcher."""

    def __init__(self, context: Context, arguments: Arguments) -> None:
        self._context = context
        self._arguments = arguments
        self._daemon: Daemon | None = None
        self._why_here = ""
        self._has_told = False
        try:
            self._daemon = find_daemon(context, arguments)
        except UnsentError as error:
            self._why_here = str(error)

    @property
    def is_daemon(self) -> bool:
        """Whether the daemon is (still) what is asked."""
        return self._daemon is not None

    def _do(self, ask: Callable[[Daemon], T], here: Callable[[], T]) -> T:
        """Ask the daemon; work here if nothing was asked of it."""
        if self._daemon is not None:
            try:
                found = ask(self._daemon)
            except UnsentError as error:
                self._why_here = str(error)
                self._daemon = None
            else:
                self._tell(f"over {self._context.settings.api_socket}")
                return found
        self._require_here()
        return here()

    def _require_here(self) -> None:
        """Become the service user. Raises: ServiceError if the daemon was the only way."""
        config = self._context.config
        may_not = not os.access(config.key_path, os.R_OK) and os.path.exists(config.api_socket)
        if self._why_here and may_not:
            raise errors.ServiceError(
                f"{self._why_here}; is ctrl-exec-api running? Without it this needs {config.key_path}, "
                "which cannot be read"
            )
        self._tell(f"without the daemon: {self._why_here}")

    def _tell(self, words: str) -> None:
        if self._context.is_verbose and not self._has_told:
            self._context.output.stderr.write(f"ctrl-exec: {words}\n")
            self._has_told = True

    def run(
        self, wish: Wish, release: Release, on_result: Callable[[HostResult], None] | None = None
    ) -> dict[str, Any]:
        """Run a script; gives the answer of `POST /run`. Over the daemon all results come at the end."""
        question = run_question(self._context, self._arguments, wish)
        return self._do(
            lambda daemon: daemon.ask(question, release), lambda: self._run_here(wish, release, on_result)
        )

    def _run_here(
        self, wish: Wish, release: Release, on_result: Callable[[HostResult], None] | None
    ) -> dict[str, Any]:
        from ctrl_exec.operations.run import run

        context = self._context
        report = run(
            context.dispatcher,
            context.caller(self._arguments),
            wish.request(),
            interrupt=release.interrupt,
            on_result=on_result,
        )
        return report.accepted_json() if wish.is_async else report.run_json()

    def ping(
        self, patterns: Sequence[str], release: Release, on_state: Callable[[str, str], None]
    ) -> list[dict[str, Any]]:
        """Ping; gives one result for each host. `on_state` is told of each as it comes, here."""
        context, arguments = self._context, self._arguments

        def here() -> list[dict[str, Any]]:
            from ctrl_exec.operations.ping import ping

            found = ping(
                context.dispatcher,
                context.caller(arguments),
                patterns,
                agent_port=arguments.port("port"),
                interrupt=release.interrupt,
                on_result=lambda result: on_state(result.state, result.host),
            )
            return [result.as_json() for result in found]

        question = hosts_question(context, arguments, "/ping", patterns)
        return self._do(lambda daemon: list(daemon.ask(question, release)["results"]), here)

    def discover(self, patterns: Sequence[str], release: Release) -> dict[str, Any]:
        """Ask for capabilities; gives them by host."""
        context, arguments = self._context, self._arguments

        def here() -> dict[str, Any]:
            from ctrl_exec.operations.discovery import discover

            return discover(
                context.dispatcher,
                context.caller(arguments),
                patterns or None,
                agent_port=arguments.port("port"),
                interrupt=release.interrupt,
            )

        question = hosts_question(context, arguments, "/discovery", patterns)
        return self._do(lambda daemon: dict(daemon.ask(question, release)["hosts"]), here)

    def status(self, reqid: str) -> dict[str, Any]:
        """Give the record of a run."""

        def here() -> dict[str, Any]:
            from ctrl_exec.operations.status import status

            context = self._context
            return status(context.dispatcher, context.caller(self._arguments), reqid).status_json()

        question = look(self._context, self._arguments, f"/status/{checked_reqid(reqid)}", reqid)
        return self._do(lambda daemon: daemon.ask(question), here)

    def cancel(self, reqid: str, release: Release) -> dict[str, Any]:
        """Cancel a run; tells host by host whether it ended."""
        context, arguments = self._context, self._arguments

        def here() -> dict[str, Any]:
            from ctrl_exec.operations.cancel import cancel

            caller = context.caller(arguments)
            return cancel(context.dispatcher, caller, reqid, interrupt=release.interrupt).as_json()

        path = f"/runs/{checked_reqid(reqid)}/cancel"
        # asked twice it is still cancelled
        question = Question("POST", path, credentials(context, arguments), reqid=reqid, is_look=True)
        return self._do(lambda daemon: daemon.ask(question, release), here)

    def runs(self, wanted: Mapping[str, str]) -> dict[str, Any]:
        """List runs, newest first; `wanted` are the parameters of `GET /runs`."""
        from ctrl_exec.cli.listing import list_here, query

        context, arguments = self._context, self._arguments
        question = look(context, arguments, f"/runs{query(wanted)}")
        return self._do(lambda daemon: daemon.ask(question), lambda: list_here(context, arguments, wanted))

    def events(self, reqid: str, release: Release, after: int = -1) -> Iterator[dict[str, Any]]:
        """Give the events of a run after one of them, to its end or the release; goes on after a break.

        Raises: as `_do`; ServiceError if the daemon does not come back and this process may not do it.
        """
        from ctrl_exec.cli.following import Following

        checked_reqid(reqid)
        context, arguments = self._context, self._arguments
        daemon = self._daemon

        def over(place: int) -> Iterator[dict[str, Any]]:
            assert daemon is not None
            path = f"/runs/{reqid}/output" + (f"?after={place}" if place >= 0 else "")
            return daemon.lines(look(context, arguments, path, reqid), release)

        def here(place: int) -> Iterator[dict[str, Any]]:
            from ctrl_exec.operations.follow import follow

            self._require_here()
            caller = context.caller(arguments)
            for event in follow(context.dispatcher, caller, reqid, place, release.interrupt):
                yield event.as_json()

        followed = Following(release, over if daemon is not None else None, here, self._give_up)
        return followed.events(after)

    def _give_up(self, why: str) -> None:
        """Leave the daemon for this process. Raises: ServiceError if that may not."""
        self._why_here = why
        self._daemon = None
        self._require_here()


def find_daemon(context: Context, arguments: Arguments) -> Daemon | None:
    """Give the daemon whose socket this command may use, None if none is configured.

    Raises: UnsentError if the daemon cannot do what is asked, and why.
    """
    settings = context.settings
    if not settings.api_socket:
        raise UnsentError("no api_socket is configured")
    if arguments.port("port") is not None:
        raise UnsentError("the daemon knows the agents' ports of the registry only, not --port")
    username = arguments.text("username")
    # there the name is the one that the kernel proves; who may not work here gets the daemon's refusal
    is_other = username is not None and os.geteuid() != 0 and username != own_name()
    if is_other and os.access(settings.key_path, os.R_OK):
        raise UnsentError("on the socket the user name is one's own, not --username")
    return Daemon(
        settings.api_socket,
        lambda uid: is_trusted(context, uid),
        os.path.normpath(settings.state_dir),
        settings.max_run_output,
    )


def own_name() -> str:
    """Give the name of the user we run as, its number if it has none."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def is_trusted(context: Context, uid: int) -> bool:
    """Whether a daemon of this user may be told a token: root, we, the service user, who owns the file."""
    if uid in (0, os.geteuid()):
        return True
    try:
        if uid == os.stat(context.config_path).st_uid:
            return True
        import pwd

        return uid == pwd.getpwnam(context.settings.service_user).pw_uid
    except (OSError, KeyError):
        return False


def credentials(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Give `username` (only if it was given: the kernel knows who we are) and `token` for a body."""
    found = {"username": arguments.text("username"), "token": context.token(arguments) or None}
    return {key: each for key, each in found.items() if each is not None}


def run_question(context: Context, arguments: Arguments, wish: Wish) -> Question:
    """Give the request for a run."""
    settings = context.settings
    silence_s = wish.read_timeout_s or settings.read_timeout
    # an agent that answers keeps the run alive: only the run's own deadline bounds it
    timeout_s = max(settings.run_deadline, silence_s) + wish.lock_wait_s + GRACE_S
    body = wish.body() | credentials(context, arguments)
    return Question("POST", "/run", body, timeout_s, script=wish.script)


def hosts_question(context: Context, arguments: Arguments, path: str, hosts: Sequence[str]) -> Question:
    """Give the request for a ping or a discovery of these hosts (none: all)."""
    body = credentials(context, arguments)
    if hosts:
        body["hosts"] = list(hosts)
    return Question("POST", path, body, context.settings.read_timeout + GRACE_S, is_look=True)


def look(context: Context, arguments: Arguments, path: str, reqid: str = "") -> Question:
    """Give a GET; it has no body, so credentials go into a header."""
    found = credentials(context, arguments)
    authorization = ""
    if found:
        import binascii

        pair = f"{found.get('username', '')}:{found.get('token', '')}".encode()
        authorization = f"Basic {binascii.b2a_base64(pair, newline=False).decode()}"
    return Question("GET", path, authorization=authorization, reqid=reqid, is_look=True)


def checked_reqid(reqid: str) -> str:
    """Give the request id. Raises: InvalidNameError."""
    from ctrl_exec.common.names import check_reqid

    return check_reqid(reqid)

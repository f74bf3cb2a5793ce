"""Who may do what: the auth hook where there is one, the configured default where there is none.

Owns the caller's identity as a value and the one decision on it; deny is the default. Every front
end identifies, every operation asks here exactly once. Must not know HTTP, exit codes or what an
action does.
"""

from __future__ import annotations

from ctrl_exec.common.clock import iso_z, utc_now
from ctrl_exec.common.errors import ConfigError, DeniedError
from ctrl_exec.common.hook import (
    DENIED,
    INSUFFICIENT_PRIVILEGE,
    HookQuestion,
    HookSettings,
    HookVerdict,
    ask_hook,
)
from ctrl_exec.common.value import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from ctrl_exec.common.log import Log

    Via = Literal["http", "socket", "cli", "scheduler", "webhook", "ui"]
    Auth = Literal["none", "claimed", "peer", "token"]

NO_HOOK_DETAIL = "no auth hook configured (set auth_hook in ctrl-exec.conf; see docs/auth-hook.md)"
# ways in that file permissions guard: without a hook they are open
_LOCAL = ("cli", "socket", "scheduler")
# tokens of the task layer and of pairing are ours; no agent ever sees one
_OWN_TOKENS = ("ctpat_", "ctoat_", "ctort_", "ctpair_")


def is_own_token(token: str) -> bool:
    """Whether the text looks like a token of the task layer, which resolves it before anyone is asked."""
    return token.startswith(("ctpat_", "ctoat_"))


@value
class Caller:
    """Who asks, and how far we know it.

    `token` is the credential to be judged, wherever it came from; `forwarded_token` is the one that
    came in the JSON body or from the command line, the only one that may go on to agents. `auth` says how
    far the user name is proven.
    """

    username: str = ""
    token: str = ""
    source_ip: str = "127.0.0.1"
    via: Via = "http"
    auth: Auth = "none"
    forwarded_token: str = ""


@value
class Submitter:
    """Who started a run; kept in its record, never in an answer."""

    username: str = ""
    source_ip: str = ""


@value
class AuthoritySettings:
    """How decisions are taken.

    `hook` gives the hook's settings at the time of asking (its environment file may change), None
    without a hook. `default` (deny, allow, token) governs where there is none. `token_check` is the
    task layer's: it raises DeniedError unless the token that proved the caller permits the action on
    what the submitter started; where there is a hook, it is asked before that about the token's limits.
    `on_verdict` is told what the hook said, for figures.
    """

    hook: Callable[[], HookSettings] | None = None
    default: str = "deny"
    forwards_token: bool = True
    dispatcher: str = ""
    dispatcher_serial: Callable[[], str] = str
    token_check: Callable[[Caller, str, Submitter | None], None] | None = None
    on_verdict: Callable[[HookVerdict], None] | None = None


class Authority:
    """Decides, and logs each decision."""

    def __init__(self, settings: AuthoritySettings, log: Log) -> None:
        self._settings = settings
        self._log = log
        self.has_hook = settings.hook is not None
        """Whether a hook is configured."""
        self.is_open_to_all = not self.has_hook and settings.default == "allow"
        """Whether nobody is asked for anything: no hook, and the default is to allow."""
        self.is_closed = not self.has_hook and settings.default == "deny"
        """Whether nobody from afar is let in: no hook, and the default is to deny."""

    def require_open(self, caller: Caller) -> None:
        """Refuse what is refused whatever is asked: no hook, and the default is to deny.

        The HTTP front end asks this before it looks at the path. Raises: DeniedError.
        """
        if self.is_closed and caller.via not in _LOCAL:
            raise DeniedError(DENIED, "denied", NO_HOOK_DETAIL)

    def check(
        self,
        caller: Caller,
        action: str,
        *,
        script: str = "",
        hosts: tuple[str, ...] = (),
        args: tuple[str, ...] = (),
        reqid: str = "",
        submitter: Submitter | None = None,
    ) -> None:
        """Allow the action or raise.

        Raises: DeniedError with code and reason; PayloadError if the hook can't be told all of it.
        """
        if self.is_open_to_all:
            return
        if self._settings.hook is None:
            self._check_without_hook(caller, action, submitter)
            return
        self._check_limits(caller, action, submitter)
        question = self._question(caller, action, submitter or Submitter())
        verdict = self._ask(
            self._settings.hook, replace(question, script=script, hosts=hosts, args=args, reqid=reqid)
        )
        if not verdict.is_allowed:
            raise DeniedError(verdict.code, verdict.reason)

    def sees(self, caller: Caller, action: str, *, reqid: str, script: str, submitter: Submitter) -> bool:
        """Whether the caller may know of an object; False if the hook says in so many words that not.

        A hook that fails, and one that finds the credentials themselves bad, is a denial like any
        other: only exit codes 1 and 3 are judgements of this object.

        Raises: DeniedError; PayloadError.
        """
        if self._settings.hook is None:
            return self._is_permitted(self._check_without_hook, caller, action, submitter)
        if not self._is_permitted(self._check_limits, caller, action, submitter):
            return False
        question = self._question(caller, action, submitter)
        verdict = self._ask(self._settings.hook, replace(question, reqid=reqid, script=script))
        if verdict.cause in ("exit 1", "exit 3"):
            return False
        if not verdict.is_allowed:
            raise DeniedError(verdict.code, verdict.reason)
        return True

    def forwarded_token(self, caller: Caller) -> str:
        """The token that agents get with a run of this caller; empty where it must not go on."""
        token = caller.forwarded_token
        return token if self._settings.forwards_token and not token.startswith(_OWN_TOKENS) else ""

    def _is_permitted(
        self,
        check: Callable[[Caller, str, Submitter | None], None],
        caller: Caller,
        action: str,
        submitter: Submitter,
    ) -> bool:
        try:
            check(caller, action, submitter)
        except DeniedError as error:
            if error.code == INSUFFICIENT_PRIVILEGE:
                return False
            raise
        return True

    def _check_limits(self, caller: Caller, action: str, submitter: Submitter | None) -> None:
        """A token that was made for less than its user may, stays so whatever the hook says of the user."""
        if self._settings.token_check is not None and caller.auth == "token":
            self._settings.token_check(caller, action, submitter)

    def _check_without_hook(self, caller: Caller, action: str, submitter: Submitter | None) -> None:
        self.require_open(caller)
        # an execution's rights were judged when it was asked for; its token has nothing more to say
        is_local = caller.via in _LOCAL and (caller.auth != "token" or caller.via == "scheduler")
        if is_local or self.is_open_to_all:
            return
        if self._settings.token_check is None:
            raise DeniedError(DENIED, "denied", NO_HOOK_DETAIL)
        self._settings.token_check(caller, action, submitter)

    def _question(self, caller: Caller, action: str, submitter: Submitter) -> HookQuestion:
        return HookQuestion(
            action=action,
            timestamp=iso_z(utc_now()),
            username=caller.username,
            token="" if caller.auth == "token" else caller.token,
            source_ip=caller.source_ip,
            dispatcher=self._settings.dispatcher,
            dispatcher_serial=self._settings.dispatcher_serial(),
            submitter=submitter.username,
            submitter_ip=submitter.source_ip,
            via=caller.via,
            auth=caller.auth,
        )

    def _ask(self, hook: Callable[[], HookSettings], question: HookQuestion) -> HookVerdict:
        try:
            verdict = ask_hook(hook(), question)
        except ConfigError as error:
            verdict = HookVerdict(DENIED, str(error), 0.0)
        self._note(question, verdict)
        if self._settings.on_verdict is not None:
            self._settings.on_verdict(verdict)
        return verdict

    def _note(self, question: HookQuestion, verdict: HookVerdict) -> None:
        facts = {
            "request": question.action,
            "code": verdict.code,
            "cause": verdict.cause,
            "user": question.username,
            "source": question.source_ip,
            "script": question.script or None,
            "reqid": question.reqid or None,
            "via": question.via,
            "ms": round(verdict.elapsed_s * 1000),
        }
        if verdict.has_timed_out:
            self._log.error("auth-hook-timeout", **facts)
        elif verdict.is_allowed:
            self._log.info("auth", **facts)
        else:
            self._log.warning("auth", **facts)

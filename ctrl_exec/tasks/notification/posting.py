"""Notices on their way: how each kind of notifier wants them, and one attempt to send one.

Owns the forms of the services. Sources: Slack "Incoming webhooks", Mattermost "Incoming webhooks", Discord
"Execute webhook", Microsoft "Adaptive cards in Teams workflows", ntfy "Publishing", Standard Webhooks 1.0.
What goes wrong is said without address, secret or text.
"""

from __future__ import annotations

import json

from ctrl_exec.common.errors import ConfigError
from ctrl_exec.common.value import value
from ctrl_exec.tasks.inbound.webhooks import standard_key
from ctrl_exec.tasks.outbound.outgoing import Allowance, OutgoingError, OutgoingRequest, read_allowance, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ctrl_exec.config import Config
    from ctrl_exec.tasks.models import Notifier
    from ctrl_exec.tasks.notification.mail import MailServer
    from ctrl_exec.tasks.notification.news import Notice

TIMEOUT_S = 10.0
# mail servers let strangers wait on purpose
MAIL_TIMEOUT_S = 30.0
_JSON = ("Content-Type", "application/json")
_WORDS = {
    "ON_START": "started",
    "ON_END": "ended",
    "ON_FAILURE": "failed",
    "ON_RECOVERY": "works again",
    "ON_MISSED": "was not started",
    "ON_LONG": "takes long",
}
_DISCORD_LIMIT = 2000


@value
class Posting:
    """What sending stands on: where requests may go, and the mail server if there is one."""

    allowance: Allowance
    mail: MailServer | None = None


def posting_of(config: Config) -> Posting:
    """As the configuration has it. Raises: ConfigError."""
    try:
        allowance = read_allowance(config.tasks_outgoing_allow)
    except ValueError as error:
        raise ConfigError(f"tasks.outgoing_allow: {error}") from error
    if not config.tasks_smtp_host:
        return Posting(allowance)
    from ctrl_exec.tasks.notification.mail import MailServer

    server = MailServer(
        host=config.tasks_smtp_host,
        port=config.tasks_smtp_port,
        security=config.tasks_smtp_security,
        sender=config.tasks_smtp_from,
        user=config.tasks_smtp_user,
        password_path=config.tasks_smtp_password_file,
    )
    return Posting(allowance, server)


def post(posting: Posting, notifier: Notifier, secret: str, notice: Notice, *, now_s: int) -> None:
    """Send a notice. Raises: OutgoingError; RefusedError where it would be refused again."""
    if notifier.kind == "EMAIL":
        if posting.mail is None:
            raise OutgoingError("there is no mail server: set tasks.smtp_host")
        from ctrl_exec.tasks.notification.mail import send_mail

        recipients = tuple(notifier.settings["to"])
        send_mail(posting.mail, recipients, headline(notice), text_of(notice), MAIL_TIMEOUT_S)
        return
    request = _FORMS[notifier.kind](notifier, secret, notice, now_s)
    answer = send(request, posting.allowance, timeout_s=TIMEOUT_S)
    if not 200 <= answer.status < 300:
        raise OutgoingError(f"the receiver answered {answer.status}")


def headline(notice: Notice) -> str:
    """What it is about, in a few words."""
    if notice.event not in _WORDS:
        return "ctrl-exec: a test"
    return f"{notice.document['taskName']}: {_WORDS[notice.event]}"


def text_of(notice: Notice) -> str:
    """The notice in one line."""
    known = notice.document
    if notice.event not in _WORDS:
        return "ctrl-exec: a test of this notifier."
    facts = [] if notice.event in ("ON_START", "ON_LONG") else [str(known["status"])]
    if known["exitCode"] is not None:
        facts.append(f"exit {known['exitCode']}")
    if known["reason"]:
        facts.append(" ".join(str(known["reason"]).split()))
    if known.get("failures", 0) > 1:
        facts.append(f"{known['failures']} failures in a row")
    words = f": {', '.join(facts)}" if facts else ""
    where = f"project {known['projectId']}, execution {known['executionId']}"
    return f"{headline(notice)}{words} ({where})"


def _slack(_notifier: Notifier, secret: str, notice: Notice, _now_s: int) -> OutgoingRequest:
    text = text_of(notice).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _json(secret, {"text": text})


def _mattermost(_notifier: Notifier, secret: str, notice: Notice, _now_s: int) -> OutgoingRequest:
    # a task named @all calls nobody: a word joiner stands behind the sign
    return _json(secret, {"text": text_of(notice).replace("@", "@\u2060")})


def _discord(_notifier: Notifier, secret: str, notice: Notice, _now_s: int) -> OutgoingRequest:
    text = text_of(notice)[:_DISCORD_LIMIT]
    return _json(secret, {"content": text, "allowed_mentions": {"parse": []}})


def _teams(_notifier: Notifier, secret: str, notice: Notice, _now_s: int) -> OutgoingRequest:
    text = {"type": "TextBlock", "text": text_of(notice), "wrap": True}
    card = {"type": "AdaptiveCard", "version": "1.4", "body": [text]}
    kind = "application/vnd.microsoft.card.adaptive"
    return _json(secret, {"type": "message", "attachments": [{"contentType": kind, "content": card}]})


def _ntfy(notifier: Notifier, secret: str, notice: Notice, _now_s: int) -> OutgoingRequest:
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Title", "ctrl-exec")]
    if notice.event in ("ON_FAILURE", "ON_MISSED"):
        headers.append(("Priority", "high"))
    if secret:
        headers.append(("Authorization", f"Bearer {secret}"))
    return OutgoingRequest("POST", notifier.settings["url"], tuple(headers), text_of(notice).encode())


def _webhook(notifier: Notifier, secret: str, notice: Notice, now_s: int) -> OutgoingRequest:
    """Signed as Standard Webhooks wants it, where there is a secret."""
    event = notice.event.removeprefix("ON_").lower()
    content = {"type": f"execution.{event}", "timestamp": _iso(notice.created_ns), "data": notice.document}
    body = json.dumps(content, ensure_ascii=False).encode()
    headers = [_JSON, ("webhook-id", notice.notice_id), ("webhook-timestamp", str(now_s))]
    if secret:
        signature = signed(secret, f"{notice.notice_id}.{now_s}.".encode() + body)
        headers.append(("webhook-signature", signature))
    return OutgoingRequest("POST", notifier.settings["url"], tuple(headers), body)


def signed(secret: str, content: bytes) -> str:
    """`v1,` and the signature; a secret that is no base 64 is its own bytes."""
    import base64
    import hashlib
    import hmac

    key = standard_key(secret) or secret.encode()
    return "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


def _iso(at_ns: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(url: str, content: dict[str, Any]) -> OutgoingRequest:
    return OutgoingRequest("POST", url, (_JSON,), json.dumps(content, ensure_ascii=False).encode())


_FORMS: dict[str, Callable[[Notifier, str, Notice, int], OutgoingRequest]] = {
    "SLACK": _slack,
    "MATTERMOST": _mattermost,
    "DISCORD": _discord,
    "TEAMS": _teams,
    "NTFY": _ntfy,
    "WEBHOOK": _webhook,
}

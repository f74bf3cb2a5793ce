"""Mail by the administrator's SMTP server.

Owns one message and one conversation. What goes wrong is said without the server's words, which may
repeat what it was given.
"""

from __future__ import annotations

from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.value import value
from ctrl_exec.tasks.outgoing import OutgoingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import smtplib

_PASSWORD_LIMIT = 4096


@value
class MailServer:
    """Where mail is handed in. `security`: `starttls`, `tls` or `none`."""

    host: str
    port: int
    security: str
    sender: str
    user: str = ""
    password_path: str = ""


def send_mail(
    server: MailServer, recipients: tuple[str, ...], subject: str, text: str, timeout_s: float
) -> None:
    """Hand one message in; each step takes at most the time. Raises: OutgoingError."""
    import smtplib
    from email.message import EmailMessage
    from email.utils import formatdate, make_msgid

    message = EmailMessage()
    message["Subject"] = subject
    message["From"] = server.sender
    message["To"] = ", ".join(recipients)
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain=server.sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no machine answers it
    message.set_content(text + "\n")
    try:
        with _connected(server, timeout_s) as connection:
            if server.user:
                connection.login(server.user, _password(server))
            connection.send_message(message, server.sender, list(recipients))
    except smtplib.SMTPRecipientsRefused as error:
        raise OutgoingError("the mail server takes none of the recipients") from error
    except smtplib.SMTPResponseException as error:
        raise OutgoingError(f"the mail server answered {error.smtp_code}") from error
    except smtplib.SMTPException as error:
        raise OutgoingError(f"the mail server does not do: {type(error).__name__}") from error
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or type(error).__name__
        raise OutgoingError(f"{server.host}: {words}") from error


def _connected(server: MailServer, timeout_s: float) -> smtplib.SMTP:
    import os
    import smtplib
    import ssl

    name = os.uname().nodename  # without it smtplib asks the DNS who we are
    if server.security == "tls":
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(server.host, server.port, name, timeout=timeout_s, context=context)
    connection = smtplib.SMTP(server.host, server.port, name, timeout=timeout_s)
    try:
        if server.security == "starttls":
            connection.starttls(context=ssl.create_default_context())
    except BaseException:
        connection.close()
        raise
    return connection


def _password(server: MailServer) -> str:
    from ctrl_exec.common.files import read_bounded

    try:
        return (
            read_bounded(server.password_path, _PASSWORD_LIMIT)
            .decode("utf-8")
            .partition("\n")[0]
            .rstrip("\r")
        )
    except (StorageError, OSError, UnicodeDecodeError) as error:
        raise OutgoingError("tasks.smtp_password_file cannot be read") from error

"""Mail by the administrator's SMTP server.

Owns one message and one conversation, all of it within one time limit. What goes wrong is said without
the server's words, which may repeat what it was given. Source: RFC 5321, 3207, 4954, 8314.
"""

from __future__ import annotations

import io
from time import monotonic

from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value
from ctrl_exec.tasks.outbound.outgoing import NOT_IN_TIME, OutgoingError, RefusedError, TimelyBytes, connect
from ctrl_exec.tasks.outbound.resolving import addresses_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import smtplib
    import socket
    from email.message import EmailMessage

_PASSWORD_LIMIT = 4096
# of what the server refuses for good these are about us: an administrator mends it, and the mail goes
_ABOUT_US = (530, 534, 535, 538)


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
    """Hand one message in, within the time.

    Raises: OutgoingError; RefusedError where it would be refused again, or was taken for some only.
    """
    import smtplib

    deadline = monotonic() + timeout_s
    message = _message(server, recipients, subject, text)
    try:
        refused = _hand_in(server, message, recipients, deadline)
    except smtplib.SMTPRecipientsRefused as error:
        words = "the mail server takes none of the recipients"
        is_final = all(code >= 500 for code, _ in error.recipients.values())
        raise (RefusedError if is_final else OutgoingError)(words) from error
    except smtplib.SMTPAuthenticationError as error:
        raise OutgoingError(f"the mail server refuses our sign-in ({error.smtp_code})") from error
    except smtplib.SMTPResponseException as error:
        raise _answered(error) from error
    except smtplib.SMTPServerDisconnected as error:
        words = NOT_IN_TIME if monotonic() >= deadline else "it hung up"
        raise OutgoingError(f"{server.host}: {words}") from error
    except smtplib.SMTPException as error:
        raise OutgoingError(f"the mail server does not do: {type(error).__name__}") from error
    except (OSError, ValueError) as error:
        raise OutgoingError(f"{server.host}: {_words(error)}") from error
    if refused:
        taken = len(recipients) - len(refused)
        raise RefusedError(f"the mail server took it for {taken} of {len(recipients)} recipients")


def _answered(error: smtplib.SMTPResponseException) -> OutgoingError:
    import smtplib

    words = f"the mail server answered {error.smtp_code}"
    # a server that greets with 554 is none for now; what it says of this message is its last word
    is_about_it = not isinstance(error, (smtplib.SMTPConnectError, smtplib.SMTPHeloError))
    if is_about_it and error.smtp_code >= 500 and error.smtp_code not in _ABOUT_US:
        return RefusedError(words)
    return OutgoingError(words)


def _words(error: Exception) -> str:
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return NOT_IN_TIME
    return getattr(error, "strerror", None) or type(error).__name__


def _message(server: MailServer, recipients: tuple[str, ...], subject: str, text: str) -> EmailMessage:
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
    return message


def _hand_in(
    server: MailServer, message: EmailMessage, recipients: tuple[str, ...], deadline: float
) -> dict[str, tuple[int, bytes]]:
    """The recipients that were refused while others were not. Raises: SMTPException; OSError; ValueError."""
    import smtplib

    connection = _connected(server, deadline)
    try:
        if server.user:
            connection.login(server.user, _password(server))
        refused = connection.send_message(message, server.sender, list(recipients))
        with suppress(smtplib.SMTPException, OSError):  # it is taken, however the farewell goes
            connection.quit()
        return refused
    finally:
        connection.close()


def _connected(server: MailServer, deadline: float) -> smtplib.SMTP:
    import os
    import smtplib
    import ssl

    # whoever reads mail's passwords or text on the way must not be the one who answers
    context = ssl.create_default_context()

    class Timely(smtplib.SMTP):
        """A conversation of which each step, and all of it, ends at the deadline."""

        def _get_socket(self, host: str, port: int, _timeout: float) -> socket.socket:
            sock = connect(addresses_of(host, deadline), port, deadline)
            if server.security != "tls":
                return sock
            try:
                return context.wrap_socket(sock, server_hostname=host)
            except BaseException:
                sock.close()
                raise

        def getreply(self) -> tuple[int, bytes]:
            if self.file is None and self.sock is not None:
                self.file = io.BufferedReader(TimelyBytes(self.sock, deadline))
            return super().getreply()

    name = os.uname().nodename  # without it smtplib asks the DNS who we are
    connection = Timely(server.host, server.port, name)
    try:
        if server.security == "starttls":
            connection.starttls(context=context)
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

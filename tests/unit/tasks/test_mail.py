"""Mail handed to a real server: signed in over TLS in both ways, to nobody else, refused now or for good."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.common.value import replace
from ctrl_exec.tasks.notification.mail import MailServer, send_mail
from ctrl_exec.tasks.outbound.outgoing import OutgoingError, RefusedError
from tests.support.mail_server import PASSWORD, USER, MailServerProcess, mail_server

OPS = ("ops@example.net",)
FAR_S = 600.0


@pytest.fixture(scope="module")
def post_office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServerProcess]:
    with mail_server(tmp_path_factory.mktemp("mail")) as opened:
        yield opened


@pytest.fixture
def trusting(post_office: MailServerProcess, monkeypatch: pytest.MonkeyPatch) -> MailServerProcess:
    """The server, its CA among those of the system."""
    monkeypatch.setenv("SSL_CERT_FILE", post_office.authority)
    return post_office


@pytest.fixture
def password(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    return str(path)


def server_of(
    office: MailServerProcess, name: str, password: str = "", security: str | None = None
) -> MailServer:
    security = security or ("starttls" if name == "stranger" else name)
    server = MailServer("localhost", office.ports[name], security, "ctrl-exec@example.net")
    return replace(server, user=USER, password_path=password) if password else server


def send(server: MailServer, *recipients: str, timeout_s: float = FAR_S) -> None:
    send_mail(server, recipients or OPS, "Straße: failed", "It failed.", timeout_s)


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_it_is_handed_in_over_tls_by_whom_it_should(
    trusting: MailServerProcess, password: str, security: str
) -> None:
    """Signed in, to all recipients at once, as a message that no machine answers."""
    before = len(trusting.mails())
    send(server_of(trusting, security, password), "ops@example.net", "night@example.net")
    mail = trusting.mails()[before]
    assert mail["recipients"] == ["ops@example.net", "night@example.net"]
    assert (mail["sender"], mail["user"], mail["is_secure"]) == ("ctrl-exec@example.net", USER, True)
    for line in ("Subject: =?utf-8?", "From: ctrl-exec@example.net", "Auto-Submitted: auto-generated"):
        assert line in mail["text"]
    assert PASSWORD not in mail["text"]


def test_a_server_without_tls_or_sign_in_is_used_where_it_is_said(trusting: MailServerProcess) -> None:
    before = len(trusting.mails())
    send(server_of(trusting, "none"))
    assert (trusting.mails()[before]["is_secure"], trusting.mails()[before]["user"]) == (False, None)


def test_a_wrong_sign_in_is_said_and_may_be_mended(
    trusting: MailServerProcess, tmp_path: Path, password: str
) -> None:
    """It is no word on the message: nothing is given up for it."""
    (tmp_path / "wrong").write_text("guessed")
    before = len(trusting.mails())
    for path, words in (
        (str(tmp_path / "wrong"), r"refuses our sign-in \(535\)"), ("", r"answered 530"),
        (str(tmp_path / "none"), "smtp_password_file"),
    ):  # fmt: skip
        with pytest.raises(OutgoingError, match=words) as caught:
            send(server_of(trusting, "starttls", path))
        assert not isinstance(caught.value, RefusedError)
        assert "guessed" not in str(caught.value)
    assert len(trusting.mails()) == before


def test_a_certificate_of_another_is_refused(
    trusting: MailServerProcess, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is said: of another CA, for another name, and with TLS from the first byte."""
    before = len(trusting.mails())
    stranger = server_of(trusting, "stranger", password)
    with pytest.raises(OutgoingError, match=r"^localhost: its certificate is refused"):
        send(stranger)
    with pytest.raises(OutgoingError, match="its certificate is refused"):
        send(replace(server_of(trusting, "tls", password), host="127.0.0.1"))
    monkeypatch.setenv("SSL_CERT_FILE", str(trusting.directory / "stranger.pem"))
    with pytest.raises(OutgoingError, match="its certificate is refused"):
        send(server_of(trusting, "tls", password))
    assert len(trusting.mails()) == before


def test_no_password_goes_to_a_server_that_has_no_tls(trusting: MailServerProcess, password: str) -> None:
    """Nor does the mail; one that speaks plainly where TLS is expected is left, too."""
    before = len(trusting.mails())
    with pytest.raises(OutgoingError, match="does not do"):
        send(server_of(trusting, "none", password, security="starttls"))
    with pytest.raises(OutgoingError):
        send(server_of(trusting, "none", password, security="tls"))
    assert len(trusting.mails()) == before


@pytest.mark.parametrize(
    ("recipients", "is_final", "words"),
    [
        (("450@example.net",), False, "none of the recipients"),
        (("550@example.net", "550-b@example.net"), True, "none of the recipients"),
        (("550@example.net", "450@example.net"), False, "none of the recipients"),
        (("550@example.net", "one@example.net", "two@example.net"), True, "for 2 of 3 recipients"),
        (("data-451@example.net",), False, "answered 451"),
        (("data-554@example.net",), True, "answered 554"),
    ],
)
def test_what_is_refused_says_whether_for_good(
    trusting: MailServerProcess, recipients: tuple[str, ...], is_final: bool, words: str
) -> None:
    """RFC 5321 §4.2.1: 4yz may be tried again, 5yz not. Whom it was taken for gets it once."""
    before = len(trusting.mails())
    with pytest.raises(OutgoingError, match=words) as caught:
        send(server_of(trusting, "none"), *recipients)
    assert isinstance(caught.value, RefusedError) == is_final
    assert "not this one" not in str(caught.value)
    taken = [each["recipients"] for each in trusting.mails()[before:]]
    assert taken == ([["one@example.net", "two@example.net"]] if "2 of 3" in words else [])


def test_a_server_that_takes_nobody_now_may_later(trusting: MailServerProcess) -> None:
    with pytest.raises(OutgoingError, match="answered 554") as caught:
        send(server_of(trusting, "grudging", security="none"))
    assert not isinstance(caught.value, RefusedError)


@pytest.mark.parametrize("security", ["starttls", "tls", "none"])
def test_a_server_that_hangs_is_left_in_time(security: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = MailServer("127.0.0.1", silent.getsockname()[1], security, "ctrl-exec@example.net")
        with pytest.raises(OutgoingError, match=r"^127\.0\.0\.1: no answer in time$"):
            send(server, timeout_s=0.1)


def test_nobody_there_and_no_such_name_are_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    server = MailServer("127.0.0.1", port, "none", "ctrl-exec@example.net")
    with pytest.raises(OutgoingError, match="refused"):
        send(server)
    with pytest.raises(OutgoingError, match="name resolution"):
        send(replace(server, host="a..b"))

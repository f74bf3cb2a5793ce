"""What may be connected to, and how requests to the outside go: real servers on loopback."""

from __future__ import annotations

import http.server
import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from ctrl_exec.tasks.outbound.outgoing import (
    ANSWER_BYTES,
    Allowance,
    OutgoingError,
    OutgoingRequest,
    objection,
    read_allowance,
    send,
)

NOTHING = Allowance()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "::1", "169.254.169.254", "fe80::1", "10.1.2.3", "172.16.0.1", "192.168.1.1",
        "fd00::1", "0.0.0.0", "0.1.2.3", "::", "100.64.0.1", "100.127.255.255", "224.0.0.1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::",
        "64:ff9b:1::808:808", "fec0::1", "::127.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "2001:db8::1",
    ],
)  # fmt: skip
def test_inner_addresses_are_not_reached(address: str) -> None:
    """In every spelling that leads there."""
    assert objection(ipaddress.ip_address(address), NOTHING)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f::1", "::ffff:93.184.215.14"])
def test_public_addresses_are_reached(address: str) -> None:
    """Also mapped ones."""
    assert objection(ipaddress.ip_address(address), NOTHING) == ""


def test_a_site_opens_networks_and_places() -> None:
    """What is listed and nothing beside it."""
    allowance = read_allowance(["10.0.0.0/8", "fd00::/8", "mail.internal:25", "[::1]:8080"])
    assert objection(ipaddress.ip_address("10.1.2.3"), allowance) == ""
    assert objection(ipaddress.ip_address("fd00::1"), allowance) == ""
    assert objection(ipaddress.ip_address("192.168.1.1"), allowance)
    assert allowance.places == {("mail.internal", 25), ("::1", 8080)}
    with pytest.raises(ValueError, match="'nonsense'"):
        read_allowance(["nonsense"])


class Receiver(http.server.BaseHTTPRequestHandler):
    """Tells what came, or does what the path says."""

    seen: list[tuple[str, str, dict[str, str], bytes]]

    def answer(self) -> None:
        """Any method."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): each for name, each in self.headers.items()}
        self.seen.append((self.command, self.path, headers, body))
        parts = urlsplit(self.path)
        if parts.path in ("/redirect", "/loop"):
            status, _, location = (parts.query or "302,/loop").partition(",")
            self.send_response(int(status))
            self.send_header("Location", location)
            self.end_headers()
            return
        content = b"x" * (ANSWER_BYTES + 5) if parts.path == "/long" else b"hello"
        self.send_response(404 if parts.path == "/missing" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[http.server.ThreadingHTTPServer]:
    """A server on loopback that remembers what came."""
    Receiver.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def opened(receiver: http.server.ThreadingHTTPServer) -> Allowance:
    """An allowance for the receiver alone."""
    return read_allowance([f"127.0.0.1:{receiver.server_port}"])


def url(receiver: http.server.ThreadingHTTPServer, path: str) -> str:
    """An address at the receiver."""
    return f"http://127.0.0.1:{receiver.server_port}{path}"


def test_a_request_goes_as_it_was_said(receiver: http.server.ThreadingHTTPServer) -> None:
    """Method, path with its query, headers and body; the status and the beginning of the answer come back."""
    request = OutgoingRequest("PUT", url(receiver, "/a?b=c%20d"), (("X-Key", "k"),), b"body")
    answer = send(request, opened(receiver), timeout_s=60)
    assert (answer.status, answer.body, answer.is_cut) == (200, b"hello", False)
    method, path, headers, body = Receiver.seen[0]
    assert (method, path, headers["x-key"], body) == ("PUT", "/a?b=c%20d", "k", b"body")
    assert (
        send(OutgoingRequest("GET", url(receiver, "/missing")), opened(receiver), timeout_s=60).status == 404
    )
    long = send(OutgoingRequest("GET", url(receiver, "/long")), opened(receiver), timeout_s=60)
    assert (len(long.body), long.is_cut) == (ANSWER_BYTES, True)


def test_what_is_not_opened_is_not_connected_to(receiver: http.server.ThreadingHTTPServer) -> None:
    """Nor by its name, nor through a redirect of what is."""
    for target in (url(receiver, "/"), f"http://localhost:{receiver.server_port}/"):
        with pytest.raises(OutgoingError, match="loopback"):
            send(OutgoingRequest("GET", target), NOTHING, timeout_s=60)
    elsewhere = f"http://127.0.0.1:{receiver.server_port + 1}/secret"
    with pytest.raises(OutgoingError, match="loopback"):
        send(
            OutgoingRequest("GET", url(receiver, f"/redirect?302,{elsewhere}")),
            opened(receiver),
            timeout_s=60,
        )
    assert [path for _, path, _, _ in Receiver.seen] == [f"/redirect?302,{elsewhere}"]


def test_redirects_are_followed_as_browsers_do(receiver: http.server.ThreadingHTTPServer) -> None:
    """A POST becomes a GET, or stays one; not for ever."""
    for status, method in ((302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")):
        Receiver.seen.clear()
        request = OutgoingRequest("POST", url(receiver, f"/redirect?{status},/b"), (), b"x")
        assert send(request, opened(receiver), timeout_s=60).status == 200
        assert [each[0] for each in Receiver.seen] == ["POST", method]
    with pytest.raises(OutgoingError, match="redirects"):
        send(OutgoingRequest("GET", url(receiver, "/loop")), opened(receiver), timeout_s=60)


def test_credentials_do_not_follow_to_another_place(receiver: http.server.ThreadingHTTPServer) -> None:
    """They were meant for the first one."""
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        both = read_allowance([f"127.0.0.1:{each.server_port}" for each in (receiver, other)])
        target = url(receiver, f"/redirect?307,{url(other, '/b')}")
        headers = (("Authorization", "Bearer k"), ("Accept", "text/plain"))
        send(OutgoingRequest("GET", target, headers), both, timeout_s=60)
    finally:
        other.shutdown()
        thread.join()
        other.server_close()
    assert Receiver.seen[0][2]["authorization"] == "Bearer k"
    assert "authorization" not in Receiver.seen[1][2]
    assert Receiver.seen[1][2]["accept"] == "text/plain"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("ftp://example.org/", "only http"),
        ("http://user:secret@example.org/", "credentials"),
        ("http://example.org:99999/", "port"),
        ("http:///x", "only http"),
    ],
)
def test_odd_addresses_are_refused_without_their_secrets(target: str, words: str) -> None:
    """Nothing of query or credentials is in the words."""
    with pytest.raises(OutgoingError, match=words) as caught:
        send(OutgoingRequest("GET", target), NOTHING, timeout_s=60)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("beginning", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_answer_that_drips_does_not_outlast_the_time(beginning: bytes) -> None:
    """Neither its head nor its body, though a byte comes every moment."""
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            peer, _ = listener.accept()
            with peer, suppress(OSError):
                peer.sendall(beginning)
                while not is_over.wait(0.05):
                    peer.sendall(b"a")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            port = listener.getsockname()[1]
            request = OutgoingRequest("GET", f"http://127.0.0.1:{port}/")
            with pytest.raises(OutgoingError, match="in time"):
                send(request, read_allowance([f"127.0.0.1:{port}"]), timeout_s=0.5)
        finally:
            is_over.set()
            thread.join()


def test_proxy_variables_are_not_read(
    receiver: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the environment says of proxies would lead around the rules."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    assert send(OutgoingRequest("GET", url(receiver, "/")), opened(receiver), timeout_s=60).status == 200

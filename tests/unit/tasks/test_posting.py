"""Notices signed as Standard Webhooks has it: a library of others takes ours, and none that was touched."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from ctrl_exec.tasks.models import Notifier
from ctrl_exec.tasks.notification.news import Notice
from ctrl_exec.tasks.notification.posting import Posting, post
from ctrl_exec.tasks.outbound.outgoing import read_allowance
from tests.support.receiver import Received, Receiver, receiver

LOCAL = Posting(read_allowance(["127.0.0.0/8"]))
KEY = base64.b64encode(b"twenty-four bytes of key").decode()
ODD = base64.b64encode(b"a key whose base 64 has padding.").decode()


@pytest.fixture
def desk() -> Iterator[Receiver]:
    with receiver() as opened:
        yield opened


def posted(desk: Receiver, secret: str, now_s: int | None = None) -> Received:
    """What arrives of a notice."""
    notice = Notice("01J8ZX2M5T0Q4W8E7R6Y5T4P3F", "n", "TEST", {"taskName": "Straße"}, time.time_ns())
    notifier = Notifier("n", "p", "Hook", "WEBHOOK", {"url": desk.url + "/"})
    post(LOCAL, notifier, secret, notice, now_s=int(time.time()) if now_s is None else now_s)
    return desk.requests[-1]


@pytest.mark.parametrize(
    "secret", [f"whsec_{KEY}", KEY, f"whsec_{ODD}", ODD.rstrip("="), f"whsec_{ODD}".rstrip("=")]
)
def test_a_standard_library_takes_what_we_sign(desk: Receiver, secret: str) -> None:
    found = posted(desk, secret)
    assert Webhook(secret).verify(found.body, found.headers)["data"] == {"taskName": "Straße"}


def test_it_takes_nothing_that_was_touched(desk: Receiver) -> None:
    """Nor what another key signed, nor what is old."""
    found = posted(desk, KEY)
    stamp = str(int(found.headers["webhook-timestamp"]) + 1)
    for body, headers, key in (
        (found.body + b" ", found.headers, KEY),
        (found.body, found.headers | {"webhook-id": "another"}, KEY),
        (found.body, found.headers | {"webhook-timestamp": stamp}, KEY),
        (found.body, found.headers, ODD),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(key).verify(body, headers)
    old = posted(desk, KEY, int(time.time()) - 400)
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(KEY).verify(old.body, old.headers)


def test_a_secret_that_is_no_base_64_is_its_own_bytes(desk: Receiver) -> None:
    found = posted(desk, "a secret of sixteen or more")
    Webhook(b"a secret of sixteen or more").verify(found.body, found.headers)


def test_without_a_secret_nothing_is_signed(desk: Receiver) -> None:
    assert "webhook-signature" not in posted(desk, "").headers

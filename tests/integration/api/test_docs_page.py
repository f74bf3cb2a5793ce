"""The page at `/docs` in a real browser: what a person sees, with and without credentials asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ctrl_exec
from tests.support.browser import CHROMIUM, Page, document_of
from tests.support.fleet import Fleet
from tests.support.polling import eventually

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")


def element(document: str, start: str) -> str:
    """The opening tag that begins so."""
    found = re.search(re.escape(start) + r"[^>]*>", document)
    assert found, document
    return found[0]


def test_where_everybody_may_the_api_is_shown_at_once(fleet: Fleet, tmp_path: Path) -> None:
    """With `api_auth_default = allow` nobody has a token to type in: the live document is rendered."""
    document = document_of(f"http://127.0.0.1:{fleet.api_port}/docs", tmp_path / "profile")
    assert re.search(rf"<title>ctrl-exec[^<]* {re.escape(ctrl_exec.__version__)}\+[0-9]+</title>", document)
    assert " hidden" in element(document, '<form id="sign-in"')
    assert " hidden" not in element(document, '<rapi-doc id="reference"')


def guard(fleet: Fleet, directory: Path) -> Path:
    """Start the API with a hook that knows one token; gives the file of what it was asked."""
    asked = directory / "asked"
    hook = directory / "hook"
    hook.write_text(
        f'#!/bin/sh\necho "$ENVEXEC_ACTION" "$ENVEXEC_USERNAME" >> {asked}\n'
        '[ "$ENVEXEC_TOKEN" = right ] || exit 2\n'
    )
    hook.chmod(0o755)
    fleet.write_conf({"auth_hook": hook})
    fleet.start_api()
    return asked


def test_where_a_hook_decides_the_page_asks_for_a_token_first(own_fleet: Fleet, tmp_path: Path) -> None:
    """The shell is shown, and nothing is asked of the hook before somebody has signed in."""
    asked = guard(own_fleet, tmp_path)
    document = document_of(f"http://127.0.0.1:{own_fleet.api_port}/docs", tmp_path / "profile")
    assert "<title>ctrl-exec API</title>" in document
    assert " hidden" not in element(document, '<form id="sign-in"')
    assert " hidden" in element(document, '<rapi-doc id="reference"')
    assert not asked.exists()


@pytest.mark.long
def test_a_person_signs_in_and_sees_the_api(own_fleet: Fleet, tmp_path: Path) -> None:
    """A wrong token is told on the page; the right one shows the live document and is kept nowhere."""
    asked = guard(own_fleet, tmp_path)
    with Page(f"http://127.0.0.1:{own_fleet.api_port}/docs", tmp_path / "profile") as page:

        def sign_in(token: str) -> None:
            page.evaluate(f"document.getElementById('username').value = 'alice@üñî'; token.value = '{token}'")
            page.evaluate("document.querySelector('#sign-in button').click()")

        ready = "location.pathname == '/docs' && document.readyState == 'complete'"
        eventually(lambda: page.evaluate(ready))
        sign_in("wrong")
        eventually(lambda: page.evaluate("message.textContent") == "bad credentials: bad credentials")
        assert page.evaluate("reference.hidden") is True
        sign_in("right")
        eventually(lambda: ctrl_exec.__version__ + "+" in page.evaluate("document.title"))
        assert page.evaluate("form.hidden") is True
        shown = "document.getElementById('reference').shadowRoot.textContent"
        eventually(lambda: "Run a script" in page.evaluate(shown))
        assert "right" not in page.evaluate("location.href + document.cookie + JSON.stringify(localStorage)")
    assert set(asked.read_text().splitlines()) == {"api alice@üñî"}

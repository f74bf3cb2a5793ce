"""The page at `/docs` in a real browser: what a person sees, with and without credentials asked for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import ctrl_exec
from tests.support.fleet import Fleet
from tests.support.polling import eventually

CHROMIUM = shutil.which("chromium") or ""
# nothing but the page itself may be fetched, and nothing of the machine is needed
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")


def document_of(url: str, profile: Path) -> str:
    """The document as it stands when the page has come to rest."""
    argv = [
        CHROMIUM,
        *OPTIONS,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=10000",
        "--dump-dom",
        url,
    ]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


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


def test_where_a_hook_decides_the_page_asks_for_a_token_first(own_fleet: Fleet, tmp_path: Path) -> None:
    """The shell is shown, and nothing is asked of the hook before somebody has signed in."""
    asked = tmp_path / "asked"
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\necho "$ENVEXEC_ACTION" >> {asked}\n[ "$ENVEXEC_TOKEN" = right ] || exit 2\n')
    hook.chmod(0o755)
    own_fleet.write_conf({"auth_hook": hook})
    own_fleet.start_api()
    document = document_of(f"http://127.0.0.1:{own_fleet.api_port}/docs", tmp_path / "profile")
    assert "<title>ctrl-exec API</title>" in document
    assert " hidden" not in element(document, '<form id="sign-in"')
    assert " hidden" in element(document, '<rapi-doc id="reference"')
    assert not asked.exists()
    bearer = {"Authorization": "Bearer right"}
    assert own_fleet.http("GET", "/openapi-live.json", headers=bearer).status == 200
    assert eventually(asked.read_text) == "api\n"

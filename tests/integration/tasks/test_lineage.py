"""Tokens that tokens made: what is revoked takes along what descends from it."""

from __future__ import annotations

import urllib.parse
from typing import Any

import pytest

from ctrl_exec.common.errors import UnauthorizedError
from ctrl_exec.tasks.models import Token
from ctrl_exec.tasks.people.identity import identify
from ctrl_exec.tasks.people.personal import create_personal
from ctrl_exec.tasks.people.tokens import revoke_token
from tests.support.office import Office

PATH = "/api/v1/personal-access-tokens"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def make(office: Office, by: str, **body: Any) -> dict[str, Any]:
    """A token made with another one."""
    made = office.ask("POST", PATH, {"name": "made"} | body, by=by)
    assert made.status == 201, made.body
    return made.json


def access_of(office: Office, personal: dict[str, Any]) -> str:
    """An access token for a personal one."""
    form = {"grant_type": "client_credentials", "client_id": personal["personalAccessTokenId"]}
    body = urllib.parse.urlencode(form | {"client_secret": personal["token"]}).encode()
    return str(office.http("POST", "/oauth/token", body, headers=FORM).json["access_token"])


def is_alive(office: Office, secret: object) -> bool:
    return office.ask("GET", "/api/v1/profile", by=str(secret)).status == 200


def revoke(office: Office, personal: dict[str, Any]) -> None:
    path = f"{PATH}/{personal['personalAccessTokenId']}"
    assert office.ask("DELETE", path, by="executor").status == 204


@pytest.mark.parametrize("by_oauth", [False, True])
def test_what_is_revoked_takes_along_all_it_made(office: Office, by_oauth: bool) -> None:
    """Its children, theirs, and the access tokens that any of them was given for, in both ways to revoke."""
    root = make(office, "executor")
    child = make(office, root["token"])
    by_access = make(office, access_of(office, child))
    grandchild = make(office, child["token"])
    accesses = [access_of(office, each) for each in (root, child, by_access, grandchild)]
    beside = make(office, "executor")
    line = [each["token"] for each in (root, child, by_access, grandchild)] + accesses
    assert all(is_alive(office, each) for each in line)
    if by_oauth:
        body = urllib.parse.urlencode({"token": root["token"]}).encode()
        assert office.http("POST", "/oauth/revoke", body, headers=FORM).status == 200
    else:
        revoke(office, root)
    assert not any(is_alive(office, each) for each in line)
    assert is_alive(office, beside["token"])
    assert is_alive(office, office.tokens["executor"])
    listed: Any = office.ask("GET", PATH, by="executor").json["items"]
    assert root["personalAccessTokenId"] not in {each["personalAccessTokenId"] for each in listed}


def test_a_branch_that_is_revoked_leaves_the_rest(office: Office) -> None:
    root = make(office, "executor")
    one, other = make(office, root["token"]), make(office, root["token"])
    revoke(office, one)
    assert not is_alive(office, one["token"])
    assert is_alive(office, root["token"])
    assert is_alive(office, other["token"])


def test_what_is_revoked_this_moment_makes_no_more(office: Office) -> None:
    """Between being known and making one."""
    secret = office.token_for("executor")
    with office.store() as store:
        identity = identify(store, secret)
        revoke_token(store, identity.token_id)
        with pytest.raises(UnauthorizedError):
            create_personal(store, identity, Token("", "", "personal", name="late"))
        assert store.row("SELECT 1 FROM tokens WHERE name = 'late'") is None

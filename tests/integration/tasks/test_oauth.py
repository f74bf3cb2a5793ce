"""The token endpoint, by a standard client library: grants, rotation, revocation, expiry, scopes."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Answer
from tests.support.office import PROJECT, Office

PASSWORD = "correct horse & battery + staple"


@pytest.fixture(scope="module")
def carol(office: Office) -> Iterator[str]:
    """A manager of the project who signs in with a password."""
    made = office.ask("POST", "/api/v1/users", {"name": "carol", "password": PASSWORD})
    assert made.status == 201
    roles = office.ask("GET", f"/api/v1/projects/{PROJECT}/roles").json
    mine = {"userId": made.json["userId"], "role": "MANAGER"}
    items = roles["items"]
    assert isinstance(items, list)
    given = office.ask("PUT", f"/api/v1/projects/{PROJECT}/roles", {"items": [*items, mine]})
    assert mine in given.json["items"]  # type: ignore[operator]
    yield "carol"
    office.ask("PUT", f"/api/v1/projects/{PROJECT}/roles", roles)


def token(office: Office, headers: dict[str, str] | None = None, **form: str) -> Answer:
    sent = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
    return office.http("POST", "/oauth/token", urllib.parse.urlencode(form).encode(), headers=sent)


def sign_in(office: Office, **more: str) -> dict[str, Any]:
    answer = token(office, grant_type="password", username="carol", password=PASSWORD, **more)
    assert answer.status == 200, answer.body
    return answer.json


def status(office: Office, access: object) -> int:
    return office.ask("GET", "/api/v1/profile", by=str(access)).status


def test_a_standard_client_signs_in_and_refreshes(
    office: Office, carol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oauthlib.oauth2 import LegacyApplicationClient
    from requests_oauthlib import OAuth2Session

    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    base = f"http://127.0.0.1:{office.api_port}"
    kept: list[dict[str, Any]] = []
    with OAuth2Session(client=LegacyApplicationClient(client_id="")) as session:
        found = session.fetch_token(
            f"{base}/oauth/token", username=carol, password=PASSWORD, include_client_id=False
        )
        assert session.get(f"{base}/api/v1/profile").json()["name"] == "carol"
        fresh = session.refresh_token(f"{base}/oauth/token", refresh_token=found["refresh_token"])
        assert fresh["access_token"] != found["access_token"]
        assert fresh["refresh_token"] != found["refresh_token"]
        assert session.get(f"{base}/api/v1/projects").json()["items"][0]["projectId"] == PROJECT
        kept.append(fresh)
    assert kept[0]["token_type"] == "Bearer"
    assert 3590 <= kept[0]["expires_in"] <= 3600
    assert kept[0]["scope"] == ["read", "execute", "write", "run"]


def test_a_standard_client_refreshes_by_itself_and_signs_out(
    office: Office, carol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scopes, the end of a token, a spent refresh token and revocation, in the library's own words."""
    from oauthlib.oauth2 import InvalidGrantError, InvalidScopeError, LegacyApplicationClient
    from requests_oauthlib import OAuth2Session

    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    base = f"http://127.0.0.1:{office.api_port}"
    url, profile = f"{base}/oauth/token", f"{base}/api/v1/profile"
    given: list[dict[str, Any]] = []
    client = LegacyApplicationClient(client_id="", scope=["read", "execute"])
    with OAuth2Session(client=client, auto_refresh_url=url, token_updater=given.append) as session:
        credentials = {"username": carol, "password": PASSWORD, "include_client_id": False}
        first = session.fetch_token(url, **credentials)
        assert session.get(profile).json()["scopes"] == ["read", "execute"]
        assert session.post(f"{base}/api/v1/personal-access-tokens", json={"name": "x"}).status_code == 403
        # its hour is over, here and there: the library asks for another before it asks for anything else
        with office.store() as store:
            store.execute("UPDATE tokens SET expires_ns = 1 WHERE kind = 'access'")
        assert status(office, first["access_token"]) == 401
        session.token = first | {"expires_at": 1, "expires_in": -1}
        assert session.get(profile).json()["scopes"] == ["read", "execute"]
        (second,) = given
        assert second["refresh_token"] != first["refresh_token"]
        session.scope = ["read", "write"]
        with pytest.raises(InvalidScopeError):
            session.refresh_token(url, refresh_token=second["refresh_token"])
        session.scope = ["read", "execute"]
        where, headers, body = client.prepare_token_revocation_request(
            f"{base}/oauth/revoke", second["refresh_token"], token_type_hint="refresh_token"
        )
        assert (
            session.request("POST", where, data=body, headers=headers, withhold_token=True).status_code == 200
        )
        assert status(office, second["access_token"]) == 401
        third = session.fetch_token(url, **credentials)
        session.refresh_token(url, refresh_token=third["refresh_token"])
        with pytest.raises(InvalidGrantError):
            session.refresh_token(url, refresh_token=third["refresh_token"])
        assert status(office, third["access_token"]) == 401


def test_a_client_with_credentials_of_its_own(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    from oauthlib.oauth2 import BackendApplicationClient
    from requests_oauthlib import OAuth2Session

    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    base = f"http://127.0.0.1:{office.api_port}"
    body = {"name": "robot", "scopes": ["read"], "projectIds": [PROJECT]}
    personal = office.ask("POST", "/api/v1/personal-access-tokens", body, by="manager").json
    client_id, secret = str(personal["personalAccessTokenId"]), str(personal["token"])
    with OAuth2Session(client=BackendApplicationClient(client_id=client_id)) as session:
        found = session.fetch_token(f"{base}/oauth/token", client_id=client_id, client_secret=secret)
        profile = session.get(f"{base}/api/v1/profile").json()
        assert (profile["name"], profile["scopes"], profile["projectIds"]) == ("manager", ["read"], [PROJECT])
    assert "refresh_token" not in found
    # in the form too, never with more than the token has, and not when it is another's
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    assert token(office, **form).status == 200
    assert token(office, **form, scope="write").json["error"] == "invalid_scope"
    for wrong in ({"client_id": "x"}, {"client_secret": "ctpat_x"}, {"client_secret": ""}):
        refused = token(office, **(form | wrong))
        assert (refused.status, refused.json["error"]) == (401, "invalid_client")
        assert refused.headers["WWW-Authenticate"].startswith("Basic")
    wrong_basic = base64.b64encode(f"{client_id}:nonsense".encode()).decode()
    headers = {"Authorization": f"Basic {wrong_basic}"}
    assert token(office, headers, grant_type="client_credentials").status == 401
    # what it gave ends with it
    path = f"/api/v1/personal-access-tokens/{client_id}"
    assert office.ask("DELETE", path, by="manager").status == 204
    assert status(office, found["access_token"]) == 401
    assert token(office, **form).status == 401


def test_a_spent_refresh_token_ends_the_family(office: Office, carol: str) -> None:
    first = sign_in(office)
    second = token(office, grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert second.status == 200
    assert status(office, first["access_token"]) == 200
    stolen = token(office, grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert (stolen.status, stolen.json["error"]) == (400, "invalid_grant")
    for each in (first["access_token"], second.json["access_token"]):
        assert status(office, each) == 401
    again = token(office, grant_type="refresh_token", refresh_token=str(second.json["refresh_token"]))
    assert again.json["error"] == "invalid_grant"


def test_scopes_never_exceed_roles_and_never_grow(office: Office, carol: str) -> None:
    narrow = sign_in(office, scope="read")
    assert narrow["scope"] == "read"
    body = {"name": "x"}
    refused = office.ask("POST", "/api/v1/personal-access-tokens", body, by=narrow["access_token"])
    assert refused.status == 403
    grown = token(
        office, grant_type="refresh_token", refresh_token=narrow["refresh_token"], scope="read write"
    )
    assert grown.json["error"] == "invalid_scope"
    same = token(office, grant_type="refresh_token", refresh_token=narrow["refresh_token"])
    assert same.json["scope"] == "read"
    more = token(office, grant_type="password", username="carol", password=PASSWORD, scope="admin")
    assert more.json["error"] == "invalid_scope"


def test_a_token_whose_scopes_nothing_fills_gives_none_with_all(office: Office) -> None:
    """A viewer's token for `admin` or `execute` alone gives nothing, rather than all a viewer may."""
    for scope in ("admin", "execute"):
        body = {"name": scope, "scopes": [scope]}
        personal = office.ask("POST", "/api/v1/personal-access-tokens", body, by="viewer").json
        form = {"client_id": str(personal["personalAccessTokenId"]), "client_secret": str(personal["token"])}
        refused = token(office, grant_type="client_credentials", **form)
        assert (refused.status, refused.json["error"]) == (400, "invalid_scope")


def test_of_two_who_refresh_at_once_none_keeps_what_it_got(office: Office, carol: str) -> None:
    """The second finds what the first was given and ends it, whichever of them is honest."""
    from concurrent.futures import ThreadPoolExecutor

    body = urllib.parse.urlencode(
        {"grant_type": "refresh_token", "refresh_token": str(sign_in(office)["refresh_token"])}
    )

    def refresh(_: int) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", office.api_port, timeout=60)
        try:
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", "/oauth/token", body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(refresh, range(4)))
    assert sorted(each for each, _ in found) == [200, 400, 400, 400]
    fresh = next(document for code, document in found if code == 200)
    assert status(office, fresh["access_token"]) == 401


def test_revocation(office: Office, carol: str) -> None:
    def revoke(value: str) -> int:
        body = urllib.parse.urlencode({"token": value}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return office.http("POST", "/oauth/revoke", body, headers=headers).status

    one, other = sign_in(office), sign_in(office)
    assert revoke(one["access_token"]) == 200
    assert status(office, one["access_token"]) == 401
    assert status(office, other["access_token"]) == 200
    assert revoke(other["refresh_token"]) == 200
    assert status(office, other["access_token"]) == 401
    assert revoke("ctoat_unknown") == 200
    assert revoke("") == 400


def test_a_new_password_ends_what_the_old_one_began(office: Office) -> None:
    made = office.ask("POST", "/api/v1/users", {"name": "dave", "password": "first password"})
    found = token(office, grant_type="password", username="DAVE", password="first password")
    assert found.status == 200
    path = f"/api/v1/users/{made.json['userId']}"
    assert office.ask("PATCH", path, {"password": "second password"}).status == 200
    assert status(office, found.json["access_token"]) == 401
    assert token(office, grant_type="password", username="dave", password="first password").status == 400
    assert token(office, grant_type="password", username="dave", password="second password").status == 200
    assert office.ask("PATCH", path, {"enabledFg": False}).status == 200
    off = token(office, grant_type="password", username="dave", password="second password")
    assert off.json == {
        "error": "invalid_grant",
        "error_description": "the user name or the password is wrong",
    }


def test_an_expired_token_is_over(office: Office, carol: str) -> None:
    found = sign_in(office)
    with office.store() as store:
        store.execute("UPDATE tokens SET expires_ns = 1 WHERE kind != 'personal'")
    assert status(office, found["access_token"]) == 401
    late = token(office, grant_type="refresh_token", refresh_token=found["refresh_token"])
    assert late.json["error"] == "invalid_grant"


@pytest.mark.parametrize(
    ("form", "word"),
    [
        ({}, "invalid_request"),
        ({"grant_type": "magic"}, "unsupported_grant_type"),
        ({"grant_type": "password", "username": "carol"}, "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "ctort_x"}, "invalid_grant"),
        ({"grant_type": "refresh_token", "refresh_token": "x" * 1000}, "invalid_grant"),
    ],
)
def test_what_is_wrong_is_said_in_the_protocols_words(
    office: Office, form: dict[str, str], word: str
) -> None:
    refused = token(office, **form)
    assert (refused.status, refused.json["error"]) == (400, word)
    assert set(refused.json) == {"error", "error_description"}


def test_only_forms_are_taken(office: Office) -> None:
    declared = {"Content-Type": "application/json"}
    json_body = office.http("POST", "/oauth/token", {"grant_type": "password"}, headers=declared)
    assert (json_body.status, json_body.json["error"]) == (415, "invalid_request")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for body in (b"grant_type=a&grant_type=b", b"grant_type=%ff", b"\xff"):
        assert office.http("POST", "/oauth/token", body, headers=form).status == 400
    bearer = form | {"Authorization": f"Bearer {office.tokens['admin']}"}
    assert office.http("POST", "/oauth/token", b"grant_type=client_credentials", headers=bearer).status == 401
    assert office.http("GET", "/oauth/token").status == 401


def test_guessing_is_slowed_down_by_address(tmp_path: Path) -> None:
    office = Office(tmp_path / "office", {"api_trusted_proxies": "127.0.0.0/8"})
    try:
        office.start_api()

        def guess(address: str) -> Answer:
            headers = {"X-Forwarded-For": address}
            return token(office, headers, grant_type="password", username="viewer", password="wrong password")

        assert guess("198.51.100.1").status == 400
        with office.store() as store:
            counted = {row["subject"]: row["count"] for row in store.rows("SELECT * FROM failures")}
            assert counted == {"address 198.51.100.1": 1, "account viewer": 1}
            minute = store.clock_ns() // 60_000_000_000
            for later in range(3):  # whenever this minute ends
                sql = "INSERT OR REPLACE INTO failures VALUES ('address 198.51.100.1', ?, 10)"
                store.execute(sql, (minute + later,))
        held = guess("198.51.100.1")
        assert held.status == 429
        assert 1 <= int(held.headers["Retry-After"]) <= 60
        assert held.json["error"] == "temporarily_unavailable"
        assert guess("198.51.100.2").status == 400
    finally:
        office.close()


def test_the_password_grant_can_be_off(tmp_path: Path) -> None:
    office = Office(tmp_path / "office", {"oauth_password_grant": "no"})
    try:
        office.start_api()
        refused = token(office, grant_type="password", username="admin", password="x" * 10)
        assert refused.json["error"] == "unsupported_grant_type"
    finally:
        office.close()

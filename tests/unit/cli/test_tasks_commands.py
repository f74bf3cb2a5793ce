"""The commands of the task layer, in one process: what they answer, as text and as documents, and refuse."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.cli.main import run
from ctrl_exec.tasks.sealing import make_key
from ctrl_exec.tasks.store import Store

PROJECT = "my-awesome-project"
TASK = {
    "projectId": PROJECT, "name": "Greet", "taskType": "AGENT_SCRIPT",
    "agentScriptTask": {"script": "hello", "hosts": ["@all"]},
    "parameters": [{"name": "WHOM", "type": "TEXT", "defaultValue": "world"}],
}  # fmt: skip


class Prompt:
    """A dispatcher without anything, an administrator at its prompt."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.conf = home / "c.conf"
        self.conf.write_text(f"etc_dir = {home}\nstate_dir = {home}\nlog_target = stderr\n")

    def call(self, *words: str, stdin: str = "") -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        stdout, stderr = io.StringIO(), io.StringIO()
        line = ["--config", str(self.conf), *words]
        code = run(line, {"USER": "alice", "TZ": "UTC"}, io.StringIO(stdin), stdout, stderr)
        return code, stdout.getvalue(), stderr.getvalue()

    def ok(self, *words: str, stdin: str = "") -> str:
        """The answer of a command that succeeds."""
        code, answer, said = self.call(*words, stdin=stdin)
        assert code == 0, said
        return answer

    def document(self, *words: str, stdin: str = "") -> dict[str, Any]:
        """The one document that a command answers with."""
        code, answer, _ = self.call(*words, "--json", stdin=stdin)
        found = json.loads(answer)
        assert isinstance(found, dict)
        assert found.get("ok", True) is (code == 0)
        return found

    def refused(self, code: int, *words: str, stdin: str = "") -> str:
        """What is said by a command that fails with this exit code, and as a document nothing else."""
        given, answer, said = self.call(*words, stdin=stdin)
        assert (given, answer) == (code, ""), said
        document = self.document(*words, stdin=stdin)
        assert document["ok"] is False
        assert document["error"]
        return said

    def rows(self, *words: str) -> list[list[str]]:
        """The rows of a table, without its head."""
        return [line.split() for line in self.ok(*words).splitlines()[2:]]


@pytest.fixture
def prompt(tmp_path: Path) -> Prompt:
    """With two users, a project, a task and a key for secrets."""
    made = Prompt(tmp_path)
    make_key(f"{tmp_path}/secrets.key")
    made.ok("user", "add", "alice", "--admin", "--no-password")
    made.ok("user", "add", "bob", "--no-password")
    assert made.ok("project", "create", "My awesome project") == f"{PROJECT}\n"
    made.ok("task", "create", "-", stdin=json.dumps(TASK))
    return made


@pytest.mark.parametrize(
    "words",
    [
        "team", "team add Night", "team rename Night", "team list x", "project grant a b", "project create",
        "project list x", "constant set a", "notifier show", "notifier test a b", "webhook list x", "audit show",
        "task show", "task list x", "task edit Greet", "task next a b", "user list x", "token revoke",
        "execution show", "execution list x",
    ],
)  # fmt: skip
def test_words_that_are_too_few_or_too_many(tmp_path: Path, words: str) -> None:
    """Said before anything is opened, with what the action takes."""
    made = Prompt(tmp_path)
    said = made.refused(2, *words.split())
    assert "expected " in said or "missing ACTION: " in said
    assert not list(tmp_path.glob("tasks.db*"))


def test_projects_are_changed_and_shown(prompt: Prompt) -> None:
    prompt.ok("project", "edit", PROJECT, "--name", "Other", "--timeout", "30m", "--retention", "7")
    shown = json.loads(prompt.ok("project", "show", PROJECT))
    assert (shown["name"], shown["timeout"], shown["timeoutDurationUnit"]) == ("Other", 30, "MINUTE")
    assert shown["executionRetentionPeriod"] == 7
    prompt.ok("project", "edit", PROJECT, "--timeout", "none", "--retention", "none")
    shown = prompt.document("project", "show", PROJECT)
    assert shown["timeout"] is shown["timeoutDurationUnit"] is shown["executionRetentionPeriod"] is None
    assert "nothing to change" in prompt.refused(2, "project", "edit", PROJECT)
    assert "--timeout" in prompt.refused(2, "project", "edit", PROJECT, "--timeout", "soon")
    assert "--retention" in prompt.refused(2, "project", "edit", PROJECT, "--retention", "ever")
    assert "no project" in prompt.refused(1, "project", "show", "nowhere")
    assert prompt.rows("project", "list") == [[PROJECT, "Other"]]
    assert prompt.document("project", "remove", PROJECT)["removed"] == PROJECT
    assert prompt.rows("project", "list") == []


def test_teams_have_members_and_roles(prompt: Prompt) -> None:
    assert prompt.ok("team", "create", "Night shift", "alice", "bob") == "added Night shift: alice, bob\n"
    assert prompt.ok("team", "drop", "night shift", "alice") == "Night shift: bob\n"
    assert "alice is not in Night shift" in prompt.refused(1, "team", "drop", "Night shift", "alice")
    assert prompt.ok("team", "add", "Night shift", "alice", "bob") == "Night shift: alice, bob\n"
    prompt.ok("team", "rename", "Night shift", "Owls")
    assert prompt.rows("team", "list")[0][:3] == ["Owls", "alice,", "bob"]
    assert "no user carol" in prompt.refused(1, "team", "add", "Owls", "carol")
    assert "no team 'Larks'" in prompt.refused(1, "team", "show", "Larks")
    assert "already" in prompt.refused(1, "team", "create", "owls")
    prompt.ok("project", "grant", PROJECT, "Owls", "executor", "--team")
    prompt.ok("project", "grant", PROJECT, "bob", "VIEWER")
    assert prompt.rows("project", "roles", PROJECT) == [
        ["team", "Owls", "EXECUTOR"],
        ["user", "bob", "VIEWER"],
    ]
    shown = json.loads(prompt.ok("user", "show", "bob"))
    assert (shown["roles"], shown["teams"]) == ([{"projectId": PROJECT, "role": "EXECUTOR"}], ["Owls"])
    prompt.ok("project", "grant", PROJECT, "Owls", "none", "--team")
    assert prompt.rows("project", "roles", PROJECT) == [["user", "bob", "VIEWER"]]
    assert "expected MANAGER" in prompt.refused(2, "project", "grant", PROJECT, "bob", "BOSS")
    prompt.ok("team", "remove", "Owls")
    assert prompt.document("team", "list")["teams"] == []


def test_constants_and_secrets(prompt: Prompt) -> None:
    """A secret is never on the command line, and never shown."""
    assert prompt.ok("constant", "set", PROJECT, "SITE", "eu-west") == "SITE = eu-west\n"
    assert prompt.ok("constant", "set", PROJECT, "SITE", "us-east") == "SITE = us-east\n"
    (prompt.home / "key").write_text("s3cret-word\nmore\n")
    prompt.ok("constant", "set", PROJECT, "KEY", "--secret", "--value-file", str(prompt.home / "key"))
    prompt.ok("constant", "set", PROJECT, "PIN", "--secret", stdin="1234\n")
    assert "--value-file" in prompt.refused(2, "constant", "set", PROJECT, "PIN", "4321", "--secret")
    assert prompt.rows("constant", "list", PROJECT) == [
        ["SITE", "CPC_SITE", "us-east"], ["KEY", "CPS_KEY", "(secret)"], ["PIN", "CPS_PIN", "(secret)"],
    ]  # fmt: skip
    found = prompt.document("constant", "list", PROJECT)
    assert [each["value"] for each in found["constants"]] == ["us-east"]
    assert "s3cret-word" not in json.dumps(found)
    assert "name: expected" in prompt.refused(2, "constant", "set", PROJECT, "lower", "x")
    for words in (["SITE"], ["SITE", "x", "--value-file", "y"]):
        assert "VALUE or --value-file" in prompt.refused(2, "constant", "set", PROJECT, *words)
    assert "no constant 'KEY'" in prompt.refused(1, "constant", "remove", PROJECT, "KEY")
    assert "no secret 'SITE'" in prompt.refused(1, "constant", "remove", PROJECT, "SITE", "--secret")
    prompt.ok("constant", "remove", PROJECT, "KEY", "--secret")
    prompt.ok("constant", "remove", PROJECT, "SITE")
    assert prompt.rows("constant", "list", PROJECT) == [["PIN", "CPS_PIN", "(secret)"]]
    assert "no project" in prompt.refused(1, "constant", "list", "nowhere")


def test_notifiers_are_made_of_options(prompt: Prompt) -> None:
    common = ("--project", PROJECT, "--kind")
    made = prompt.ok(
        "notifier", "create", "Ops", *common, "EMAIL", "--to", "a@example.net", "--to", "b@example.net"
    )
    prompt.ok("notifier", "create", "Hook", *common, "WEBHOOK", "--url", "http://127.0.0.1:9/x")
    (prompt.home / "address").write_text("https://hooks.example.net/s3cret\n")
    prompt.ok("notifier", "create", "Chat", *common, "SLACK", "--secret-file", str(prompt.home / "address"))
    rows = prompt.rows("notifier", "list")
    assert [row[2:] for row in rows] == [
        ["Ops", "EMAIL", "on", "a@example.net,", "b@example.net"], ["Hook", "WEBHOOK", "on", "http://127.0.0.1:9/x"],
        ["Chat", "SLACK", "on", "(secret)"],
    ]  # fmt: skip
    assert rows[0][0] == made.strip()
    prompt.ok("notifier", "edit", "Ops", "--to", "c@example.net", "--name", "Operators")
    prompt.ok("notifier", "disable", "Operators")
    shown = json.loads(prompt.ok("notifier", "show", made.strip()))
    assert (shown["settings"], shown["enabledFg"], shown["name"]) == (
        {"to": ["c@example.net"]},
        False,
        "Operators",
    )
    prompt.ok("notifier", "enable", "Operators")
    assert "s3cret" not in prompt.ok("notifier", "show", "Chat") + prompt.ok(
        "notifier", "list", "--project", PROJECT
    )
    assert "needs --project" in prompt.refused(2, "notifier", "create", "X")
    assert "settings.to" in prompt.refused(2, "notifier", "create", "X", *common, "EMAIL")
    assert "did you mean EMAIL" in prompt.refused(2, "notifier", "create", "X", *common, "EMIAL")
    assert "nothing to change" in prompt.refused(2, "notifier", "edit", "Chat")
    assert "no notifier 'X'" in prompt.refused(1, "notifier", "show", "X")
    prompt.ok("notifier", "remove", "Chat")
    assert len(prompt.document("notifier", "list")["notifiers"]) == 2


def test_a_test_of_a_notifier_says_what_came_of_it(prompt: Prompt) -> None:
    """Nobody listens there, and nothing opens loopback to it."""
    words = ("--project", PROJECT, "--kind", "NTFY", "--url", "http://127.0.0.1:9/x")
    prompt.ok("notifier", "create", "Phone", *words)
    code, answer, said = prompt.call("notifier", "test", "Phone")
    assert (code, answer) == (1, "")
    assert "Phone: " in said
    found = prompt.document("notifier", "test", "Phone")
    assert (found["error"], found["sentFg"]) == ("not sent", False)
    assert found["detail"]


def test_a_webhook_shows_its_secret_once(prompt: Prompt) -> None:
    options = ("--task", "Greet", "--scheme", "GITHUB", "--event", "push", "--map", "WHOM=pusher.name")
    path, secret = prompt.ok("webhook", "create", "Push", *options).splitlines()
    assert len(secret) >= 40
    shown = json.loads(prompt.ok("webhook", "show", "Push"))
    assert path == f"/hooks/{shown['webhookId']}"
    assert (shown["events"], shown["parameterMapping"]) == (["push"], {"WHOM": "pusher.name"})
    assert secret not in prompt.ok("webhook", "list") + json.dumps(shown)
    assert prompt.ok("webhook", "edit", "Push", "--event", "", "--branch", "main") == "edit: Push\n"
    shown = prompt.document("webhook", "show", "Push")
    assert (shown["events"], shown["branches"]) == ([], ["main"])
    words, other = prompt.ok("webhook", "edit", "Push", "--new-secret", "--scheme", "STANDARD").splitlines()
    assert words == "edit: Push"
    assert other.startswith("whsec_")
    (prompt.home / "own").write_text("a secret of one's own\n")
    own = ("--secret-file", str(prompt.home / "own"))
    made = prompt.document("webhook", "create", "Own", "--task", "Greet", *own)
    assert "secret" not in made
    assert prompt.document("webhook", "create", "New", "--task", "Greet")["secret"]
    prompt.ok("webhook", "disable", "Own")
    rows = prompt.rows("webhook", "list", "--project", PROJECT)
    assert [row[2:] for row in rows] == [
        ["Push", "STANDARD", "Greet", "alice", "on"], ["Own", "GENERIC", "Greet", "alice", "off"],
        ["New", "GENERIC", "Greet", "alice", "on"],
    ]  # fmt: skip
    prompt.ok("webhook", "remove", "Own")


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (2, "needs --task", "create X"),
        (1, "no task 'Nothing'", "create X --task Nothing"),
        (2, "no user 'mallory'", "create X --task Greet --username mallory"),
        (2, "PARAMETER=JSON.PATH", "create X --task Greet --map WHOM"),
        (2, "no parameter of this task", "create X --task Greet --map WHO=a.b"),
        (2, "did you mean GITHUB", "create X --task Greet --scheme GITHUP"),
        (2, "No such file", "create X --task Greet --secret-file nowhere"),
        (1, "no webhook 'X'", "show X"),
        (1, "no webhook 'X'", "edit X --new-secret"),
    ],
)
def test_faults_of_webhooks(prompt: Prompt, code: int, said: str, words: str) -> None:
    assert said in prompt.refused(code, "webhook", *words.split())
    assert prompt.document("webhook", "list")["webhooks"] == []


def test_tasks_are_patched_exported_and_due(prompt: Prompt) -> None:
    assert prompt.rows("task", "next") == []
    patch = {"scheduledFg": True, "cronExpression": "0 9 1 1 *", "cronTimezone": "Asia/Tokyo"}
    prompt.ok("task", "edit", "Greet", "-", stdin=json.dumps(patch))
    exported = json.loads(prompt.ok("task", "export", "Greet"))
    assert prompt.document("task", "export", "Greet") == exported
    other = exported | {"name": "Twin", "cronTimezone": "UTC", "schedules": [{"cronExpression": "@yearly"}]}
    prompt.ok("task", "create", "-", stdin=json.dumps(other))
    rows = prompt.rows("task", "next", "--limit", "3")
    # whatever the day is: Greet's and Twin's further one are at the same moment, Twin's own is nine hours later
    assert sorted((row[0][4:], row[1], *row[3:]) for row in rows) == [
        ("-01-01T00:00:00+00:00", "Twin", "@yearly"),
        ("-01-01T09:00:00+00:00", "Twin", "0", "9", "1", "1", "*"),
        ("-01-01T09:00:00+09:00", "Greet", "0", "9", "1", "1", "*"),
    ]
    assert {row[2] for row in rows} == {PROJECT}
    items = prompt.document("task", "next", "--project", PROJECT)["items"]
    assert len(items) == 20
    assert items == sorted(items, key=lambda each: each["scheduledTs"])
    assert prompt.rows("task", "list")[1][-1] == "@yearly"
    prompt.ok("task", "disable", "Twin")
    assert {row[1] for row in prompt.rows("task", "next")} == {"Greet"}
    assert "no project" in prompt.refused(1, "task", "next", "--project", "nowhere")
    assert "no project" in prompt.refused(1, "task", "list", "--project", "nowhere")
    assert "--limit" in prompt.refused(2, "task", "next", "Greet", "--limit", "3")
    assert "unknown key" in prompt.refused(2, "task", "edit", "Greet", "-", stdin='{"zap": 1}')
    assert "JSON" in prompt.refused(2, "task", "edit", "Greet", "-", stdin="{")


def test_users_are_edited_and_tokens_revoked_by_name(prompt: Prompt) -> None:
    prompt.ok("user", "edit", "bob", "--admin", "--name", "robert")
    assert json.loads(prompt.ok("user", "show", "robert"))["administratorFg"] is True
    prompt.ok("user", "edit", "robert", "--no-admin")
    assert "last administrator" in prompt.refused(1, "user", "edit", "alice", "--no-admin")
    for words in ([], ["--admin", "--no-admin"]):
        prompt.refused(2, "user", "edit", "alice", *words)
    for name, owner in (("ci", "alice"), ("ci", "robert"), ("one", "alice")):
        prompt.ok("token", "create", name, "--username", owner)
    assert "several tokens" in prompt.refused(1, "token", "revoke", "ci")
    prompt.ok("token", "revoke", "ci", "--username", "robert")
    prompt.ok("token", "revoke", "one", "--username", "alice")
    assert "no token 'one'" in prompt.refused(1, "token", "revoke", "one")
    assert [row[1:3] for row in prompt.rows("token", "list", "--username", "alice")] == [["ci", "alice"]]
    assert "did you mean read" in prompt.refused(
        2, "token", "create", "x", "--username", "alice", "--scope", "raed"
    )


def test_the_newest_execution_of_a_task_by_its_name(prompt: Prompt) -> None:
    assert "no execution of 'Greet' yet" in prompt.refused(1, "execution", "show", "Greet")
    prompt.ok(
        "task", "edit", "Greet", "-", stdin='{"multipleExecutionPolicy": "CONCURRENCY", "maxConcurrency": 9}'
    )
    first, second = (prompt.ok("task", "run", "Greet").strip() for _ in range(2))
    assert prompt.document("execution", "show", "Greet")["executionId"] == max(first, second)
    code, log, said = prompt.call("execution", "log", "Greet")
    assert (code, log) == (0, "")
    assert "is PENDING; -f shows" in said
    assert "no execution and no task 'Gret'" in prompt.refused(1, "execution", "log", "Gret")
    assert "abort it first" in prompt.refused(1, "execution", "remove", first)
    assert len(prompt.rows("execution", "list", "--project", PROJECT)) == 2
    assert "no project nowhere" in prompt.refused(1, "execution", "list", "--project", "nowhere")
    prompt.ok("execution", "abort", first)
    prompt.ok("execution", "remove", first)
    assert [row[0] for row in prompt.rows("execution", "list")] == [second]


def test_the_audit_log(prompt: Prompt) -> None:
    prompt.ok("project", "grant", PROJECT, "bob", "VIEWER")
    rows = prompt.rows("audit", "list")
    assert rows[0][2:6] == ["alice", "cli", "update", "roles"]
    assert rows[0][-1] == PROJECT
    (row,) = prompt.rows(
        "audit", "list", "--type", "task", "--action", "create", "--user", "alice", "--limit", "5"
    )
    assert row[6] == "Greet"
    entry = json.loads(prompt.ok("audit", "show", rows[0][0].lower()))
    assert entry["before"] == {"items": []}
    assert entry["after"]["items"][0]["role"] == "VIEWER"
    assert [each["objectType"] for each in prompt.document("audit", "list", "--project", PROJECT)["entries"]] == [
        "roles", "task", "project",
    ]  # fmt: skip
    assert "no entry 'X'" in prompt.refused(1, "audit", "show", "X")
    assert "no user nobody" in prompt.refused(1, "audit", "list", "--user", "nobody")


def test_names_are_offered_to_shells(prompt: Prompt) -> None:
    """Live, for the place that is typed; names with blanks as one word."""

    def words(*typed: str) -> list[str]:
        return prompt.ok("completion", "words", "--", *typed).splitlines()

    twin = TASK | {"name": "My awesome task"}
    prompt.ok("task", "create", "-", stdin=json.dumps(twin))
    prompt.ok("team", "create", "Owls")
    assert words("task", "show", "") == ["Greet", "My awesome task"]
    assert words("task", "show", "My\\ aw") == ["My awesome task"]
    assert words("task", "create", "") == ["@files"]
    assert words("task", "edit", "Greet", "") == ["@files"]
    assert words("task", "list", "") == []
    assert words("project", "grant", "") == [PROJECT]
    assert words("project", "grant", PROJECT, "a") == ["alice"]
    assert words("project", "grant", PROJECT, "alice", "M") == ["MANAGER"]
    assert words("team", "add", "Owls", "alice", "b") == ["bob"]
    assert words("webhook", "create", "x", "--task", "G") == ["Greet"]
    assert words("notifier", "list", "--project", "") == [PROJECT]
    assert words("constant", "") == ["list", "remove", "set"]
    assert words("constant", "set", "") == [PROJECT]
    with Store(f"{prompt.home}/tasks.db") as store:
        store.execute("UPDATE users SET name = 'a\x1b[31m' WHERE name = 'bob'")
    assert words("user", "show", "") == ["alice"]
    (prompt.home / "tasks.db").write_text("no database")
    assert words("user", "show", "") == []

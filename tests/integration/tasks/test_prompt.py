"""Executions at the prompt: started with typed values, followed, aborted, repeated, told by exit code."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.common.log import Log
from ctrl_exec.config import load_config
from ctrl_exec.dispatcher import open_dispatcher
from ctrl_exec.scheduler.executions import Executions
from ctrl_exec.scheduler.main import task_duties
from ctrl_exec.tasks.execution.executions import find_execution
from ctrl_exec.tasks.ulid import ULID
from tests.support.office import Office, a_task
from tests.support.polling import eventually
from tests.support.processes import Running


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """A scheduler and no API: the command line needs none for tasks."""
    made = Office(tmp_path_factory.mktemp("prompt"))
    try:
        made.start_scheduler()
        yield made
    finally:
        made.close()


def command(works: Office, line: str, **changes: Any) -> str:
    """A task that gives bash a line; its name."""
    kind = {"useShellFg": True, "commandLine": line, "logOutput": "ALWAYS"}
    document = a_task(taskType="LOCAL_COMMAND", localCommandTask=kind, **changes)
    del document["agentScriptTask"]
    made = works.cli("task", "create", "-", "--username", "admin", stdin=json.dumps(document))
    assert made.returncode == 0, made.stderr
    return str(document["name"])


def prompt(works: Office, code: int, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`ctrl-exec` with this exit code."""
    made = works.cli(*words, "--username", "admin", stdin=stdin)
    assert made.returncode == code, (made.stdout, made.stderr)
    return made


def status(works: Office, execution_id: str) -> str:
    """How an execution stands."""
    with works.store() as store:
        return find_execution(store, execution_id).status


def test_a_task_is_run_with_values_of_its_parameters_types(works: Office) -> None:
    """Its log on stdout and nothing else; words that are no value are refused by name and start nothing."""
    parameters = [
        {"name": "WHO", "type": "TEXT", "defaultValue": "you"},
        {"name": "CLEAN", "type": "CHECKBOX", "defaultValue": False},
        {"name": "COUNT", "type": "INTEGER", "defaultValue": 1, "max": 9},
    ]
    name = command(works, 'echo "$CPP_WHO $CPP_CLEAN $CPP_COUNT é"', parameters=parameters)
    made = prompt(
        works, 0, "task", "run", name, "-p", "WHO=a=b", "-p", "CLEAN=true", "-p", "COUNT=5", "--follow"
    )
    assert made.stdout == "a=b true 5 é\n"
    assert "SUCCESS" in made.stderr
    for word, expected in (
        ("COUNT=ten", "parameterMap.COUNT"), ("COUNT=10", "parameterMap.COUNT"), ("CLEAN=yes", "parameterMap.CLEAN"),
        ("NOBODY=1", "parameterMap.NOBODY"), ("WHO", "NAME=VALUE"), ("=x", "NAME=VALUE"),
    ):  # fmt: skip
        refused = prompt(works, 2, "task", "run", name, "-p", word)
        assert expected in refused.stderr
    assert "twice" in prompt(works, 2, "task", "run", name, "-p", "WHO=a", "-p", "WHO=b").stderr
    found = works.cli_json("execution", "list", "--task", name)["executions"]
    assert isinstance(found, list)
    assert [each["parameterMap"] for each in found] == [{"WHO": "a=b", "CLEAN": True, "COUNT": 5}]


def test_a_secret_comes_from_a_file_or_standard_input(works: Office, tmp_path: Path) -> None:
    """Never from the command line, which others see."""
    name = command(
        works, 'test "$CPP_KEY" = s3cr3t-word && echo "key=$CPP_KEY"',
        parameters=[{"name": "KEY", "type": "SECRET", "required": True}],
    )  # fmt: skip
    refused = prompt(works, 2, "task", "run", name, "-p", "KEY=s3cr3t-word")
    assert "KEY=@FILE" in refused.stderr
    assert "s3cr3t-word" not in refused.stderr
    path = tmp_path / "key"
    path.write_text("s3cr3t-word\n")
    assert prompt(works, 0, "task", "run", name, "-f", "-p", f"KEY=@{path}").stdout == "key=********\n"
    made = prompt(works, 0, "task", "run", name, "-f", "-p", "KEY=-", stdin="s3cr3t-word\n")
    assert made.stdout == "key=********\n"


def test_the_exit_code_is_that_of_the_end(works: Office) -> None:
    """Also of the last of several attempts, and as one document."""
    failing = command(works, "echo out; exit 3")
    made = prompt(works, 1, "task", "run", failing, "--follow")
    assert made.stdout == "out\n"
    assert "FAILED, exit 3" in made.stderr
    slow = command(works, "echo begun; sleep 600", timeout=1, timeoutDurationUnit="SECOND")
    assert "timed out after 1s" in prompt(works, 124, "task", "run", slow, "--follow").stderr
    mark = works.home / "mark"
    twice = command(
        works, f"echo x; test -e {mark} && exit 0; touch {mark}; exit 1", retry={"maxAttempts": 2, "delay": 0}
    )
    made = prompt(works, 0, "task", "run", twice, "--follow")
    assert made.stdout == "x\nx\n"
    assert "tried again" in made.stderr
    document = json.loads(prompt(works, 1, "task", "run", failing, "--follow", "--json").stdout)
    assert (document["ok"], document["status"], document["exitCode"]) == (False, "FAILED", 3)


def test_executions_are_listed_shown_and_repeated(works: Office) -> None:
    """By the id that `task run` prints."""
    name = command(works, "echo again")
    execution_id = prompt(works, 0, "task", "run", name).stdout.strip()
    assert ULID.fullmatch(execution_id)
    assert prompt(works, 0, "execution", "log", "-f", execution_id).stdout == "again\n"
    assert prompt(works, 0, "execution", "log", execution_id.lower()).stdout == "again\n"
    log = works.cli_json("execution", "log", execution_id)
    assert (log["status"], log["log"]) == ("SUCCESS", "again\n")
    assert json.loads(prompt(works, 0, "execution", "show", execution_id).stdout)["exitCode"] == 0
    repeated = prompt(works, 0, "execution", "retry", execution_id, "--follow")
    assert repeated.stdout == "again\n"
    table = prompt(
        works, 0, "execution", "list", "--task", name, "--status", "success", "--limit", "1"
    ).stdout
    lines = table.splitlines()
    assert lines[0].split() == ["ID", "TASK", "STATUS", "TRIGGER", "START", "END", "EXIT"]
    assert len(lines) == 3
    assert name in lines[2]
    assert "RETRY" in lines[2]
    unknown = "01J8ZWXQ1572KC6XGE7T74PT4P"
    for words in (
        ["show", unknown],
        ["log", "../x"],
        ["log", "-f", unknown],
        ["abort", unknown],
        ["retry", unknown],
    ):
        assert "no execution" in prompt(works, 1, "execution", *words).stderr
    for words in (["list", unknown], ["show"], ["list", "--status", "WELL"], ["list", "--limit", "0"]):
        prompt(works, 2, "execution", *words)
    assert "task run" in prompt(works, 2, "task", "show", name, "--follow").stderr


def test_letting_go_ends_nothing_and_an_abort_does(works: Office, tmp_path: Path) -> None:
    """Ctrl-C leaves it running and says how to come back."""
    name = command(works, "echo begun; sleep 600")
    execution_id = prompt(works, 0, "task", "run", name).stdout.strip()
    words = ("--config", works.conf, "execution", "log", "-f", execution_id, "--username", "admin")
    with Running("ctrl-exec", *words, log_path=tmp_path / "log") as watching:
        watching.wait_for("begun")
        assert watching.stop(signal.SIGINT) == 130
        assert f"ctrl-exec execution log -f {execution_id}" in watching.log()
    assert status(works, execution_id) == "RUNNING"
    assert "ABORTING" in prompt(works, 0, "execution", "abort", execution_id).stdout
    eventually(lambda: status(works, execution_id) == "ABORTED")
    assert "ABORTED" in prompt(works, 0, "execution", "abort", execution_id).stdout
    assert "ABORTED" in prompt(works, 1, "execution", "log", "-f", execution_id).stderr


def test_the_scheduler_purges_by_retention(works: Office) -> None:
    """The duty as it is on its timetable: rows and logs that are old, and only those."""
    name = command(works, "echo old", executionRetentionPeriod=0)
    kept = command(works, "echo young")
    gone, stays = (prompt(works, 0, "task", "run", each).stdout.strip() for each in (name, kept))
    for execution_id in (gone, stays):
        prompt(works, 0, "execution", "log", "-f", execution_id)
    config = load_config(str(works.conf))
    dispatcher = open_dispatcher(config, Log("test", "stderr", "text"))
    with works.store() as store:
        duties = task_duties(Executions(dispatcher, store, {}), config, UTC)
        (duty,) = (each for each in duties if each.name == "task-purge")
        duty.work()
        assert duty.next_after(0) is not None
    assert "no execution" in prompt(works, 1, "execution", "show", gone).stderr
    assert prompt(works, 0, "execution", "log", stays).stdout == "young\n"
    assert not list((works.state / "executions").glob(f"{gone}*"))

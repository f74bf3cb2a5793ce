"""The demo's task layer: somebody, a project, a task by the clock that has been executed once.

Owns what of it is shown and which commands make it; the processes are the demo's.
"""

from __future__ import annotations

import json

from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.cli.demo import Demo

USER = "demo"
PROJECT = "demo"
TASK = "Say hello"
EVERY = "*/20 * * * * *"
# a start by the clock may be under way when ours comes: ours waits for its end
DOCUMENT = {
    "projectId": PROJECT,
    "name": TASK,
    "description": "Every 20 seconds, on all agents",
    "taskType": "AGENT_SCRIPT",
    "scheduledFg": True,
    "cronExpression": EVERY,
    "multipleExecutionPolicy": "SMART_CHAINING",
    "executionRetentionPeriod": 1,
    "parameters": [{"name": "WHOM", "type": "TEXT", "defaultValue": "from the clock"}],
    "agentScriptTask": {"script": "hello", "hosts": ["@all"], "args": ["{{WHOM}}"]},
}


@value
class DemoTask:
    """What a visitor needs: a token, and the ids of the task and of its first execution."""

    token: str
    task_id: str
    execution_id: str
    status: str


def add_task(demo: Demo) -> DemoTask:
    """Make user, token, project and task, have it executed and show all that, as an admin does it.

    Raises: ServiceError if a command fails.
    """
    demo.write("task.json", json.dumps(DOCUMENT, indent=2) + "\n")
    demo.show_call("user", "add", USER, "--admin", "--no-password")
    demo.show_call("project", "create", PROJECT)
    token = demo.call("ctrl-exec", "token", "create", "demo", "--username", USER).strip()
    task_id = demo.show_call("task", "create", f"{demo.home}/task.json", "--username", USER).strip()
    demo.show_call("task", "next", TASK)
    words = ("task", "run", TASK, "-p", "WHOM=from a task", "--follow", "--username", USER)
    demo.show_call(*words)
    demo.show_call("execution", "list", "--task", TASK, "--status", "SUCCESS", "--limit", "1")
    listed = demo.call("ctrl-exec", "execution", "list", "--task", TASK, "--limit", "5", "--json")
    # the clock starts it too
    mine = next(each for each in json.loads(listed)["executions"] if each["trigger"] == "USER")
    return DemoTask(token, task_id, mine["executionId"], mine["status"])


def advice(program: str, url: str, task: DemoTask) -> str:
    """What to try next, as lines to be copied."""
    return f"""
  {program} task list
  {program} task next
  {program} execution list --limit 5
  {program} execution log -f "{TASK}"
  {program} task run "{TASK}" -p WHOM=you --follow --username {USER}

  export TOKEN={task.token}
  curl -s -H "Authorization: Bearer $TOKEN" {url}/api/v1/upcoming?limit=5
  curl -s -H "Authorization: Bearer $TOKEN" {url}/api/v1/executions?limit=1
  curl -s -H "Authorization: Bearer $TOKEN" {url}/api/v1/executions \\
      -d '{{"taskId": "{task.task_id}", "parameterMap": {{"WHOM": "curl"}}}}'
"""

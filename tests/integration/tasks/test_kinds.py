"""Agent scripts and HTTP requests as executions: real agents, a real receiver, a real scheduler."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.tasks.test_executions import ended, log_of, shown, start
from tests.support.descriptors import holders_of
from tests.support.fleet import Fleet
from tests.support.office import Office
from tests.support.polling import eventually

SCRIPTS = {
    "greet": '#!/bin/sh\necho "hello $1"\nprintf "no newline"\n',
    "fail": "#!/bin/sh\necho sorry >&2\nexit 4\n",
    "wait": "#!/bin/sh\necho begun\nsleep 600\n",
    "stdin": "#!/bin/sh\ncat\n",
    "halves": """#!/bin/sh
KEY=$(sed 's/.*"KEY": "\\([^"]*\\)".*/\\1/')
printf %.8s "$KEY"
sleep 0.6
echo "${KEY#????????}"
printf %.8s "$KEY" >&2
""",
}
LATE = """KEY=$(sed 's/.*"KEY": "\\([^"]*\\)".*/\\1/')
echo first
{wait}echo "second $KEY"
"""


class Site(Office):
    """An office with agents."""

    def __post_init__(self) -> None:
        Fleet.__post_init__(self)
        port = self.pairing_port
        super().__post_init__()
        self.pairing_port = port
        self.write_conf({"api_auth_default": None, "tasks.outgoing_allow": "127.0.0.0/8"})

    @property
    def gate(self) -> Path:
        """What the script `gate` waits for."""
        return self.home / "gate"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two agents, an API, a scheduler."""
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        wait = f"while [ ! -e {made.gate} ]; do sleep 0.05; done\n"
        scripts = SCRIPTS | {"gate": f"#!/bin/sh\n{wait}", "late": f"#!/bin/sh\n{LATE}".format(wait=wait)}
        agents = [made.new_agent(name, scripts=scripts) for name in ("host-a", "host-b")]
        made.enrol(*agents)
        for agent in agents:
            made.start_agent(agent)
        made.start_api()
        made.start_scheduler()
        yield made
    finally:
        made.close()


def script(site: Site, name: str, *args: str, **changes: Any) -> str:
    """A task that runs a script of both agents; its id."""
    kind = {"script": name, "hosts": ["host-a", "host-b"], "args": list(args)} | changes.pop("kind", {})
    return str(site.create_task(agentScriptTask=kind, **changes)["taskId"])


def test_a_script_runs_on_its_hosts_and_is_logged_by_host(site: Site) -> None:
    """Templates become arguments and split none; the run is the execution's."""
    parameters = [{"name": "WHO", "type": "TEXT", "defaultValue": "you; rm -rf x"}]
    execution = ended(site, start(site, script(site, "greet", "{{WHO}}", parameters=parameters)))
    assert (execution["status"], execution["exitCode"]) == ("SUCCESS", 0)
    lines = log_of(site, execution["executionId"]).splitlines()
    for host in ("host-a", "host-b"):
        own = [line for line in lines if line.startswith(host)]
        assert own == [f"{host}: hello you; rm -rf x", f"{host}: no newline", f"{host}: [ok, exit 0]"]
    (reqid,) = execution["runs"]
    run = site.cli_json("status", reqid)
    assert run["state"] == "completed"
    record = json.loads((site.state / "runs" / f"{reqid}.json").read_text())
    assert record["submitter"] == {"username": "admin", "source_ip": "task"}


def test_a_host_that_fails_fails_it_with_the_counts(site: Site) -> None:
    """What it said is in the log."""
    execution = ended(site, start(site, script(site, "fail")))
    assert (execution["status"], execution["exitCode"], execution["reason"]) == ("FAILED", 1, "2 failed")
    assert "host-a: sorry" in log_of(site, execution["executionId"])


def test_a_run_that_cannot_begin_fails_by_its_reason(site: Site) -> None:
    """An unknown host, a dash that came through a template."""
    unknown = ended(site, start(site, script(site, "greet", kind={"hosts": ["host-x"]})))
    assert unknown["status"] == "FAILED"
    assert "host-x" in unknown["reason"]
    parameters = [{"name": "WHO", "type": "TEXT"}]
    task_id = script(site, "greet", "{{WHO}}", parameters=parameters)
    dashed = ended(site, start(site, task_id, {"WHO": "--force"}))
    assert (dashed["status"], dashed["runs"]) == ("FAILED", dashed["runs"])
    assert "allowLeadingDash" in dashed["reason"]


def test_an_abort_ends_the_scripts_on_the_agents(site: Site) -> None:
    """Every host says so."""
    execution_id = start(site, script(site, "wait"))
    eventually(lambda: log_of(site, execution_id).count("begun") == 2)
    assert site.ask("POST", f"/api/v1/executions/{execution_id}/abort").status == 202
    execution = ended(site, execution_id)
    assert (execution["status"], execution["reason"]) == ("ABORTED", "2 cancelled")
    again = ended(site, start(site, script(site, "wait", timeout=1, timeoutDurationUnit="SECOND")))
    assert (again["status"], again["reason"]) == ("TIMED_OUT", "timed out after 1s")


def test_an_abort_of_a_workflow_ends_its_scripts_on_the_agents(site: Site) -> None:
    """It is ABORTED when every host has said so."""
    kind = {"steps": [{"taskId": script(site, "wait")}]}
    flow_task = site.create_task(taskType="WORKFLOW", workflowTask=kind, agentScriptTask=None)
    flow = start(site, str(flow_task["taskId"]))
    child = eventually(lambda: shown(site, flow)["steps"][0]["executionId"])
    eventually(lambda: log_of(site, child).count("begun") == 2)
    assert site.ask("POST", f"/api/v1/executions/{flow}/abort").status == 202
    assert ended(site, flow)["status"] == "ABORTED"
    assert (shown(site, child)["status"], shown(site, child)["reason"]) == ("ABORTED", "2 cancelled")


def test_secrets_reach_a_script_on_its_standard_input_alone(site: Site) -> None:
    """Masked in the log, and where the run itself is on record, here and on its agents."""
    task_id = script(site, "stdin", parameters=[{"name": "KEY", "type": "SECRET"}])
    execution = ended(site, start(site, task_id, {"KEY": "s3cr3t-for-agents"}))
    assert execution["status"] == "SUCCESS"
    log = log_of(site, execution["executionId"])
    assert "s3cr3t" not in log
    assert '"KEY": "********"' in log
    (reqid,) = execution["runs"]
    kept = records_of(site, reqid)
    assert sorted(kept) == ["host-a", "host-b", "state"]
    for text in kept.values():
        assert "********" in text
        assert "s3cr3t" not in text


def records_of(site: Site, reqid: str) -> dict[str, str]:
    """All that is in files named after the run, by the first directory below the site's."""
    found: dict[str, str] = {}
    for path in site.home.rglob(f"{reqid}*"):
        if path.is_file():
            place = path.relative_to(site.home).parts[0]
            found[place] = found.get(place, "") + path.read_text("utf-8", "replace")
    return found


def test_a_secret_is_on_record_nowhere_when_the_runs_carrier_dies(site: Site) -> None:
    """Who takes the run over does not know the secret, and need not: its agent masks."""
    task_id = script(site, "late", kind={"hosts": ["host-a"]}, parameters=[{"name": "KEY", "type": "SECRET"}])
    site.gate.unlink(missing_ok=True)
    execution_id = start(site, task_id, {"KEY": "s3cr3t-for-agents"})
    eventually(lambda: "first" in log_of(site, execution_id))
    (reqid,) = shown(site, execution_id)["runs"]
    watcher = _carrier_of(site, execution_id)  # it may look at the lock just now
    carriers = [pid for pid in holders_of(lambda file: f"{reqid}.lock" in file) if pid != watcher]
    assert carriers
    for pid in carriers:
        os.kill(pid, signal.SIGKILL)
    site.gate.touch()
    assert ended(site, execution_id)["status"] == "SUCCESS"
    assert site.cli_json("status", reqid)["results"][0]["stdout"] == "first\nsecond ********\n"
    assert "s3cr3t" not in "".join(records_of(site, reqid).values())
    assert "s3cr3t" not in log_of(site, execution_id)


def test_a_secret_that_comes_in_two_pieces_is_masked(site: Site) -> None:
    """The name of the host does not come between its halves; half of it alone is none."""
    task_id = script(
        site, "halves", kind={"hosts": ["host-a"]}, parameters=[{"name": "KEY", "type": "SECRET"}]
    )
    execution = ended(site, start(site, task_id, {"KEY": "s3cr3t-for-agents"}))
    assert execution["status"] == "SUCCESS"
    lines = log_of(site, execution["executionId"]).splitlines()
    assert sorted(lines[:2]) == ["host-a: ********", "host-a: s3cr3t-f"]


def test_a_run_outlives_the_carrier_of_its_execution(site: Site) -> None:
    """Recovery asks it for its end: nothing is lost that was not."""
    site.gate.unlink(missing_ok=True)
    execution_id = start(site, script(site, "gate"))
    eventually(lambda: shown(site, execution_id)["runs"])
    reqid = shown(site, execution_id)["runs"][0]
    eventually(lambda: site.cli_json("status", reqid)["ok"])
    os.kill(_carrier_of(site, execution_id), signal.SIGKILL)
    site.gate.touch()
    eventually(lambda: site.cli_json("status", reqid)["state"] == "completed")
    assert site.scheduler is not None
    site.scheduler.stop()
    site.start_scheduler()  # recovery is the first thing it does
    assert ended(site, execution_id)["status"] == "SUCCESS"


def _carrier_of(site: Site, execution_id: str) -> int:
    """Who holds the lock of the execution. Source: proc(5), /proc/locks."""
    about = os.stat(site.state / "executions" / f"{execution_id}.lock")
    place = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if place in words:
            return int(words[4])
    raise AssertionError(f"nobody carries {execution_id}")


class Receiver(http.server.BaseHTTPRequestHandler):
    """Remembers what came."""

    seen: list[tuple[str, str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.seen.append((self.path, self.headers.get("X-Key", ""), body))
        status = 500 if "broken" in self.path else 201
        self.send_response(status)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"thank")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[http.server.HTTPServer]:
    """A server on loopback."""
    Receiver.seen = []
    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_request_is_judged_by_its_status(site: Site, receiver: http.server.HTTPServer) -> None:
    """Its templates are escaped where they stand."""
    url = f"http://127.0.0.1:{receiver.server_port}/hook?who={{{{WHO}}}}"
    kind = {"method": "POST", "url": url, "headers": {"X-Key": "k"}, "body": '{"who": "{{WHO}}"}'}
    parameters = [{"name": "WHO", "type": "TEXT", "defaultValue": 'a "b"&c'}]
    facts: dict[str, Any] = {"taskType": "HTTP_REQUEST", "agentScriptTask": None, "parameters": parameters}
    task = site.create_task(httpRequestTask=kind, **facts)
    execution = ended(site, start(site, str(task["taskId"])))
    assert execution["status"] == "SUCCESS"
    path, key, body = Receiver.seen[0]
    assert (path, key) == ("/hook?who=a%20%22b%22%26c", "k")
    assert json.loads(body) == {"who": 'a "b"&c'}
    log = log_of(site, execution["executionId"])
    assert log == f"POST http://127.0.0.1:{receiver.server_port}/hook → 201\nthank"
    broken = site.create_task(httpRequestTask=kind | {"url": url.replace("hook", "broken")}, **facts)
    execution = ended(site, start(site, str(broken["taskId"])))
    assert (execution["status"], execution["reason"]) == ("FAILED", "status 500")

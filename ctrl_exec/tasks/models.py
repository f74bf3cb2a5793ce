"""The nouns of the task layer as values: users, projects, tasks of four kinds, executions and the rest.

Owns their shape inside the program. Times are nanoseconds since the epoch (`…_ns`), ids ULIDs, words
of enumerations those of the wire. Must not know how any of it is stored, written on the wire, or
checked: that is the store's, the codec's and the checks'.
"""

from __future__ import annotations

from ctrl_exec.common.value import field, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# roles in a project, the most first; an administrator is above all of them
MANAGER = "MANAGER"
ADVANCED_EXECUTOR = "ADVANCED_EXECUTOR"
EXECUTOR = "EXECUTOR"
VIEWER = "VIEWER"
ROLES = (MANAGER, ADVANCED_EXECUTOR, EXECUTOR, VIEWER)
ADMINISTRATOR = "ADMINISTRATOR"

LOCAL_COMMAND = "LOCAL_COMMAND"
AGENT_SCRIPT = "AGENT_SCRIPT"
WORKFLOW = "WORKFLOW"
HTTP_REQUEST = "HTTP_REQUEST"
TASK_TYPES = (LOCAL_COMMAND, AGENT_SCRIPT, WORKFLOW, HTTP_REQUEST)

REJECT = "REJECT"
SMART_CHAINING = "SMART_CHAINING"
REPLACEMENT = "REPLACEMENT"
CONCURRENCY = "CONCURRENCY"
POLICIES = (REJECT, SMART_CHAINING, REPLACEMENT, CONCURRENCY)

UNIT_SECONDS = {"SECOND": 1, "MINUTE": 60, "HOUR": 3600, "DAY": 86400}
LOG_OUTPUTS = ("ALWAYS", "ON_FAILURE", "NEVER")
MISSED_POLICIES = ("SKIP", "RUN_ONCE")
PARAMETER_TYPES = ("TEXT", "SELECTOR", "CHECKBOX", "INTEGER", "DATE", "SECRET")
EVENTS = ("ON_START", "ON_END", "ON_FAILURE", "ON_RECOVERY", "ON_MISSED", "ON_LONG")
NOTIFIER_KINDS = ("EMAIL", "SLACK", "MATTERMOST", "DISCORD", "TEAMS", "NTFY", "WEBHOOK")
WEBHOOK_SCHEMES = ("GENERIC", "GITHUB", "GITLAB", "GITEA", "STANDARD")

PENDING = "PENDING"
RUNNING = "RUNNING"
ABORTING = "ABORTING"
SUCCESS = "SUCCESS"
FAILED = "FAILED"
ABORTED = "ABORTED"
TIMED_OUT = "TIMED_OUT"
LOST = "LOST"
SKIPPED = "SKIPPED"
OPEN_STATUSES = (PENDING, RUNNING, ABORTING)
FINAL_STATUSES = (SUCCESS, FAILED, ABORTED, TIMED_OUT, LOST, SKIPPED)
STATUSES = (*OPEN_STATUSES, *FINAL_STATUSES)
TRIGGERS = ("USER", "SCHEDULE", "WEBHOOK", "WORKFLOW", "RETRY")
SKIP_REASONS = ("POLICY", "CALENDAR", "MISSED", "DISABLED")


@value
class User:
    """Somebody who may sign in; `password` is the scrypt record, empty for one who cannot."""

    user_id: str
    name: str
    is_administrator: bool = False
    is_enabled: bool = True
    password: str = ""
    created_ns: int = 0
    updated_ns: int = 0


@value
class Team:
    """Users who share roles."""

    team_id: str
    name: str
    members: tuple[str, ...] = ()
    created_ns: int = 0
    updated_ns: int = 0


@value
class Role:
    """What a user or a team (one of the two) may do in a project."""

    project_id: str
    role: str
    user_id: str = ""
    team_id: str = ""


@value
class Token:
    """A credential of the task layer; its secret is known only as a SHA-256.

    `kind` is `personal`, `access` or `refresh`; empty `scopes` and `project_ids` mean all that the user may.
    A refresh token that was used is `spent`; using it again revokes its `family_id`. `maker_id` is the
    personal token that made it, itself or by an access token that was given for it.
    """

    token_id: str
    user_id: str
    kind: str
    name: str = ""
    scopes: tuple[str, ...] = ()
    project_ids: tuple[str, ...] = ()
    created_ns: int = 0
    expires_ns: int | None = None
    used_ns: int | None = None
    revoked_ns: int | None = None
    spent_ns: int | None = None
    family_id: str = ""
    maker_id: str = ""


@value
class Project:
    """What tasks belong to; `project_id` is the slug of its first name and never changes."""

    project_id: str
    name: str
    description: str = ""
    timeout: int | None = None
    timeout_unit: str | None = None
    retention_days: int | None = None
    created_ns: int = 0
    updated_ns: int = 0


@value
class Constant:
    """A value that the commands of a project get as `CPC_<NAME>`."""

    constant_id: str
    project_id: str
    name: str
    content: str
    created_ns: int = 0
    updated_ns: int = 0


@value
class Secret:
    """A value that is written, never shown; here only its name."""

    secret_id: str
    project_id: str
    name: str
    created_ns: int = 0
    updated_ns: int = 0


@value
class Parameter:
    """What a task can be started with: a name, a type with its bounds, a default.

    `options` of a SELECTOR are (value, label) pairs; `least` and `most` bound an INTEGER (int), a DATE
    (`YYYY-MM-DD`) or the length of a TEXT (int).
    """

    name: str
    type: str
    label: str = ""
    default: str | int | bool | None = None
    is_required: bool = False
    options: tuple[tuple[str, str], ...] = ()
    least: int | str | None = None
    most: int | str | None = None
    pattern: str | None = None
    allows_leading_dash: bool = False


@value
class LocalCommand:
    """A command on the dispatcher itself: a program with arguments, or one line for a shell."""

    uses_shell: bool = False
    command_line: str | None = None
    program: str | None = None
    args: tuple[str, ...] | None = None
    log_output: str = "ALWAYS"


@value
class Rolling:
    """A run in batches: how many hosts at once (or `20%`), how many may fail, the pause between."""

    size: int | str
    max_failures: int | str = 0
    pause_s: int = 0


@value
class AgentScript:
    """A run of a script on agents, its hosts by patterns."""

    script: str
    args: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    batch: Rolling | None = None
    lock_wait_s: int | None = None
    log_output: str = "ALWAYS"


@value
class Step:
    """A step of a workflow: a task to execute, or with `role` an approval to wait for, at most so long.

    `condition` is `SUCCESS`, `FAILURE` or `ALWAYS` of the step before; None: as `on_failure` leaves it.
    """

    task_id: str = ""
    parameter_map: dict[str, Any] = field(default_factory=dict)
    on_failure: str = "STOP"
    condition: str | None = None
    role: str = ""
    name: str = ""
    timeout: int | None = None
    timeout_unit: str | None = None


@value
class Workflow:
    """Tasks one after the other, or at once."""

    steps: tuple[Step, ...]
    mode: str = "SEQUENTIAL"


@value
class HttpRequest:
    """An outgoing request; without `expected` any 2xx is a success."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: str | None = None
    expected: tuple[int, ...] | None = None


@value
class Retry:
    """How often a failed execution is tried in all, after which delay, grown by which factor."""

    max_attempts: int
    delay_s: int = 0
    backoff: float = 1.0


@value
class Schedule:
    """One cron expression in a zone, with the parameters its starts have."""

    cron_expression: str
    timezone: str | None = None
    parameter_map: dict[str, Any] = field(default_factory=dict)


@value
class Calendar:
    """Days on which starts by the clock are left out (EXCLUDE), or the only ones (RESTRICT).

    `dates` are `YYYY-MM-DD`; `ical` is an iCalendar text whose events' days count too.
    """

    mode: str
    dates: tuple[str, ...] = ()
    ical: str | None = None


@value
class Subscription:
    """What of a task a notifier is told."""

    notifier_id: str
    events: tuple[str, ...]
    after_failures: int | None = None


@value
class Task:
    """Something that can be executed, and when; `version` grows with every change.

    `rights` is what its owner left it of theirs, as with an `Execution`.
    """

    task_id: str
    project_id: str
    name: str
    kind: LocalCommand | AgentScript | Workflow | HttpRequest
    user_id: str = ""
    created_ns: int = 0
    updated_ns: int = 0
    version: int = 1
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    policy: str = REJECT
    max_concurrency: int | None = None
    notifiers: tuple[Subscription, ...] = ()
    is_enabled: bool = True
    is_scheduled: bool = False
    cron_expression: str | None = None
    cron_timezone: str | None = None
    schedules: tuple[Schedule, ...] = ()
    calendar: Calendar | None = None
    missed_policy: str = "SKIP"
    start_deadline_s: int | None = None
    retry: Retry | None = None
    timeout: int | None = None
    timeout_unit: str | None = None
    retention_days: int | None = None
    rights: str | None = None

    @property
    def task_type(self) -> str:
        """The tag of the union."""
        return KINDS[type(self.kind)]


KINDS: dict[type, str] = {
    LocalCommand: LOCAL_COMMAND,
    AgentScript: AGENT_SCRIPT,
    Workflow: WORKFLOW,
    HttpRequest: HTTP_REQUEST,
}


@value
class Timer:
    """One schedule of one task as the clock keeps it.

    `timer_id` is stable over changes of its task (`<task_id>:<place>`, place 0 is the task's own
    expression). `seen_ns` is the due time up to which the clock has dealt with it, None for a new or
    changed one, whose starts count from `since_ns` on.
    """

    timer_id: str
    task_id: str
    schedule: Schedule
    since_ns: int
    seen_ns: int | None = None
    version: int = 1


@value
class Execution:
    """One attempt of a task, from its request to its end.

    `reason` says why it was skipped, lost or waits. `group_pid` and `group_started` name the process
    group of its command, stored before the exec. `parent_id` is the workflow's execution, `retry_of`
    the attempt before. `rights` is what its steps may where that is not all that its user may: a JSON
    array of projects, or `LOCAL` for all.
    """

    execution_id: str
    task_id: str
    project_id: str
    trigger: str
    status: str = PENDING
    user_id: str | None = None
    created_ns: int = 0
    updated_ns: int = 0
    parameter_map: dict[str, Any] = field(default_factory=dict)
    timer_id: str | None = None
    scheduled_ns: int | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    exit_code: int | None = None
    attempt: int = 1
    runs: tuple[str, ...] = ()
    reason: str | None = None
    claimer: str | None = None
    claimed_ns: int | None = None
    group_pid: int | None = None
    group_started: int | None = None
    parent_id: str | None = None
    retry_of: str | None = None
    not_before_ns: int | None = None
    rights: str | None = None


@value
class Notifier:
    """Where news of executions go; `settings` without what is secret."""

    notifier_id: str
    project_id: str
    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    is_enabled: bool = True
    created_ns: int = 0
    updated_ns: int = 0


@value
class Webhook:
    """An address that starts a task when somebody proves to know its secret.

    `mapping` is parameter → path of a JSON field; `events` and `branches` filter (empty: all). `rights` is
    what its user left it of theirs, as with an `Execution`.
    """

    webhook_id: str
    project_id: str
    task_id: str
    name: str
    scheme: str
    user_id: str = ""
    events: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    mapping: dict[str, str] = field(default_factory=dict)
    is_enabled: bool = True
    created_ns: int = 0
    updated_ns: int = 0
    rights: str | None = None


@value
class AuditEntry:
    """Who did what to which object, when and from where; secrets are masked in `before` and `after`."""

    audit_id: str
    at_ns: int
    action: str
    object_type: str
    object_id: str
    project_id: str | None = None
    user_id: str | None = None
    username: str = ""
    token_id: str | None = None
    source_ip: str = ""
    via: str = ""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None

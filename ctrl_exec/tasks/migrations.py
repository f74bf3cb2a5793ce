"""The schema of `tasks.db`, one step for each `user_version`.

Owns the tables. A step that was released is never changed; the next one is appended.
"""

from __future__ import annotations

_IDENTITY = """
CREATE TABLE users (
  user_id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE,
  is_administrator INTEGER NOT NULL DEFAULT 0, is_enabled INTEGER NOT NULL DEFAULT 1,
  password TEXT NOT NULL DEFAULT '', created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL
) STRICT;
CREATE TABLE teams (
  team_id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE,
  created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL
) STRICT;
CREATE TABLE members (
  team_id TEXT NOT NULL REFERENCES teams ON DELETE CASCADE,
  user_id TEXT NOT NULL REFERENCES users ON DELETE CASCADE,
  PRIMARY KEY (team_id, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_of_user ON members (user_id);
CREATE TABLE tokens (
  token_id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users ON DELETE CASCADE,
  kind TEXT NOT NULL, name TEXT NOT NULL DEFAULT '', digest BLOB NOT NULL UNIQUE,
  scopes TEXT NOT NULL DEFAULT '[]', project_ids TEXT NOT NULL DEFAULT '[]',
  created_ns INTEGER NOT NULL, expires_ns INTEGER, used_ns INTEGER, revoked_ns INTEGER, spent_ns INTEGER,
  family_id TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX tokens_of_user ON tokens (user_id, kind, token_id);
CREATE INDEX tokens_of_family ON tokens (family_id) WHERE family_id != '';
CREATE INDEX tokens_by_end ON tokens (expires_ns) WHERE expires_ns IS NOT NULL;
CREATE TABLE failures (
  subject TEXT NOT NULL, minute INTEGER NOT NULL, count INTEGER NOT NULL,
  PRIMARY KEY (subject, minute)
) STRICT, WITHOUT ROWID;
CREATE TABLE audit (
  audit_id TEXT PRIMARY KEY, at_ns INTEGER NOT NULL, action TEXT NOT NULL,
  object_type TEXT NOT NULL, object_id TEXT NOT NULL, project_id TEXT, user_id TEXT,
  username TEXT NOT NULL, token_id TEXT, source_ip TEXT NOT NULL, via TEXT NOT NULL,
  before TEXT, after TEXT
) STRICT;
CREATE INDEX audit_of_object ON audit (object_id, audit_id);
CREATE INDEX audit_of_project ON audit (project_id, audit_id);
CREATE INDEX audit_of_user ON audit (user_id, audit_id);
CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END;
CREATE TRIGGER audit_keeps BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END;
"""

_PROJECTS = """
CREATE TABLE projects (
  project_id TEXT PRIMARY KEY, name TEXT NOT NULL, description TEXT NOT NULL DEFAULT '',
  timeout INTEGER, timeout_unit TEXT, retention_days INTEGER,
  created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL
) STRICT;
CREATE TABLE roles (
  project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE,
  user_id TEXT REFERENCES users ON DELETE CASCADE, team_id TEXT REFERENCES teams ON DELETE CASCADE,
  role TEXT NOT NULL, CHECK ((user_id IS NULL) != (team_id IS NULL))
) STRICT;
CREATE UNIQUE INDEX roles_of_user ON roles (user_id, project_id) WHERE user_id IS NOT NULL;
CREATE UNIQUE INDEX roles_of_team ON roles (team_id, project_id) WHERE team_id IS NOT NULL;
CREATE INDEX roles_of_project ON roles (project_id);
CREATE TABLE constants (
  constant_id TEXT PRIMARY KEY, project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE,
  name TEXT NOT NULL, content TEXT NOT NULL, created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
  UNIQUE (project_id, name)
) STRICT;
CREATE TABLE secrets (
  secret_id TEXT PRIMARY KEY, project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE,
  name TEXT NOT NULL, sealed BLOB NOT NULL, created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
  UNIQUE (project_id, name)
) STRICT;
CREATE TABLE notifiers (
  notifier_id TEXT PRIMARY KEY, project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE,
  name TEXT NOT NULL, kind TEXT NOT NULL, settings TEXT NOT NULL, sealed BLOB,
  is_enabled INTEGER NOT NULL DEFAULT 1, created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
  UNIQUE (project_id, name)
) STRICT;
"""

_TASKS = """
CREATE TABLE tasks (
  task_id TEXT PRIMARY KEY, project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE,
  name TEXT NOT NULL, task_type TEXT NOT NULL, user_id TEXT NOT NULL, is_enabled INTEGER NOT NULL,
  policy TEXT NOT NULL, max_concurrency INTEGER,
  version INTEGER NOT NULL, created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
  definition TEXT NOT NULL, UNIQUE (project_id, name)
) STRICT;
CREATE TABLE timers (
  timer_id TEXT PRIMARY KEY, task_id TEXT NOT NULL REFERENCES tasks ON DELETE CASCADE,
  cron_expression TEXT NOT NULL, timezone TEXT, parameter_map TEXT NOT NULL,
  since_ns INTEGER NOT NULL, seen_ns INTEGER, version INTEGER NOT NULL
) STRICT;
CREATE INDEX timers_of_task ON timers (task_id);
CREATE TABLE webhooks (
  webhook_id TEXT PRIMARY KEY, project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE,
  task_id TEXT NOT NULL REFERENCES tasks ON DELETE CASCADE, name TEXT NOT NULL, scheme TEXT NOT NULL,
  user_id TEXT NOT NULL, definition TEXT NOT NULL, sealed BLOB NOT NULL,
  is_enabled INTEGER NOT NULL DEFAULT 1, created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
  UNIQUE (project_id, name)
) STRICT;
CREATE TABLE deliveries (
  webhook_id TEXT NOT NULL REFERENCES webhooks ON DELETE CASCADE, delivery TEXT NOT NULL,
  at_ns INTEGER NOT NULL, execution_id TEXT, PRIMARY KEY (webhook_id, delivery)
) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_by_time ON deliveries (at_ns);
"""

# What the clock and the executions stand on. A start by the clock is made once: (timer_id, scheduled_ns).
_EXECUTIONS = """
CREATE TABLE executions (
  execution_id TEXT PRIMARY KEY, task_id TEXT NOT NULL REFERENCES tasks ON DELETE CASCADE,
  project_id TEXT NOT NULL, trigger TEXT NOT NULL, status TEXT NOT NULL, user_id TEXT,
  created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL, parameter_map TEXT NOT NULL DEFAULT '{}',
  timer_id TEXT, scheduled_ns INTEGER, start_ns INTEGER, end_ns INTEGER, exit_code INTEGER,
  attempt INTEGER NOT NULL DEFAULT 1, runs TEXT NOT NULL DEFAULT '[]', reason TEXT,
  claimer TEXT, claimed_ns INTEGER, group_pid INTEGER, group_started INTEGER,
  parent_id TEXT, retry_of TEXT, not_before_ns INTEGER, sealed BLOB
) STRICT;
CREATE UNIQUE INDEX executions_by_clock ON executions (timer_id, scheduled_ns) WHERE timer_id IS NOT NULL;
CREATE INDEX executions_of_task ON executions (task_id, execution_id);
CREATE INDEX executions_of_project ON executions (project_id, execution_id);
CREATE INDEX executions_by_status ON executions (status, execution_id);
CREATE INDEX executions_by_end ON executions (end_ns) WHERE end_ns IS NOT NULL;
CREATE INDEX executions_open ON executions (task_id, status)
  WHERE status IN ('PENDING', 'RUNNING', 'ABORTING');
CREATE INDEX executions_of_parent ON executions (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX executions_retried ON executions (retry_of) WHERE retry_of IS NOT NULL;
"""

# News of executions, on their way to notifiers; `is_long`: that it takes long was told.
_NOTICES = """
CREATE TABLE notices (
  notice_id TEXT PRIMARY KEY, notifier_id TEXT NOT NULL REFERENCES notifiers ON DELETE CASCADE,
  event TEXT NOT NULL, document TEXT NOT NULL, created_ns INTEGER NOT NULL,
  due_ns INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX notices_by_time ON notices (due_ns, notifier_id);
CREATE INDEX notices_of_notifier ON notices (notifier_id);
ALTER TABLE executions ADD COLUMN is_long INTEGER NOT NULL DEFAULT 0;
"""

# Which token made which: what is revoked takes along what descends from it. Bodies that were signed without
# anything that says when or under which id: they are known again by themselves.
_LINEAGE = """
ALTER TABLE tokens ADD COLUMN maker_id TEXT NOT NULL DEFAULT '';
CREATE INDEX tokens_of_maker ON tokens (maker_id) WHERE maker_id != '';
CREATE TABLE signed_bodies (
  webhook_id TEXT NOT NULL REFERENCES webhooks ON DELETE CASCADE, digest BLOB NOT NULL,
  at_ns INTEGER NOT NULL, event TEXT NOT NULL, execution_id TEXT, PRIMARY KEY (webhook_id, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX signed_bodies_by_time ON signed_bodies (at_ns);
"""

# Workflows that were begun: what their task was then, how far each step is, the log as it is to be.
# `rights`: what narrows or replaces the rights that the user of an execution has.
_WORKFLOWS = """
ALTER TABLE executions ADD COLUMN rights TEXT;
CREATE TABLE workflows (
  execution_id TEXT PRIMARY KEY REFERENCES executions ON DELETE CASCADE,
  definition TEXT NOT NULL, until_ns INTEGER, ending TEXT, log TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE workflow_steps (
  execution_id TEXT NOT NULL REFERENCES workflows ON DELETE CASCADE, place INTEGER NOT NULL,
  status TEXT NOT NULL, reason TEXT, child_id TEXT, until_ns INTEGER,
  verdict TEXT, decided_by TEXT, comment TEXT,
  PRIMARY KEY (execution_id, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX workflow_steps_under_way ON workflow_steps (execution_id) WHERE status = 'RUNNING';
CREATE INDEX tasks_that_are_workflows ON tasks (task_id) WHERE task_type = 'WORKFLOW';
"""

# Lists by owner and status of as many executions as there may be; nothing asks for the order of ends.
# What the audit log holds of the last 90 days only grows; what is older may be purged.
_SCALE = """
CREATE INDEX executions_of_task_in_state ON executions (task_id, status, execution_id);
CREATE INDEX executions_of_project_in_state ON executions (project_id, status, execution_id);
DROP INDEX executions_by_end;
CREATE INDEX audit_by_time ON audit (at_ns);
DROP TRIGGER audit_keeps;
CREATE TRIGGER audit_keeps BEFORE DELETE ON audit
  WHEN old.at_ns > (CAST(strftime('%s', 'now') AS INTEGER) - 7776000) * 1000000000
  BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END;
"""

# Likewise `rights` of what the clock or a delivery starts: whoever saved it may have had a narrow token.
_NARROW = """
ALTER TABLE tasks ADD COLUMN rights TEXT;
ALTER TABLE webhooks ADD COLUMN rights TEXT;
"""

# The second in which a timer is due next, as the scheduler knows it; 0 where it has not said so.
_AHEAD = """
ALTER TABLE timers ADD COLUMN next_s INTEGER NOT NULL DEFAULT 0;
CREATE INDEX timers_by_next ON timers (next_s, timer_id);
"""

MIGRATIONS = (
    _IDENTITY + _PROJECTS + _TASKS + _EXECUTIONS, _NOTICES, _LINEAGE, _SCALE, _WORKFLOWS, _NARROW, _AHEAD,
)  # fmt: skip

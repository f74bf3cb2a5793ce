"""The route table of the task layer: literal and complete.

Owns which path and method there is, the scope a token needs, the keys its body and query may have.
"""

from __future__ import annotations

from ctrl_exec.api.v1 import (
    audit,
    clock,
    constants,
    exchange,
    executions,
    notifiers,
    oauth,
    projects,
    tasks,
    teams,
    users,
    webhooks,
)
from ctrl_exec.api.v1.asking import PUBLIC, TaskRoute

_PROJECTS = "/api/v1/projects"
_PROJECT = "/api/v1/projects/{projectId}"
_TASKS = "/api/v1/tasks"
_TASK = "/api/v1/tasks/{taskId}"
_USERS = "/api/v1/users"
_USER = "/api/v1/users/{userId}"
_TOKENS = "/api/v1/personal-access-tokens"
_CONSTANTS = f"{_PROJECT}/constants"
_SECRETS = f"{_PROJECT}/secrets"
_TEAMS = "/api/v1/teams"
_TEAM = "/api/v1/teams/{teamId}"
_NOTIFIERS = "/api/v1/notifiers"
_NOTIFIER = "/api/v1/notifiers/{notifierId}"
_WEBHOOKS = "/api/v1/webhooks"
_WEBHOOK = "/api/v1/webhooks/{webhookId}"
_WHOLE_TASK = (*tasks.OWN_KEYS, *tasks.TASK_KEYS)
_WHOLE_PROJECT = (*projects.OWN_KEYS, *projects.PROJECT_KEYS)

TASK_ROUTES = (
    TaskRoute("POST", _TASKS, "task-create", tasks.create, "write", tasks.TASK_KEYS, needs_body=True),
    TaskRoute("GET", _TASKS, "tasks", tasks.index, query=tasks.LIST_KEYS),
    TaskRoute("GET", _TASK, "task", tasks.show),
    TaskRoute("PUT", _TASK, "task-replace", tasks.replace, "write", _WHOLE_TASK, needs_body=True),
    TaskRoute("PATCH", _TASK, "task-amend", tasks.amend, "write", _WHOLE_TASK, needs_body=True),
    TaskRoute("DELETE", _TASK, "task-remove", tasks.remove, "write"),
    TaskRoute(
        "POST", _PROJECTS, "project-create", projects.create, "admin", projects.PROJECT_KEYS, needs_body=True
    ),
    TaskRoute("GET", _PROJECTS, "projects", projects.index, query=projects.LIST_KEYS),
    TaskRoute("GET", _PROJECT, "project", projects.show),
    TaskRoute("PUT", _PROJECT, "project-replace", projects.replace, "write", _WHOLE_PROJECT, needs_body=True),
    TaskRoute("PATCH", _PROJECT, "project-amend", projects.amend, "write", _WHOLE_PROJECT, needs_body=True),
    TaskRoute("DELETE", _PROJECT, "project-remove", projects.remove, "admin"),
    TaskRoute("GET", f"{_PROJECT}/roles", "roles", projects.show_roles),
    TaskRoute(
        "PUT", f"{_PROJECT}/roles", "roles-replace", projects.set_roles, "admin", projects.ROLES_KEYS,
        needs_body=True,
    ),
    TaskRoute("GET", "/api/v1/profile", "profile", users.profile),
    TaskRoute("POST", _USERS, "user-create", users.create, "admin", users.USER_KEYS, needs_body=True),
    TaskRoute("GET", _USERS, "users", users.index, "admin", query=users.LIST_KEYS),
    TaskRoute("GET", _USER, "user", users.show, "admin"),
    TaskRoute("PATCH", _USER, "user-amend", users.amend, "admin", users.USER_KEYS, needs_body=True),
    TaskRoute("DELETE", _USER, "user-remove", users.remove, "admin"),
    TaskRoute(
        "POST", _TOKENS, "token-create", users.create_token, "write", users.TOKEN_KEYS, needs_body=True
    ),
    TaskRoute("GET", _TOKENS, "tokens", users.index_tokens, query=users.TOKEN_LIST_KEYS),
    TaskRoute("DELETE", f"{_TOKENS}/{{personalAccessTokenId}}", "token-revoke", users.revoke_token, "write"),
    TaskRoute("GET", _CONSTANTS, "constants", constants.index, query=constants.LIST_KEYS),
    TaskRoute(
        "POST", _CONSTANTS, "constant-create", constants.create, "write", constants.KEYS, needs_body=True
    ),
    TaskRoute(
        "PATCH", f"{_CONSTANTS}/{{constantId}}", "constant-amend", constants.amend, "write", constants.KEYS,
        needs_body=True,
    ),
    TaskRoute("DELETE", f"{_CONSTANTS}/{{constantId}}", "constant-remove", constants.remove, "write"),
    TaskRoute("GET", _SECRETS, "secrets", constants.index_secrets, query=constants.LIST_KEYS),
    TaskRoute(
        "POST", _SECRETS, "secret-create", constants.create_secret, "write", constants.KEYS, needs_body=True
    ),
    TaskRoute(
        "PATCH", f"{_SECRETS}/{{secretId}}", "secret-replace", constants.replace_secret, "write",
        constants.KEYS, needs_body=True,
    ),
    TaskRoute("DELETE", f"{_SECRETS}/{{secretId}}", "secret-remove", constants.remove_secret, "write"),
    TaskRoute("POST", _TEAMS, "team-create", teams.create, "admin", teams.KEYS, needs_body=True),
    TaskRoute("GET", _TEAMS, "teams", teams.index, "admin", query=teams.LIST_KEYS),
    TaskRoute("GET", _TEAM, "team", teams.show, "admin"),
    TaskRoute("PATCH", _TEAM, "team-amend", teams.amend, "admin", teams.KEYS, needs_body=True),
    TaskRoute("DELETE", _TEAM, "team-remove", teams.remove, "admin"),
    *clock.CLOCK_ROUTES,
    TaskRoute("GET", "/api/v1/audit", "audit", audit.index, query=audit.LIST_KEYS),
    TaskRoute(
        "POST", _NOTIFIERS, "notifier-create", notifiers.create, "write", notifiers.KEYS, needs_body=True
    ),
    TaskRoute("GET", _NOTIFIERS, "notifiers", notifiers.index, query=notifiers.LIST_KEYS),
    TaskRoute("GET", _NOTIFIER, "notifier", notifiers.show),
    TaskRoute(
        "PATCH", _NOTIFIER, "notifier-amend", notifiers.amend, "write", notifiers.KEYS, needs_body=True
    ),
    TaskRoute("DELETE", _NOTIFIER, "notifier-remove", notifiers.remove, "write"),
    TaskRoute("POST", f"{_NOTIFIER}/test", "notifier-test", notifiers.test, "write"),
    TaskRoute("POST", _WEBHOOKS, "webhook-create", webhooks.create, "write", webhooks.KEYS, needs_body=True),
    TaskRoute("GET", _WEBHOOKS, "webhooks", webhooks.index, query=webhooks.LIST_KEYS),
    TaskRoute("GET", _WEBHOOK, "webhook", webhooks.show),
    TaskRoute("PATCH", _WEBHOOK, "webhook-amend", webhooks.amend, "write", webhooks.KEYS, needs_body=True),
    TaskRoute("DELETE", _WEBHOOK, "webhook-remove", webhooks.remove, "write"),
    TaskRoute("POST", "/hooks/{webhookId}", "hook", webhooks.receive, authorised_by=PUBLIC),
    TaskRoute("GET", f"{_PROJECT}/export", "export", exchange.export),
    TaskRoute("POST", "/api/v1/imports", "import", exchange.take_in, "admin", exchange.KEYS, needs_body=True),
    TaskRoute("POST", "/oauth/token", "oauth-token", oauth.token, authorised_by=PUBLIC),
    TaskRoute("POST", "/oauth/revoke", "oauth-revoke", oauth.revoke, authorised_by=PUBLIC),
    *executions.EXECUTION_ROUTES,
)  # fmt: skip

"""With whose rights the steps of a workflow are executed: of whom started it, as they are at that moment.

Owns what is kept of a start beside its user: a token may be narrower than its user, and who works at the
prompt may do anything.
"""

from __future__ import annotations

import json

from ctrl_exec.common.value import replace
from ctrl_exec.tasks.people.identity import Identity, user_identity
from ctrl_exec.tasks.store import packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.tasks.models import Execution
    from ctrl_exec.tasks.store import Store

LOCAL = "LOCAL"


def rights_to_keep(identity: Identity) -> str | None:
    """What is kept with an execution that somebody starts; None: all that its user may."""
    if identity.via == "cli":
        return LOCAL
    return rights_to_leave(identity)


def rights_to_leave(identity: Identity) -> str | None:
    """What is kept with what starts executions later, in its owner's name: a token's limits go with it."""
    return None if identity.project_ids is None else packed(identity.project_ids)


def starter_of(store: Store, execution: Execution) -> Identity | None:
    """Who started an execution, with their rights of this moment; None if they are off or gone."""
    user_id = execution.user_id or ""
    if execution.rights == LOCAL:
        row = store.row("SELECT name FROM users WHERE user_id = ?", (user_id,))
        name = "" if row is None else row["name"]
        return Identity(user_id, name, is_administrator=True, via="scheduler")
    found = user_identity(store, user_id)
    if found is None or execution.rights is None:
        return found
    return replace(found, project_ids=tuple(json.loads(execution.rights)))

"""One attempt as a kind sees it: what is to be done, with what, where output goes, when to stop.

Owns this seam between the carrier of an execution and the kinds. Must not know any kind.
"""

from __future__ import annotations

from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller
    from ctrl_exec.tasks.execution.materials import Materials
    from ctrl_exec.tasks.models import Execution, Task
    from ctrl_exec.tasks.store import Store


@value
class Attempt:
    """An execution that has begun.

    `caller` is whose rights it has with agents. `say` adds output, (1 or 2, bytes), to its log, masked.
    `wants_end` is true once somebody aborted it. `timeout_s` bounds it all.
    """

    execution: Execution
    task: Task
    materials: Materials
    dispatcher: Dispatcher
    store: Store
    caller: Caller
    say: Callable[[int, bytes], None]
    wants_end: Callable[[], bool]
    timeout_s: float | None = None

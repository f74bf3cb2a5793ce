"""The task layer's database as the configuration has it.

Owns where it is, and that schedulers hear of what changes in it. Every program opens it here.
"""

from __future__ import annotations

from ctrl_exec.tasks.clock.wake import wake_schedulers
from ctrl_exec.tasks.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.config import Config


def open_store(config: Config) -> Store:
    """The store of an instance; opens nothing yet."""
    return Store(config.tasks_db_path, on_change=lambda: wake_schedulers(wake_directory(config)))


def wake_directory(config: Config) -> str:
    """Where schedulers of an instance listen for changes."""
    return config.state_dir + "/wake"

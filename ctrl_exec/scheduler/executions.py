"""Executions in processes of their own: the scheduler's hand that starts carriers and cleans up after them.

Owns the processes. What starts next, and what a dead carrier leaves, is decided in `tasks.starting`;
what a carrier does is its own.
"""

from __future__ import annotations

import os

from ctrl_exec.common.errors import ConfigError, CtrlExecError, ProgramError, ServiceError
from ctrl_exec.common.process import detach
from ctrl_exec.common.suppression import suppress
from ctrl_exec.scheduler.news import News
from ctrl_exec.tasks.execution import starting
from ctrl_exec.tasks.execution.carriage import ExecutionFiles, give_back, new_claimer
from ctrl_exec.tasks.workflow import workflows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ctrl_exec.config import Config
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.tasks.execution.execution_carrier import CarrierParts
    from ctrl_exec.tasks.execution.lifecycle import Outcome
    from ctrl_exec.tasks.models import Execution
    from ctrl_exec.tasks.outbound.outgoing import Allowance
    from ctrl_exec.tasks.store import Store

DAY_S = 86_400


class Executions:
    """Starts what waits, and ends what nobody carries. Raises: ConfigError."""

    def __init__(self, dispatcher: Dispatcher, store: Store, environment: Mapping[str, str]) -> None:
        self._dispatcher = dispatcher
        self._store = store
        self._environment = environment
        self._files = ExecutionFiles(dispatcher.config.executions_dir)
        self._allowance = allowance_of(dispatcher.config)
        self.news = News(dispatcher, store)
        self._workflow_parts = workflows.WorkflowParts(
            store=store,
            files=self._files,
            log=dispatcher.log,
            secrets=lambda execution: [
                each for some in self._secrets(store, execution) for each in some.values()
            ],
            default_timeout_s=dispatcher.config.tasks_timeout or None,
        )

    def start_waiting(self, is_pressed: Callable[[], bool] = lambda: False) -> bool:
        """Start a carrier for each execution that may start now; True if more may. Raises: StorageError.

        Workflows are moved on before: what of them begins starts with the others. Of many each takes its
        time: after one of them, whoever `is_pressed` has his turn.
        """
        workflows.move_on(self._workflow_parts)
        most = self._dispatcher.config.tasks_max_running
        while True:
            claimer = new_claimer()
            execution_id = starting.claim_next(self._store, claimer, max_running=most)
            if execution_id is None:
                return False
            self._start(execution_id, claimer)
            if is_pressed():
                return True

    def _start(self, execution_id: str, claimer: str) -> None:
        log = self._dispatcher.log
        log.close()  # in the carrier it would be a number without its socket: the next line opens another
        self._store.close()
        try:
            detach(
                lambda: self._carry(execution_id, claimer),
                close=_open_fds() - {0, 1, 2},
                keep_stderr=self._dispatcher.config.log_target == "stderr",
            )
        except (ProgramError, OSError) as error:
            give_back(self._store, execution_id, claimer)
            log.error("task-start", execution=execution_id, error=str(error))
            raise

    def _carry(self, execution_id: str, claimer: str) -> int:
        from ctrl_exec.tasks.execution.execution_carrier import carry

        try:
            carry(self._parts(), execution_id, claimer)
        except CtrlExecError as error:  # recovery finds what is left of it
            self._dispatcher.log.error("task-end", execution=execution_id, error=str(error))
            return 1
        return 0

    def _parts(self) -> CarrierParts:
        from ctrl_exec.tasks.execution.execution_carrier import CarrierParts

        config = self._dispatcher.config
        return CarrierParts(
            dispatcher=self._dispatcher,
            store=self._store,
            files=self._files,
            environment=self._environment,
            secrets=self._secrets,
            max_log_bytes=config.tasks_max_log,
            default_timeout_s=config.tasks_timeout or None,
            allowance=self._allowance,
        )

    def _secrets(self, store: Store, execution: Execution) -> tuple[Mapping[str, str], Mapping[str, str]]:
        from ctrl_exec.tasks.execution.executions import sealed_parameters
        from ctrl_exec.tasks.project_secrets import load_secrets
        from ctrl_exec.tasks.sealing import Sealer, unseal_parameters

        sealer = Sealer(self._dispatcher.config.secrets_key_path)
        sealed = sealed_parameters(store, execution.execution_id)
        return load_secrets(store, sealer, execution.project_id), unseal_parameters(sealer, sealed)

    def next_moment_s(self) -> float | None:
        """When an execution that waits for its time may start, or news are due; None if nothing waits."""
        at_ns = (starting.next_moment_ns(self._store), workflows.next_moment_ns(self._store))
        moments = [self.news.next_moment_s(), *(None if each is None else each / 1e9 for each in at_ns)]
        return min((each for each in moments if each is not None), default=None)

    def recover(self) -> int:
        """Deal with what dead carriers left; gives how many executions that were. Raises: StorageError."""
        found = starting.recover(
            self._store, self._files, end_group=self._end_group, outcome_of=self._outcome_of
        )
        for word, several in (("lost", found.lost), ("given back", found.given_back)):
            for execution_id in several:
                self._dispatcher.log.warning("task-recovery", execution=execution_id, result=word)
        return len(found.lost) + len(found.given_back)

    def _end_group(self, pid: int, started: int) -> bool:
        """End what a local command left; True once it is gone. Another user's is not ours to end."""
        config = self._dispatcher.config
        if config.local_socket:
            from ctrl_exec.local.client import LocalService

            try:
                if LocalService(config.local_socket, config.local_user).end_group(pid, started):
                    return True
            except ServiceError as error:
                self._dispatcher.log.error("task-recovery", group=pid, error=str(error))
                return False
        return starting.end_group_here(pid, started)

    def purge(self) -> None:
        """Remove what is old. Raises: StorageError."""
        from ctrl_exec.tasks.execution.once import settle_keys
        from ctrl_exec.tasks.purge import Purged, purge

        settle_keys(self._store, self._dispatcher.idempotency_keys)
        days = -(-self._dispatcher.config.tasks_retention // DAY_S)
        audit_retention_s = self._dispatcher.config.tasks_audit_retention
        found = purge(self._store, self._files, days, audit_retention_s=audit_retention_s)
        if found != Purged():
            facts = {"executions": found.executions, "files": found.files, "tokens": found.tokens}
            self._dispatcher.log.info("task-purge", audit=found.audit, **facts)

    def tell_long(self) -> None:
        """Have news of what takes too long. Raises: StorageError."""
        from ctrl_exec.tasks.notification.news import note_long

        note_long(self._store)

    def _outcome_of(self, execution: Execution) -> Outcome | None:
        from ctrl_exec.tasks.kinds.agent_script import outcome_of_runs

        return outcome_of_runs(self._dispatcher, execution)


def allowance_of(config: Config) -> Allowance:
    """What outgoing requests may reach besides public addresses. Raises: ConfigError."""
    from ctrl_exec.tasks.outbound.outgoing import Allowance, read_allowance

    if not config.tasks_outgoing_allow:  # most sites: nothing of the kind is loaded for them
        return Allowance()
    try:
        return read_allowance(config.tasks_outgoing_allow)
    except ValueError as error:
        raise ConfigError(f"tasks.outgoing_allow: {error}") from error


def _open_fds() -> set[int]:
    with suppress(OSError):
        return {int(name) for name in os.listdir("/proc/self/fd")}
    return set()

"""Who may connect at all: allowed addresses, and limits on those that never bring a trusted serial.

Lives in the parent, before any child is forked. Learns how a connection ended from its child's exit
status. Knows no certificate.
"""

from __future__ import annotations

from ctrl_exec.common.child import EXIT_HANDSHAKE
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.files import remove, write_atomic
from ctrl_exec_agent.rate_limit import PROBE, SILENT, TRUSTED, RateLimits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.common.log import Log
    from ctrl_exec_agent.config import AgentConfig

EXIT_TRUSTED = 10
EXIT_UNTRUSTED = 11
"""Exit statuses of a child whose peer brought a trusted serial, or one that is not."""

_OUTCOMES = {EXIT_TRUSTED: TRUSTED, EXIT_UNTRUSTED: PROBE, EXIT_HANDSHAKE: PROBE}
_LOG_EVERY_S = 60.0
_MAX_LOGGED = 1000


class Admission:
    """The parent's decision on each connection, and what it remembers of addresses."""

    def __init__(self, config: AgentConfig, log: Log) -> None:
        self._config = config
        self._log = log
        self._limits = RateLimits(
            config.rate_limit_volume, config.rate_limit_probe, is_disabled=config.rate_limit_disable
        )
        self._logged_at: dict[str, float] = {}

    def configure(self, config: AgentConfig, log: Log) -> None:
        """Decide by another configuration from now on; what is known of addresses stays."""
        self._config = config
        self._log = log
        self._limits.configure(
            config.rate_limit_volume, config.rate_limit_probe, is_disabled=config.rate_limit_disable
        )

    def admit(self, address: str) -> bool:
        """Whether a connection of that address is to be heard."""
        if not self._is_allowed(address):
            self._log_rarely("ip-block", address, "not in allowed_ips")
            return False
        if self._limits.is_blocked(address, monotonic()):
            self._log_rarely("rate-block", address, "blocked by a rate limit")
            return False
        return True

    def note_end(self, address: str, exit_status: int) -> None:
        """Take in how the child that served the address ended."""
        outcome = _OUTCOMES.get(exit_status, SILENT)
        if outcome == PROBE and take_self_ping(self._config.state_dir, address):
            return
        self._note(address, outcome)

    def note_silence(self, address: str) -> None:
        """Take in that a connection of the address came and went without a word."""
        self._note(address, SILENT)

    def _note(self, address: str, outcome: str) -> None:
        broken = self._limits.note(address, outcome, monotonic())
        if broken:
            limit = getattr(self._config, f"rate_limit_{broken}")
            self._log.warning("rate-block", peer=address, limit=broken, seconds=limit.block_s)

    def _is_allowed(self, address: str) -> bool:
        if not self._config.allowed_ips:
            return True
        import ipaddress

        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._config.allowed_ips)

    def _log_rarely(self, action: str, address: str, reason: str) -> None:
        now = monotonic()
        if self._logged_at.get(address, -_LOG_EVERY_S) > now - _LOG_EVERY_S:
            return
        if len(self._logged_at) >= _MAX_LOGGED:
            self._logged_at.clear()
        self._logged_at[address] = now
        self._log.warning(action, peer=address, reason=reason)


def announce_self_ping(state_dir: str, address: str) -> None:
    """Say that the next failed handshake of that address is `self-ping`'s, which has no certificate to bring.

    Only who may write the agent's state can. Raises: StorageError.
    """
    write_atomic(_self_ping_mark(state_dir, address), b"", 0o600)


def take_self_ping(state_dir: str, address: str) -> bool:
    """Whether that was announced; it counts once."""
    try:
        return remove(_self_ping_mark(state_dir, address))
    except StorageError:
        return False


def _self_ping_mark(state_dir: str, address: str) -> str:
    return f"{state_dir}/.self-ping-{address}"

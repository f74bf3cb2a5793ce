"""What a running command has: its streams, its environment, its settings, the dispatcher's parts.

Owns the moment at which a command run as root becomes the service user: with `config`, which all that opens
state, hook or database goes through. `settings` are the same, read as whoever started us, for the daemon's
socket, where root is to be known as root. Must not know any command.
"""

from __future__ import annotations

import os

from ctrl_exec.common.errors import ConfigError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.output import Output
    from ctrl_exec.cli.way import Way
    from ctrl_exec.common.log import Log
    from ctrl_exec.config import Config
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller

TOKEN_LIMIT_BYTES = 65536


class Context:
    """One command's surroundings; everything expensive is made when it is first asked for."""

    def __init__(
        self,
        output: Output,
        stdin: TextIO,
        environment: Mapping[str, str],
        *,
        config_path: str = "",
        stays_root: bool = False,
        is_verbose: bool = False,
    ) -> None:
        self.output = output
        self.stdin = stdin
        self.environment = environment
        self.stays_root = stays_root
        self.is_verbose = is_verbose
        self._config_path = config_path
        self._settings: Config | None = None
        self._config: Config | None = None
        self._token: str | None = None
        self._way: Way | None = None
        self._log: Log | None = None
        self._dispatcher: Dispatcher | None = None

    @property
    def config_path(self) -> str:
        """The configuration file: `--config`, else CTRL_EXEC_CONFIG, else the system's."""
        from ctrl_exec.config import DEFAULT_PATH

        return self._config_path or self.environment.get("CTRL_EXEC_CONFIG", "") or DEFAULT_PATH

    @property
    def settings(self) -> Config:
        """The settings, and nobody has become anybody else. Raises: ConfigError: the file is wrong."""
        if self._settings is None:
            from ctrl_exec.config import load_config

            self._settings = load_config(self.config_path)
        return self._settings

    def way(self, arguments: Arguments) -> Way:
        """How this command reaches the dispatcher."""
        if self._way is None:
            from ctrl_exec.cli.way import Way

            self._way = Way(self, arguments)
        return self._way

    @property
    def config(self) -> Config:
        """The settings; the first use makes a command run as root the service user.

        Raises:
            ConfigError: the file is wrong, or the service user does not exist.
        """
        if self._config is None:
            config = self.settings
            if not self.stays_root and os.geteuid() == 0:
                self._become_service_user(config)
            self._config = config
        return self._config

    def _become_service_user(self, config: Config) -> None:
        from ctrl_exec.common.process import drop_privileges

        try:
            drop_privileges(config.service_user, config.service_group)
        except ConfigError as error:
            advice = "create it, or set `service_user =` to nothing for an instance of your own"
            raise ConfigError(f"service_user: {error.detail}; {advice}", path=self.config_path) from error

    @property
    def log(self) -> Log:
        """Where this command logs: the configured target, or stderr with `-v`.

        Log lines that go to stderr are for files and services: on a terminal only `-v` shows them.
        """
        if self._log is None:
            from ctrl_exec.common.log import Log

            config, stream = self.config, self.output.stderr
            if config.log_target == "stderr" and not self.is_verbose and stream.isatty():
                stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
            target = "stderr" if self.is_verbose else config.log_target
            self._log = Log("ctrl-exec", target, config.log_format, stream=stream)
        return self._log

    @property
    def dispatcher(self) -> Dispatcher:
        """The dispatcher's parts, put together once."""
        if self._dispatcher is None:
            from ctrl_exec.dispatcher import open_dispatcher

            self._dispatcher = open_dispatcher(self.config, self.log, environment=self.environment)
        return self._dispatcher

    def caller(self, arguments: Arguments) -> Caller:
        """Who asks, as the auth hook will see it.

        Raises:
            UsageError: the token file cannot be read.
        """
        from ctrl_exec.services.authority import Caller

        token = self.token(arguments)
        username = arguments.text("username")
        if username is None:
            username = self.environment.get("USER", "") or self.environment.get("LOGNAME", "")
        return Caller(
            username=username,
            token=token,
            source_ip="127.0.0.1",
            via="cli",
            auth="claimed" if username else "none",
            forwarded_token=token,
        )

    def token(self, arguments: Arguments) -> str:
        """The token: `--token`, else the first line of `--token-file`, else ENVEXEC_TOKEN.

        Raises:
            UsageError: the token file cannot be read.
        """
        if self._token is None:
            given, path = arguments.text("token"), arguments.text("token-file")
            if given is not None:
                self._token = given
            elif path is not None:
                self._token = self.first_line(path, "--token-file")
            else:
                self._token = self.environment.get("ENVEXEC_TOKEN", "")
        return self._token

    def first_line(self, path: str, option: str) -> str:
        """The first line of a small file that an option names; `-` reads standard input.

        Raises:
            UsageError: it cannot be read or is not text.
        """
        try:
            if path == "-":
                return self.stdin.readline(TOKEN_LIMIT_BYTES).rstrip("\r\n")
            with open(path, encoding="utf-8") as stream:
                return stream.readline(TOKEN_LIMIT_BYTES).rstrip("\r\n")
        except OSError as error:
            raise UsageError(f"{option} {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{option} {path}: not UTF-8 text") from error

"""The allowlist: which script names a dispatcher may ask for, and the absolute path of each.

Owns `scripts.conf` and the check of a path at the moment of its execution. Runs nothing and knows
no dispatcher.
"""

from __future__ import annotations

import os
import re

from ctrl_exec.common.errors import ConfigError, InvalidNameError, StorageError
from ctrl_exec.common.files import is_writable_by_others, read_bounded
from ctrl_exec.common.names import check_script
from ctrl_exec.common.value import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

LIMIT_BYTES = 1 << 20
TIMEOUT_LIMIT_S = 7 * 86400
_PROFILE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,7}", re.ASCII)
# An entry that leads to one of these permits any command at all (safety: Flowise CVE-2026-40933).
_INTERPRETER = re.compile(
    r"(?:ba|da|z|k|c|tc|fi|a|pdk|mk|r)?sh|busybox|env|sudo|doas|su|ssh|xargs|find|nice|nohup|timeout|setsid|chroot"
    r"|unshare|nsenter|systemd-run|docker|podman|perl|ruby|lua|node|nodejs|php|tclsh|expect|awk|gawk|mawk|sed|vi|vim"
    r"|pypy3?|python|(?:python|perl|ruby|lua|php)-?[0-9][0-9.]*",
    re.ASCII,
)


@value
class Script:
    """One entry of the allowlist; `timeout_s` None means no limit of its own."""

    name: str
    path: str
    profile: str = ""
    timeout_s: int | None = None
    has_lock: bool = True


@value
class Allowlist:
    """All entries by name, and the directories that real paths must lie in."""

    scripts: Mapping[str, Script]
    script_dirs: tuple[str, ...] = ()

    def find(self, name: str) -> Script | None:
        """The entry of that name, None if it is not permitted or is no name at all."""
        return self.scripts.get(name)

    def resolve(self, script: Script) -> str:
        """The path to execute: as written, or, with `script_dirs`, the real one, which must lie in them.

        A file that is missing is found out by executing it.

        Raises: StorageError if it lies outside the directories.
        """
        if not self.script_dirs:
            return script.path
        real = os.path.realpath(script.path)
        if not _lies_within(real, self.script_dirs):
            raise StorageError("lies outside script_dirs", path=real)
        return real

    def is_executable(self, script: Script) -> bool:
        """Whether the script could be executed now."""
        try:
            real = self.resolve(script)
        except StorageError:
            return False
        return os.path.isfile(real) and os.access(real, os.X_OK)

    def warnings(self) -> tuple[str, ...]:
        """What an admin should know about entries that are allowed but look wrong."""
        return tuple(warning for script in self.scripts.values() for warning in self._warnings_of(script))

    def _warnings_of(self, script: Script) -> Iterable[str]:
        if is_interpreter(script.path):
            yield f"{script.name}: {script.path} runs whatever its arguments say, which is no allowlist"
        try:
            real = self.resolve(script)
        except StorageError as error:
            yield f"{script.name}: {error}"
            return
        if not os.path.exists(real):
            yield f"{script.name}: {real} does not exist"
        elif not os.path.isfile(real):
            yield f"{script.name}: {real} is not a regular file"
        elif not os.access(real, os.X_OK):
            yield f"{script.name}: {real} is not executable by this user"
        else:
            for path in (real, os.path.dirname(real)):
                if _is_open_to_others(path):
                    yield f"{script.name}: {path} can be written by others than root"


def load_allowlist(path: str, script_dirs: tuple[str, ...] = ()) -> Allowlist:
    """The allowlist of the file.

    Raises: ConfigError naming file, line and reason; also if the file is missing.
    """
    try:
        text = read_bounded(path, LIMIT_BYTES, follow=True).decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError("no such file; it lists the scripts that may be run", path=path) from error
    except StorageError as error:
        raise ConfigError(str(error).removeprefix(f"{path}: "), path=path) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 at byte {error.start}", path=path) from error
    return parse_allowlist(text, path, script_dirs)


def parse_allowlist(text: str, path: str, script_dirs: tuple[str, ...] = ()) -> Allowlist:
    """The allowlist in the text: `name = /absolute/path [profile=NAME] [timeout=SECONDS] [lock=no]` a line.

    Raises: ConfigError naming the line.
    """
    scripts: dict[str, Script] = {}
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            script = _read_line(line)
            if script.name in scripts:
                raise ValueError(f"{script.name} is listed twice")
        except ValueError as error:
            raise ConfigError(str(error), path=path, line=number) from error
        scripts[script.name] = script
    return Allowlist(scripts, script_dirs)


def is_interpreter(path: str) -> bool:
    """Whether the path, or what it links to, is a program that runs its arguments."""
    names = {os.path.basename(path), os.path.basename(os.path.realpath(path))}
    return any(_INTERPRETER.fullmatch(name) for name in names)


def _is_open_to_others(path: str) -> bool:
    try:
        return is_writable_by_others(os.stat(path), os.geteuid())
    except OSError:
        return False


def _lies_within(real: str, directories: tuple[str, ...]) -> bool:
    return any(real.startswith(os.path.realpath(each).rstrip("/") + "/") for each in directories)


def _read_line(line: str) -> Script:
    if any(ord(char) < 32 and char != "\t" for char in line) or "\x7f" in line:
        raise ValueError("a control character; expected printable text")
    name, equals, rest = line.partition("=")
    words = rest.split()
    if not equals or not words:
        raise ValueError(f"{line[:80]!r}: expected 'name = /absolute/path'")
    try:
        check_script(name.strip())
    except InvalidNameError as error:
        raise ValueError(str(error)) from error
    path, options = words[0], words[1:]
    if not path.startswith("/") or path.endswith("/"):
        raise ValueError(f"{path!r} is no absolute path of a file")
    return replace(Script(name.strip(), path), **_read_options(options))


def _read_options(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        if key == "profile" and _PROFILE.fullmatch(text):
            option: dict[str, Any] = {"profile": text}
        elif key == "timeout" and _NUMBER.fullmatch(text) and 1 <= int(text) <= TIMEOUT_LIMIT_S:
            option = {"timeout_s": int(text)}
        elif key == "lock" and text in ("yes", "no"):
            option = {"has_lock": text == "yes"}
        else:
            expected = f"profile=NAME, timeout=SECONDS (1 to {TIMEOUT_LIMIT_S}), lock=yes or lock=no"
            raise ValueError(f"{word!r}: expected {expected}; a path with spaces is not possible")
        if option.keys() & found.keys():
            raise ValueError(f"{key} is given twice")
        found |= option
    return found

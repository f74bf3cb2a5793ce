"""The first hour of the API: the token-file auth hook, its first token, and the settings that use them.

Owns the installation of `auth-hook` and `auth-tokens` and the lines added to the configuration. What
an admin has set or installed already is never replaced.
"""

from __future__ import annotations

import hashlib
import os
import sys

from ctrl_exec.common import files
from ctrl_exec.common.errors import ConflictError, StorageError
from ctrl_exec.common.settings import read_document
from ctrl_exec.common.value import value
from ctrl_exec.operations.ownership import owners_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctrl_exec.config import Config

HOOK_MODE = 0o755
TOKENS_MODE = 0o640
LIMIT_BYTES = 1 << 20
EXAMPLE = "auth-hook-token.example"
TOKENS = "auth-tokens"


@value
class HookSetup:
    """What was installed: the hook, the first token (shown once, never stored), the settings added.

    `token` is empty where a file of tokens was there already.
    """

    hook_path: str
    token: str
    added_settings: tuple[str, ...]


def install_token_hook(config: Config, config_path: str, settings: Mapping[str, str]) -> HookSetup:
    """Install the hook with one token that may do everything, and set what is not set yet.

    `settings` are further keys to set (`api_cert`, `api_key`).

    Raises: ConflictError when another hook is there; StorageError.
    """
    hook_path = os.path.join(config.etc_dir, "auth-hook")
    if config.auth_hook not in ("", hook_path):
        raise ConflictError(f"auth_hook is set to {config.auth_hook} already; it stays")
    _install_hook(hook_path)
    token = _first_token(config, os.path.join(config.etc_dir, TOKENS))
    added = _add_settings(config_path, {"auth_hook": hook_path} | dict(settings))
    return HookSetup(hook_path, token, added)


def _install_hook(path: str) -> None:
    try:
        program = files.read_bounded(find_example(), LIMIT_BYTES, follow=True)
    except FileNotFoundError as error:
        raise StorageError("is missing from this installation", path=EXAMPLE) from error
    try:
        files.write_atomic(path, program, HOOK_MODE, exclusive=True)
    except FileExistsError:
        if files.read_bounded(path, LIMIT_BYTES, follow=True) != program:
            raise ConflictError(f"{path} is another hook; it stays") from None


def find_example() -> str:
    """Where the example hook is: in the checkout, or in the share directory of an installation."""
    import ctrl_exec

    top = os.path.dirname(os.path.dirname(os.path.abspath(ctrl_exec.__file__)))
    places = (
        os.path.join(top, "etc"),
        os.path.join(sys.prefix, "share", "ctrl-exec"),
        # <prefix>/lib/ctrl-exec/venv is where install-system puts the environment
        os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(sys.prefix))), "share", "ctrl-exec"),
    )
    found = (os.path.join(place, EXAMPLE) for place in places)
    return next((path for path in found if os.path.exists(path)), os.path.join(places[0], EXAMPLE))


def _first_token(config: Config, path: str) -> str:
    """A fresh token whose SHA-256 the hook's file holds; empty where such a file is there already."""
    import secrets

    token = secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode("ascii")).hexdigest()
    content = f"# SHA-256 of the token, user, actions, scripts, hosts\n{digest}  *  *  *  *\n"
    try:
        files.write_atomic(
            path, content.encode("ascii"), TOKENS_MODE, owner=owners_of(config).trusted, exclusive=True
        )
    except FileExistsError:
        return ""
    return token


def _add_settings(path: str, wanted: Mapping[str, str]) -> tuple[str, ...]:
    """The lines added to the configuration for keys it does not set."""
    known = {entry.key for entry in read_document(path).entries}
    lines = tuple(f"{key} = {text}" for key, text in wanted.items() if key not in known)
    if lines:
        path = os.path.realpath(path)
        about = os.stat(path)
        content = files.read_bounded(path, LIMIT_BYTES).decode("utf-8")
        added = "\n".join(("", "# added by setup-ctrl-exec --with-token-hook", *lines, ""))
        owner = (about.st_uid, about.st_gid) if os.geteuid() == 0 else None
        text = content.rstrip("\n") + "\n" + added
        files.write_atomic(path, text.encode("utf-8"), about.st_mode & 0o777, owner=owner)
    return lines

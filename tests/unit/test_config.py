"""ctrl-exec.conf: every key, what it refuses, and the paths that follow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctrl_exec import config
from ctrl_exec.common.errors import ConfigError
from ctrl_exec.common.settings import key_of
from ctrl_exec.common.value import fields
from ctrl_exec.config import Config, load_config, parse_config

ROOT = Path(__file__).resolve().parents[2]
KEYS = {key_of(each): each for each in fields(Config)}

BAD = {
    "etc_dir": ["relative/path", ""],
    "state_dir": ["./state"],
    "cert": ["dispatcher.crt"],
    "key": ["x"],
    "ca": [""],
    "ca_dir": ["~/.ca"],
    "service_user": ["no such user", "Root", "a" * 40],
    "service_group": ["a:b"],
    "dispatcher_id": ["", "-x", "a b", "ä"],
    "auth_hook": ["hook"],
    "auth_hook_timeout": ["0", "-1", "1.5", "ten", "2h", ""],
    "auth_hook_env": ["LD_PRELOAD", "A B", "1A", "ENVEXEC_TOKEN", "PYTHONPATH", "A,BASH_ENV"],
    "auth_hook_env_file": ["env"],
    "auth_hook_large": ["yes", ""],
    "auth_deny_generic": ["maybe", ""],
    "forward_token": ["always"],
    "read_timeout": ["0", "2d", "1e3"],
    "connect_timeout": ["0", "11m"],
    "discovery_timeout": ["0"],
    "run_deadline": ["9", "400d"],
    "agent_keepalive": ["-1", "2h"],
    "max_parallel": ["0", "65536", "0x10"],
    "max_hosts": ["0", "1000001", "1_000"],
    "max_run_output": ["1", "2T", "-1"],
    "run_retention": ["59", "never"],
    "api_port": ["65536", "-1", "http"],
    "api_bind": ["localhost", "", "127.0.0.1:80", "10.0.0.0/8"],
    "api_socket": ["api.sock"],
    "api_socket_group": ["a b"],
    "api_cert": ["api.crt"],
    "api_key": ["api.key"],
    "api_client_ca": ["ca.crt"],
    "api_auth_default": ["maybe", "Deny", ""],
    "api_origins": ["*", "null", "https://a/b", "ftp://a"],
    "api_names": ["a b", "*"],
    "api_trusted_proxies": ["10.0.0.0/33", "proxy"],
    "api_max_children": ["1", "x"],
    "api_max_long": ["0"],
    "api_max_per_ip": ["0"],
    "api_keepalive_requests": ["0"],
    "api_keepalive_idle": ["0"],
    "api_drain": ["-1", "2h"],
    "tasks.max_running": ["0", "10001", "many"],
    "tasks.max_log": ["1", "-5M"],
    "tasks.timeout": ["-1", "31d"],
    "tasks.retention": ["-1d", "20y"],
    "tasks.audit_retention": ["89d", "20y"],
    "tasks.smtp_host": ["mail server", "smtp://x"],
    "tasks.smtp_port": ["0", "65536"],
    "tasks.smtp_security": ["ssl", ""],
    "tasks.smtp_from": ["nobody", "a b@example.net", "Ops <a@example.net>"],
    "tasks.smtp_user": ["a b"],
    "tasks.smtp_password_file": ["password"],
    "tasks.outgoing_allow": ["http://x/", "10.0.0.0/8 10.1.0.0/16", "host"],
    "cert_days": ["0", "3651"],
    "cert_renewal_days": ["0"],
    "cert_overlap_days": ["-1", "801"],
    "pairing_bind": ["all"],
    "pairing_port": ["70000"],
    "pairing_max_queue": ["0"],
    "pairing_timeout": ["1"],
    "pairing_rate_limit": ["10/60", "0/1/1", "a/b/c", "1/0/1", "1/2/3/4", ""],
    "pairing_api_approve": ["2"],
    "purge_cron": ["daily", "* * * *", "* * * * * *"],
    "maintain_cron": ["@hourly"],
    "oauth_password_grant": [""],
    "local_user": ["a b"],
    "local_socket": ["local.sock"],
    "log_target": ["file", ""],
    "log_format": ["xml"],
}


def test_every_key_has_bad_values_here() -> None:
    """A new key comes with the values it refuses."""
    assert set(BAD) == set(KEYS)


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in BAD.items() for text in texts])
def test_a_bad_value_is_refused_with_file_line_and_expectation(key: str, text: str) -> None:
    """`FILE:LINE: key = 'value': expected …`."""
    with pytest.raises(ConfigError) as caught:
        parse_config(f"# a comment\n\n{key} = {text}\n", "/srv/ctrl-exec.conf")
    assert caught.value.line == 3
    assert str(caught.value).startswith(f"/srv/ctrl-exec.conf:3: {key} = {text!r}: expected ")
    assert str(caught.value).endswith(KEYS[key].kind.expected)


@pytest.mark.parametrize("key", [key for key, each in KEYS.items() if each.initial() not in ("", ())])
def test_every_default_reads_back_as_itself(key: str) -> None:
    """What the example file shows as the default is the default."""
    each = KEYS[key]
    assert each.kind.read(each.kind.show(each.initial())) == each.initial()


def test_every_key_has_its_meaning() -> None:
    """A key without a sentence does not reach the reference."""
    for each in fields(Config):
        assert each.doc.endswith("."), each.name
        assert each.kind.expected, each.name


def test_an_unknown_key_names_the_nearest() -> None:
    """A typo is answered with what was meant."""
    with pytest.raises(ConfigError, match=r"c:2: unknown key 'api_prot'; did you mean 'api_port'\?"):
        parse_config("etc_dir = /a\napi_prot = 1\n", "c")


def test_a_key_set_twice_is_refused() -> None:
    """The second one would win silently."""
    with pytest.raises(ConfigError, match=r"c:2: api_port is set twice"):
        parse_config("api_port = 1\napi_port = 2\n", "c")


def test_a_section_is_refused() -> None:
    """The dispatcher's file has none; [tags] belongs to the agent."""
    with pytest.raises(ConfigError, match=r"c:1: unknown section \[tags\]"):
        parse_config("[tags]\nrole = web\n", "c")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("api_cert = /a\n", 1, "api_cert and api_key belong together"),
        ("\napi_key = /a\n", 2, "api_cert and api_key belong together"),
        ("api_client_ca = /a\n", 1, "needs TLS"),
        ("api_max_children = 8\napi_max_long = 9\n", 2, "must not exceed"),
        ("cert_renewal_days = 825\n", 1, "825 days"),
        ("service_user =\nservice_group = adm\n", 2, "needs service_user"),
        ("api_port = 7444\n", 1, "must differ"),
        ("pairing_port = 7445\npairing_bind = 127.0.0.1\n", 1, "must differ"),
        ("auth_hook_env_file = /a\n", 1, "auth_hook_env"),
        (f"api_socket = /{'x' * 107}\n", 1, "too long"),
        (f"local_socket = /{'x' * 107}\n", 1, "local_socket is too long"),
        ("\ntasks.smtp_host = mail\n", 2, "needs tasks.smtp_from"),
        ("tasks.smtp_user = me\n", 1, "tasks.smtp_password_file belong together"),
        ("run_deadline = 30\n", 1, "read_timeout"),
        ("read_timeout = 1\ntimeout = 2\n", 2, "old name"),
    ],
)
def test_a_contradiction_is_refused_at_its_line(text: str, line: int, words: str) -> None:
    """Two settings that cannot both be meant stop the program."""
    with pytest.raises(ConfigError, match=words) as caught:
        parse_config(text, "c")
    assert caught.value.line == line


def test_equal_ports_on_different_addresses_are_fine() -> None:
    """Many instances share a machine."""
    found = parse_config("api_port = 7000\npairing_port = 7000\npairing_bind = 127.0.0.9\n")
    assert found.api_port == found.pairing_port == 7000


def test_ports_of_zero_never_clash() -> None:
    """Tests take any free port, twice."""
    assert parse_config("api_port = 0\npairing_port = 0\n").pairing_port == 0


def test_timeout_is_the_old_name_of_read_timeout() -> None:
    """A configuration of the older system is understood."""
    assert parse_config("timeout = 5m\n").read_timeout == 300


def test_the_system_instance_has_a_service_user_and_a_socket() -> None:
    """Without any line the paths are those of the contract."""
    found = parse_config("")
    assert (found.service_user, found.service_group) == ("ctrl-exec", "ctrl-exec")
    assert found.api_socket == "/run/ctrl-exec/api.sock"
    assert (found.cert, found.key) == ("/etc/ctrl-exec/dispatcher.crt", "/etc/ctrl-exec/dispatcher.key")
    assert found.ca_cert_path == found.ca == "/etc/ctrl-exec/ca.crt"
    assert found.ca_key_path == "/etc/ctrl-exec/ca.key"
    assert found.dispatcher_id == os.uname().nodename.lower()


def test_a_private_instance_has_neither_unless_named() -> None:
    """Its roots moved, it needs no root and no user."""
    found = parse_config("etc_dir = /srv/a/etc\nstate_dir = /srv/a/state\n")
    assert (found.service_user, found.service_group, found.api_socket) == ("", "", "")
    assert found.is_private
    named = parse_config("etc_dir = /srv/a\nservice_user = ops\napi_socket = /srv/a/s\n")
    assert (named.service_user, named.service_group, named.api_socket_group) == ("ops", "", "")
    assert named.api_socket == "/srv/a/s"
    grouped = parse_config("etc_dir = /srv/a\nservice_user = ops\nservice_group = staff\n")
    assert (grouped.service_group, grouped.api_socket_group) == ("staff", "staff")


def test_local_commands_have_a_service_unless_the_instance_is_private() -> None:
    """And a user of their own where they have one."""
    for text, socket, user in (
        ("", "/run/ctrl-exec-local/local.sock", "ctrl-exec-local"),
        ("local_user = batch\n", "/run/ctrl-exec-local/local.sock", "batch"),
        ("local_socket =\n", "", "ctrl-exec"),
        ("etc_dir = /srv/a\n", "", ""),
        ("etc_dir = /srv/a\nservice_user = ops\n", "", "ops"),
        ("etc_dir = /srv/a\nlocal_socket = /srv/a/local\n", "/srv/a/local", "ctrl-exec-local"),
    ):
        found = parse_config(text)
        assert (found.local_socket, found.local_user) == (socket, user), text


def test_all_paths_hang_off_the_two_roots() -> None:
    """Nothing of a private instance lies outside its roots."""
    found = parse_config("etc_dir = /E\nstate_dir = /S\n")
    paths = {name: getattr(found, name) for name in dir(Config) if name.endswith(("_path", "_dir"))}
    assert len(paths) > 12
    for name, path in paths.items():
        assert path.startswith(("/E", "/S")), name


def test_a_ca_directory_of_its_own_moves_certificate_and_key() -> None:
    """`ca_dir` says where both are kept; `ca` only replaces the certificate that is trusted."""
    found = parse_config("etc_dir = /E\nca_dir = /C\n")
    assert (found.ca, found.ca_key_path) == ("/C/ca.crt", "/C/ca.key")
    assert parse_config("ca_dir = /C\nca = /D/ca.pem\n").ca_cert_path == "/D/ca.pem"


def test_tls_opens_the_api_and_an_address_closes_it_again() -> None:
    """Plain HTTP stays on loopback; with TLS the API is there for others."""
    assert parse_config("").api_bind == ("127.0.0.1",)
    tls = "api_cert = /c\napi_key = /k\n"
    assert parse_config(tls).api_bind == ("0.0.0.0",)
    assert parse_config(tls + "api_bind = 127.0.0.1, ::1\n").api_bind == ("127.0.0.1", "::1")


def test_long_requests_get_three_quarters_of_fewer_children() -> None:
    """Lowering one limit alone is no contradiction."""
    assert parse_config("api_max_children = 8\n").api_max_long == 6
    assert parse_config("").api_max_long == 48


def test_missing_unreadable_and_binary_files_are_refused(tmp_path: Path) -> None:
    """Each says what is wrong with the file."""
    with pytest.raises(ConfigError, match="no such file"):
        load_config(str(tmp_path / "none.conf"))
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(str(tmp_path))
    binary = tmp_path / "b.conf"
    binary.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(str(binary))
    binary.write_bytes(b"api_port = 1\x00\n")
    with pytest.raises(ConfigError, match="control character"):
        load_config(str(binary))


def test_the_example_names_every_key_and_means_the_defaults() -> None:
    """With every line uncommented that has a value the file reads, and gives the defaults."""
    text = (ROOT / "etc/ctrl-exec.conf.example").read_text(encoding="utf-8")
    assert text == config.render_example()
    lines = [line[1:] for line in text.splitlines() if line.startswith("#") and not line.startswith("# ")]
    assert {line.partition(" =")[0] for line in lines if " =" in line} == set(KEYS)
    given = [line for line in lines if " = " in line]
    assert parse_config("\n".join(given)) == parse_config("")


def test_all_derived_files_are_up_to_date() -> None:
    """Example files, reference and man pages are what the code says (`make generate`)."""
    program = [sys.executable, str(ROOT / "packaging/generate.py"), "--check"]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, "run `make generate`: " + ended.stdout + ended.stderr

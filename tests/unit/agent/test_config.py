"""The agent's settings: defaults, every key, what is refused, and the example file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctrl_exec.common.errors import ConfigError
from ctrl_exec.common.value import fields
from ctrl_exec_agent.allowlist import load_allowlist
from ctrl_exec_agent.config import AgentConfig, RateLimit, load_agent_config, render_agent_example

ROOT = Path(__file__).resolve().parents[3]

KEYS = [
    "hostname",
    "etc_dir",
    "state_dir",
    "bind",
    "port",
    "cert",
    "key",
    "ca",
    "trusted_dispatchers_path",
    "revoked_serials",
    "allow_bare_serial",
    "script_dirs",
    "executor_socket",
    "auth_hook",
    "auth_hook_timeout",
    "stdin_timeout",
    "allowed_ips",
    "rate_limit_volume",
    "rate_limit_probe",
    "rate_limit_disable",
    "max_children",
    "keepalive_idle",
    "keepalive_requests",
    "max_output",
    "cert_staging_path",
    "log_target",
    "log_format",
]


def load(tmp_path: Path, text: str) -> AgentConfig:
    path = tmp_path / "agent.conf"
    path.write_text(text)
    return load_agent_config(str(path))


def test_an_empty_file_gives_the_defaults(tmp_path: Path):
    config = load(tmp_path, "")
    assert config.port == 7443
    assert config.rate_limit_volume == RateLimit(10, 60, 300)
    assert config.rate_limit_probe == RateLimit(3, 600, 3600)
    assert config.max_output == 10 << 20
    assert config.stdin_timeout == 10
    assert config.keepalive_idle == 330
    assert config.max_children == 256
    assert config.cert_path == "/etc/ctrl-exec-agent/agent.crt"
    assert config.trust_path == "/var/lib/ctrl-exec-agent/ctrl-exec-dispatchers"
    assert config.runs_dir == "/var/lib/ctrl-exec-agent/runs"


def test_all_paths_follow_the_two_roots(tmp_path: Path):
    config = load(tmp_path, "etc_dir = /a/etc\nstate_dir = /a/state\n")
    paths = (
        config.cert_path, config.key_path, config.ca_path, config.revoked_path, config.scripts_path,
        config.trust_path, config.staging_path, config.runs_dir,
    )  # fmt: skip
    assert all(path.startswith("/a/") for path in paths)


def test_every_key_of_the_contract_is_known_and_no_other():
    assert [each.name for each in fields(AgentConfig) if each.kind is not None] == KEYS


def test_tags_profiles_and_lists_are_read(tmp_path: Path):
    config = load(
        tmp_path,
        "hostname = Web-01.Example.org\nbind = 127.0.0.1, ::1\nallowed_ips = 10.0.0.0/8, 2001:db8::/32, 192.0.2.7\n"
        "script_dirs = /opt/a:/opt/b\n[tags]\nenv = production = yes\nrole=web\n"
        "[profile deploy]\nrun_as = deploy\ncaps = cap_a, cap_b\nwritable = /srv:/var/x\n",
    )
    assert config.agent_name == "web-01.example.org"
    assert config.bind == ("127.0.0.1", "::1")
    assert config.script_dirs == ("/opt/a", "/opt/b")
    assert config.tags == (("env", "production = yes"), ("role", "web"))
    assert len(config.allowed_ips) == 3
    assert config.profiles[0].run_as == "deploy"
    assert config.profiles[0].writable == ("/srv", "/var/x")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prot = 1", "did you mean 'port'"),
        ("port = 70000", "from 0 to 65535"),
        ("port = 7443\nport = 7443", "set twice"),
        ("bind = localhost", "addresses"),
        ("allowed_ips = 10.0.0.0/33", "CIDR"),
        ("rate_limit_volume = 10/60", "such as 10/60/300"),
        ("rate_limit_probe = 0/60/300", "such as 10/60/300"),
        ("script_dirs = opt", "absolute paths"),
        ("max_output = big", "bytes from"),
        ("rate_limit_disable = perhaps", "yes or no"),
        ("hostname = a/b", "a host name"),
        ("log_target = file", "one of syslog"),
        ("[tag]", "expected one [tags]"),
        ("[tags]\n[tags]", "expected one [tags]"),
        ("[profile]", "expected one [tags]"),
        ("[tags]\na b = c", "expected letters"),
        ("[tags]\na = b\na = c", "set twice"),
        ("[profile x]\nrunas = y", "unknown key"),
        ("tags = x", "unknown key"),
        ("path = /x", "unknown key"),
        ("nonsense", "expected 'key = value'"),
    ],
)
def test_a_wrong_line_is_refused_with_file_line_and_what_was_expected(
    tmp_path: Path, line: str, expected: str
):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"# settings\n{line}\n")
    number = 2 + line.count("\n")
    assert str(caught.value).startswith(f"{tmp_path}/agent.conf:{number}: ")
    assert expected in str(caught.value)


def test_the_example_is_generated_from_the_settings_and_loads(tmp_path: Path):
    example = (ROOT / "etc/agent.conf.example").read_text()
    assert example == render_agent_example()
    defaults = load(tmp_path, "")
    assert load(tmp_path, example) == defaults
    switched_on = [
        line[1:] if line.startswith("#") and not line.startswith("# ") and line != "#" else line
        for line in example.split("\n")
    ]
    kept = [line for line in switched_on if not line.endswith(" =")]
    config = load(tmp_path, "\n".join(kept))
    assert config.tags == (("env", "production"), ("role", "web"))
    assert config.profiles[0].name == "deploy"
    assert config.max_output == defaults.max_output


def test_the_example_allowlist_loads_with_every_entry(tmp_path: Path):
    example = (ROOT / "etc/scripts.conf.example").read_text()
    path = tmp_path / "scripts.conf"
    path.write_text(example)
    assert list(load_allowlist(str(path)).scripts) == ["uptime"]
    path.write_text(
        "\n".join(line.removeprefix("#") if line.startswith("#") and "= /" in line[:30] and line[1] != " " else line
                  for line in example.split("\n"))
    )  # fmt: skip
    assert set(load_allowlist(str(path)).scripts) == {"uptime", "deploy", "pg-backup", "log-tail"}

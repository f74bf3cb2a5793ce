"""The allowlist: what it reads, what it refuses, and which path it lets run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.errors import ConfigError, StorageError
from ctrl_exec_agent.allowlist import Script, is_interpreter, load_allowlist, parse_allowlist


def test_an_entry_has_a_name_a_path_and_options():
    allowed = parse_allowlist(
        "# scripts\n\nhello = /opt/hello\nback_up-1 = /opt/b profile=db timeout=90 lock=no\n", "s.conf"
    )
    assert allowed.find("hello") == Script("hello", "/opt/hello")
    assert allowed.find("back_up-1") == Script("back_up-1", "/opt/b", "db", 90, has_lock=False)
    assert allowed.find("other") is None
    assert allowed.find("../hello") is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hello", "expected 'name = /absolute/path'"),
        ("hello =", "expected 'name = /absolute/path'"),
        ("= /opt/hello", "is not a script name"),
        ("he llo = /opt/hello", "is not a script name"),
        ("héllo = /opt/hello", "is not a script name"),
        (f"{'x' * 65} = /opt/hello", "is not a script name"),
        ("../x = /opt/hello", "is not a script name"),
        ("hello = opt/hello", "is no absolute path"),
        ("hello = /opt/", "is no absolute path"),
        ("hello = /opt/he llo", "a path with spaces is not possible"),
        ("hello = /opt/hello timeout=0", "expected profile=NAME"),
        ("hello = /opt/hello timeout=1e3", "expected profile=NAME"),
        ("hello = /opt/hello lock=maybe", "expected profile=NAME"),
        ("hello = /opt/hello lock=no lock=no", "lock is given twice"),
        ("hello = /opt/hello colour=red", "expected profile=NAME"),
        ("hello = /opt/\x01hello", "a control character"),
        ("first = /opt/first", "first is listed twice"),
    ],
)
def test_a_bad_line_refuses_the_file_naming_file_line_and_reason(line: str, reason: str):
    with pytest.raises(ConfigError) as caught:
        parse_allowlist(f"first = /opt/first\n# comment\n{line}\n", "/etc/s.conf")
    assert str(caught.value).startswith("/etc/s.conf:3: ")
    assert reason in str(caught.value)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"):
        load_allowlist(str(tmp_path / "none"))
    (tmp_path / "binary").write_bytes(b"hello = /opt/\xff\n")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 13"):
        load_allowlist(str(tmp_path / "binary"))
    with pytest.raises(ConfigError, match="not a regular file"):
        load_allowlist(str(tmp_path))


@given(st.text())
def test_any_text_is_an_allowlist_or_a_named_refusal(text: str):
    try:
        allowed = parse_allowlist(text, "s.conf")
    except ConfigError as error:
        assert error.line > 0
    else:
        assert all(script.path.startswith("/") for script in allowed.scripts.values())


def test_script_dirs_are_checked_on_the_real_path(tmp_path: Path):
    inside, outside = tmp_path / "in", tmp_path / "in-not"
    for directory in (inside, outside):
        directory.mkdir()
        (directory / "tool").write_text("#!/bin/sh\n")
        (directory / "tool").chmod(0o755)
    (inside / "link").symlink_to(outside / "tool")
    (tmp_path / "back").symlink_to(inside / "tool")
    text = f"good = {inside}/tool\nlink = {inside}/link\ndots = {inside}/../in-not/tool\nback = {tmp_path}/back\n"
    allowed = parse_allowlist(text, "s.conf", (str(inside),))
    scripts = allowed.scripts
    assert allowed.resolve(scripts["good"]) == str(inside / "tool")
    assert allowed.resolve(scripts["back"]) == str(inside / "tool")
    for name in ("link", "dots"):
        with pytest.raises(StorageError, match="outside script_dirs"):
            allowed.resolve(scripts[name])
    assert [name for name in scripts if allowed.is_executable(scripts[name])] == ["good", "back"]


def test_without_script_dirs_the_path_is_run_as_written(tmp_path: Path):
    (tmp_path / "tool").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "tool")
    allowed = parse_allowlist(f"link = {tmp_path}/link\ngone = {tmp_path}/gone\n", "s.conf")
    assert allowed.resolve(allowed.scripts["link"]) == str(tmp_path / "link")
    assert allowed.resolve(allowed.scripts["gone"]) == str(tmp_path / "gone")
    assert not allowed.is_executable(allowed.scripts["link"])


@pytest.mark.parametrize(
    "name",
    ["sh", "bash", "dash", "env", "python3", "python3.11", "perl", "perl5.36", "sudo", "find", "busybox"],
)
def test_an_interpreter_is_recognised(name: str):
    assert is_interpreter(f"/usr/bin/{name}")


@pytest.mark.parametrize("name", ["uptime", "finder", "deploy.sh", "push", "sh-backup", "environment"])
def test_other_programs_are_no_interpreters(name: str):
    assert not is_interpreter(f"/opt/{name}")


def test_warnings_name_interpreters_also_behind_links_and_what_cannot_run(tmp_path: Path):
    (tmp_path / "innocent").symlink_to("/bin/sh")
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    names = {"a": "innocent", "b": "plain", "c": "gone", "d": "folder"}
    text = "".join(f"{name} = {tmp_path}/{file}\n" for name, file in names.items())
    warnings = "\n".join(parse_allowlist(text, "s.conf").warnings())
    assert "a: " in warnings
    assert "no allowlist" in warnings
    assert "c: " in warnings
    assert "does not exist" in warnings
    assert "d: " in warnings
    if os.geteuid() != 0:
        assert "b: " in warnings


def test_a_script_that_others_may_write_is_warned_about(tmp_path: Path):
    tmp_path.chmod(0o755)
    script = tmp_path / "tool"
    script.write_text("#!/bin/sh\n")
    allowed = parse_allowlist(f"tool = {script}\n", "s.conf")
    for mode, is_warned in ((0o755, False), (0o775, True), (0o757, True)):
        script.chmod(mode)
        assert bool(allowed.warnings()) == is_warned
    script.chmod(0o755)
    tmp_path.chmod(0o777)
    assert allowed.warnings() == (f"tool: {tmp_path} can be written by others than root",)

"""The structure holds: who imports whom, how large things are, who may fork, what is packaged."""

from __future__ import annotations

import ast
import configparser
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, environment

PACKAGES = [ROOT / "ctrl_exec", ROOT / "agent" / "ctrl_exec_agent"]
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
KERNEL = sorted(path.stem for path in (ROOT / "ctrl_exec" / "common").glob("*.py") if path.stem != "__init__")


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def imported(path: Path, *, late: bool = True) -> frozenset[str]:
    """Dotted names of the modules the file imports; without `late` only those at its top."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if late else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{each.name}" for each in node.names}
    return frozenset(found)


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_a_module_is_small_and_says_what_it_owns(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=short)
def test_a_package_file_imports_nothing(path: Path) -> None:
    assert not imported(path)


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_processes_are_made_in_the_modules_for_it(path: Path) -> None:
    allowed = {
        "ctrl_exec/common/http.py": {"os.fork"},
        "ctrl_exec/common/process.py": {"os.fork"},
        "ctrl_exec/services/fanout.py": {"multiprocessing"},
    }
    text = path.read_text()
    used = {"os.fork"} if re.search(r"\bos\.fork(pty)?\(", text) else set()
    used |= {
        name for name in imported(path) if name in ("subprocess", "multiprocessing", "threading", "asyncio")
    }
    assert used <= allowed.get(short(path), set())
    assert "shell=True" not in text
    assert "os.system(" not in text


@pytest.mark.parametrize("name", KERNEL)
def test_a_kernel_module_is_used_by_both_sides(name: str) -> None:
    """Directly, or by another kernel module that is."""
    users: dict[str, set[str]] = {each: set() for each in KERNEL}
    sides: dict[str, set[str]] = {each: set() for each in KERNEL}
    for path in MODULES:
        side = "agent" if "agent" in path.parts else "dispatcher"
        for dotted in imported(path):
            target = dotted.removeprefix("ctrl_exec.common.").partition(".")[0]
            if not dotted.startswith("ctrl_exec.common.") or target not in users:
                continue
            if path.parent.name == "common":
                users[target].add(path.stem)
            else:
                sides[target].add(side)
    reached, waiting = set(sides[name]), [name]
    seen = {name}
    while waiting:
        for user in users[waiting.pop()] - seen:
            seen.add(user)
            waiting.append(user)
            reached |= sides[user]
    assert reached == {"agent", "dispatcher"}


def test_the_agent_starts_on_the_standard_library_alone() -> None:
    code = (
        "import sys; sys.path[:0] = ['.', 'agent']; import ctrl_exec_agent.main, ctrl_exec_agent.server;"
        "print('\\n'.join(sorted(sys.modules)))"
    )
    made = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = {name.partition(".")[0] for name in made.stdout.split()}
    foreign = (
        loaded - set(sys.stdlib_module_names) - {"ctrl_exec", "ctrl_exec_agent", "__main__", "__mp_main__"}
    )
    assert not foreign
    ours = {name for name in made.stdout.split() if name.startswith("ctrl_exec.")}
    assert all(name == "ctrl_exec.common" or name.startswith("ctrl_exec.common.") for name in ours)
    assert not loaded & {
        "dataclasses",
        "inspect",
        "typing",
        "subprocess",
        "asyncio",
        "logging",
        "multiprocessing",
    }


def test_version_is_shown_without_loading_the_program() -> None:
    code = (
        "import sys; sys.argv = ['ctrl-exec', '--version']\nfrom ctrl_exec.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    )
    made = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert re.search(r"\d+\.\d+\.\d+", made.stdout)
    heavy = {"ssl", "argparse", "dataclasses", "cryptography", "OpenSSL", "croniter", "ctrl_exec.config"}
    assert not heavy & set(made.stderr.split())


def test_every_package_is_installed() -> None:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    listed = set(parsed["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(base).parts)
        for base in (ROOT, ROOT / "agent")
        for path in (base / ("ctrl_exec" if base == ROOT else "ctrl_exec_agent")).rglob("__init__.py")
    }
    assert listed == found


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_no_unfinished_word_is_left(path: Path) -> None:
    assert not re.search(
        r"\b(TODO|FIXME|XXX|NotImplementedError|not implemented yet|placeholder)\b", path.read_text()
    )


def test_every_exception_to_a_tool_has_a_code_and_a_reason() -> None:
    for path in MODULES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if "# noqa" in line:
                assert re.search(r"# noqa: [A-Z]+[0-9]+", line), f"{short(path)}:{number}"
            if "type: ignore" in line:
                assert re.search(r"type: ignore\[[a-z-]+\]", line), f"{short(path)}:{number}"

"""The commands in README.md and docs/ are run, or checked word by word where they need another host.

The convention: a fenced block tagged `sh` is run, all of a document in one shell, in order, against a
real fleet (hosts web-01, web-02 and db-01; `$URL` and `$TOKEN` are the API's). A block tagged `console`
needs root or a second host: its lines after `$ ` and `# ` are only checked for commands and options
that exist. Other tags (`text`, `json`, `conf`, `python`) are not commands.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ctrl_exec.cli.arguments import option_table, parse
from ctrl_exec.cli.command import GLOBAL_OPTIONS
from ctrl_exec.cli.main import MODULES, load_command, split_command
from ctrl_exec.common.errors import UsageError
from tests.support.addresses import free_port, own_ip
from tests.support.fleet import Fleet
from tests.support.processes import ROOT, command, environment, run

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TAGS = {"sh", "console", "text", "json", "conf", "python", "yaml", ""}
TOKEN = "token-of-the-docs"
HOOK = """\
#!/bin/sh
[ "$ENVEXEC_TOKEN" = token-of-the-docs ] && exit 0
[ -z "$ENVEXEC_TOKEN" ] && exit 1
exit 2
"""
SCRIPTS = {
    "hello": '#!/bin/sh\necho "hello $*"\n',
    "uptime": "#!/bin/sh\nuptime -p\n",
    "deploy": '#!/bin/sh\necho "deployed $*"\n',
    "pg-backup": '#!/bin/sh\necho "Backup complete"\n',
    "wait": '#!/bin/sh\nsleep "${1:-1}"\n',
    "fail": "#!/bin/sh\necho wrong >&2\nexit 3\n",
}


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands, its tag, its lines."""

    document: Path
    line: int
    tag: str
    text: str

    @property
    def where(self) -> str:
        """`docs/api.md:12`."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks_of(document: Path) -> list[Block]:
    """All fenced blocks of a document, in order."""
    found: list[Block] = []
    start, tag, lines = 0, "", []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("```"):
            if start:
                found.append(Block(document, start, tag, "\n".join(lines)))
                start = 0
            else:
                start, tag, lines = number, stripped.strip("`"), []
        elif start:
            lines.append(line)
    assert not start, f"{document}:{start}: the block is not closed"
    return found


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


def document_id(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three paired agents, the API with a hook that knows one token."""
    home = tmp_path_factory.mktemp("docs")
    hook = home / "auth-hook"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    made = Fleet(home, settings={"auth_hook": hook, "api_auth_default": "deny"})
    try:
        agents = [
            made.new_agent(name, f"[tags]\nrole = {name[:-3]}", SCRIPTS)
            for name in ("web-01", "web-02", "db-01")
        ]
        made.enrol(*agents)
        for agent in agents:
            made.cli("edit-agent", agent.name, "--tags", f"role={agent.name[:-3]},env=production")
            made.start_agent(agent)
        made.start_api()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with our programs under their names."""
    directory = tmp_path_factory.mktemp("bin")
    for name, program in (
        ("ctrl-exec", "ctrl-exec"), ("ced", "ctrl-exec"), ("ctrl-exec-api", "ctrl-exec-api"),
        ("ctrl-exec-scheduler", "ctrl-exec-scheduler"), ("ctrl-exec-agent", "ctrl-exec-agent"), ("cea", "ctrl-exec-agent"),
    ):  # fmt: skip
        path = directory / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join(command(program))} "$@"\n')
        path.chmod(0o755)
    return directory


def test_there_is_something_to_run() -> None:
    """The convention is used, and no block has a tag of its own making."""
    assert sum(block.tag == "sh" for block in BLOCKS) > 20
    assert [block.where for block in BLOCKS if block.tag not in TAGS] == []


@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if "sh" in {b.tag for b in blocks_of(each)}], ids=document_id
)
def test_the_commands_of_a_document_run(document: Path, fleet: Fleet, programs: Path, tmp_path: Path) -> None:
    """Every `sh` block in order in one shell that stops at the first failure."""
    script = "".join(
        f"printf '%s\\n' '@@ {block.where}' >&2\n{block.text}\n"
        for block in blocks_of(document)
        if block.tag == "sh"
    )
    shell = environment(
        {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CTRL_EXEC_CONFIG": str(fleet.conf),
            "ENVEXEC_TOKEN": TOKEN,
            "TOKEN": TOKEN,
            "URL": f"http://127.0.0.1:{fleet.api_port}",
            "USER": "alice",
            "HOME": str(tmp_path),
            "SOURCE": str(ROOT),
        }
    )
    # the example addresses of the docs, made unique: other tests run at the same time
    script = script.replace("127.0.10.1", own_ip()).replace("17444", str(free_port()))
    process = subprocess.Popen(
        [shutil.which("bash") or "bash", "-eu", "-o", "pipefail", "-c", script], env=shell, cwd=tmp_path, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    with process:
        try:
            stdout, stderr = process.communicate(timeout=150)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    at = [line for line in stderr.splitlines() if line.startswith("@@ ")]
    assert process.returncode == 0, f"failed in {at[-1:]}\n{stdout[-3000:]}\n{stderr[-3000:]}"


def commands_of(block: Block) -> Iterator[str]:
    """The command lines of a block, continued lines joined, here-documents left out."""
    text = block.text.replace("\\\n", " ")
    skip_to = ""
    for line in text.splitlines():
        if skip_to:
            skip_to = "" if line.strip() == skip_to else skip_to
            continue
        typed = line.strip()
        if block.tag == "console":
            if not typed.startswith(("$ ", "# ")):
                continue
            typed = typed[2:]
        here = re.search(r"<<-?\s*'?([A-Z]+)'?", typed)
        skip_to = here[1] if here else ""
        yield typed


def words_of(line: str) -> list[list[str]]:
    """The simple commands of a line: split at pipes, lists and substitutions; comments gone."""
    for mark in ("$(", "`"):
        line = line.replace(mark, " ; ")
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    try:
        for word in lexer:
            if re.fullmatch(r"[();|&]+", word):
                found.append([])
            else:
                found[-1].append(word)
    except ValueError:
        pass
    return [words for words in found if words]


def simple_commands(program: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Every use of one of the programs in any block, with where it stands."""
    found = []
    for block in BLOCKS:
        if block.tag in ("sh", "console"):
            for line in commands_of(block):
                for words in map(without_assignments, words_of(line)):
                    if words and words[0].rpartition("/")[2] in program:
                        found.append((block.where, words[1:]))
    return found


def without_assignments(words: list[str]) -> list[str]:
    """The words behind `NAME=value` ones."""
    first = next((at for at, word in enumerate(words) if not re.match(r"\w+=", word)), len(words))
    return words[first:]


def before_redirection(words: list[str]) -> list[str]:
    """The words up to the first redirection."""
    kept = []
    for word in words:
        if re.fullmatch(r"[<>]+", word):
            break
        kept.append(word)
    if len(kept) < len(words) and kept and kept[-1].isdigit():
        kept.pop()
    return kept


def test_every_ctrl_exec_in_the_docs_exists() -> None:
    """Command, words and options are accepted by the parser."""
    uses = simple_commands(("ctrl-exec", "ced"))
    assert len(uses) > 40
    wrong = []
    for where, words in uses:
        kept = before_redirection(words)
        try:
            name, rest = split_command(kept)
            chosen = load_command(name)
            parse(rest, chosen, option_table(GLOBAL_OPTIONS + chosen.options))
        except UsageError as error:
            if kept not in (["--version"], ["--help"]):
                wrong.append(f"{where}: ctrl-exec {shlex.join(kept)}: {error}")
    assert wrong == []


def test_every_command_is_in_the_docs() -> None:
    """A command that no document uses is not documented."""
    used = {word for _, words in simple_commands(("ctrl-exec", "ced")) for word in words}
    assert set(MODULES) - used - {"help", "deny"} == set()


def test_every_agent_command_in_the_docs_exists() -> None:
    """Commands and options are those of `ctrl-exec-agent --help`."""
    overview = run("ctrl-exec-agent", "--help").stdout
    helps: dict[str, str] = {}
    wrong = []
    for where, words in simple_commands(("ctrl-exec-agent", "cea")):
        kept = before_redirection(words)
        kept = kept[: kept.index("--")] if "--" in kept else kept
        name = next((word for word in kept if re.search(rf"^\s+{re.escape(word)}\b", overview, re.M)), "")
        if not name and kept not in (["--version"], ["--help"]):
            wrong.append(f"{where}: no such command: {kept}")
            continue
        if name and name not in helps:
            helps[name] = run("ctrl-exec-agent", name, "--help").stdout
        for option in (word.partition("=")[0] for word in kept if word.startswith("--")):
            if option not in overview + helps.get(name, ""):
                wrong.append(f"{where}: no such option of {name}: {option}")
    assert wrong == []


def test_every_link_between_documents_leads_somewhere() -> None:
    """Relative links name files that exist."""
    broken = []
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []


def test_every_setting_named_in_the_docs_exists() -> None:
    """`key = value` lines of conf blocks are read by the program they are for."""
    from ctrl_exec.common.value import fields
    from ctrl_exec.config import Config
    from ctrl_exec_agent.config import AgentConfig, Profile

    known = {each.name for cls in (Config, AgentConfig, Profile) for each in fields(cls)} | {"timeout"}
    wrong = []
    for block in BLOCKS:
        if block.tag == "conf":
            section = ""
            for line in block.text.splitlines():
                section = line if line.startswith("[") else section
                found = re.match(r"([a-z_]+) *=", line)
                is_script = " = /" in line and "=" in line and line.split(" = ")[0] not in known
                if found and found[1] not in known and section != "[tags]" and not is_script:
                    wrong.append(f"{block.where}: {line}")
    assert wrong == []

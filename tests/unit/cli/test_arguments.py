"""The parser of the command line: options anywhere before `--`, every mistake named."""

from __future__ import annotations

import pytest

from ctrl_exec.cli.arguments import Arguments, edits, nearest, option_table, parse
from ctrl_exec.cli.command import (
    GLOBAL_OPTIONS,
    PORT_OPTION,
    TARGET_OPTIONS,
    TIMEOUT_OPTION,
    Argument,
    Command,
    Option,
)
from ctrl_exec.common.errors import UsageError

RUN = Command(
    summary="run",
    execute=lambda _context, _arguments: 0,
    arguments=(Argument("HOST", "", 0, None), Argument("SCRIPT", "")),
    options=(
        *TARGET_OPTIONS,
        PORT_OPTION,
        TIMEOUT_OPTION,
        Option(("--mode",), "", "MODE", choices=("fast", "slow")),
    ),
    takes_rest=True,
)
SHELL = Command(
    summary="completion",
    execute=lambda _context, _arguments: 0,
    arguments=(Argument("SHELL", "", choices=("bash", "fish")),),
)
TABLE = option_table(GLOBAL_OPTIONS + RUN.options)


def parsed(line: str, command: Command = RUN) -> Arguments:
    return parse(line.split(), command, TABLE)


@pytest.mark.parametrize(
    "line",
    [
        "--json web deploy --port 7",
        "web --port 7 deploy --json",
        "web deploy --port=7 --json",
        "web --json --port=7 deploy",
    ],
)
def test_options_stand_anywhere(line: str) -> None:
    """Before, between and behind the words, with a blank or an equals sign."""
    found = parsed(line)
    assert found.words == ("web", "deploy")
    assert found.flag("json")
    assert found.port("port") == 7


def test_what_follows_the_dashes_is_left_alone() -> None:
    """Arguments of the script may look like options."""
    found = parsed("web deploy -- --json -x -- y")
    assert found.words == ("web", "deploy")
    assert found.rest == ("--json", "-x", "--", "y")
    assert not found.flag("json")


def test_a_command_without_passed_words_takes_them_as_its_own() -> None:
    """`--` then only ends the options."""
    assert parsed("-- bash", SHELL).words == ("bash",)


def test_repeated_options_keep_their_order_and_plain_ones_their_last() -> None:
    """`-t a=1 -tb=2` is two tags; a second --port replaces the first."""
    found = parsed("s -t a=1 -tb=2 --tag=c=3 --port 1 --port 2 -x n")
    assert found.many("tag") == ("a=1", "b=2", "c=3")
    assert found.many("exclude") == ("n",)
    assert found.port("port") == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("web deploy --prot 1", "unknown option --prot (did you mean --port?)"),
        ("web deploy --zzzzzzz", "unknown option --zzzzzzz"),
        ("web deploy -z", "unknown option -z"),
        ("web deploy --port", "--port needs a value: --port PORT"),
        ("web deploy --json=yes", "--json takes no value"),
        ("web deploy --mode fats", "--mode: expected fast or slow, not 'fats' (did you mean fast?)"),
        ("--json", "missing SCRIPT"),
    ],
)
def test_mistakes_are_named(line: str, words: str) -> None:
    """Which option, what was expected, what may have been meant."""
    with pytest.raises(UsageError) as caught:
        parsed(line)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "missing SHELL: bash, fish"),
        ("bash fish", "unexpected 'fish'"),
        ("bahs", "SHELL: expected bash or fish, not 'bahs' (did you mean bash?)"),
    ],
)
def test_places_are_counted_and_checked(line: str, words: str) -> None:
    """Too few, too many, or none of the choices."""
    with pytest.raises(UsageError) as caught:
        parsed(line, SHELL)
    assert str(caught.value) == words


def test_help_needs_no_words() -> None:
    """`ctrl-exec run --help` is no usage error."""
    assert parsed("--help").flag("help")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1.5", 1.5), ("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1w", 604800)],
)
def test_durations(text: str, expected: float) -> None:
    """Seconds, or a number with its unit."""
    assert parsed(f"s --timeout {text}").duration_s("timeout") == expected


@pytest.mark.parametrize(
    "text", ["", "-1", "1x", "h", "1.2.3", ".5", "1.", "1e9", "٣", "9" * 20, "nan", "inf"]
)
def test_bad_durations_are_refused(text: str) -> None:
    """Never a traceback, never a negative wait."""
    with pytest.raises(UsageError, match="--timeout: expected seconds"):
        parse(["s", f"--timeout={text}"], RUN, TABLE).duration_s("timeout")


@pytest.mark.parametrize("text", ["0", "65536", "x", "", "-1", "1.0", "٣", "9" * 50])
def test_bad_ports_are_refused(text: str) -> None:
    """1 to 65535 and nothing else."""
    with pytest.raises(UsageError, match="--port: expected a whole number from 1 to 65535"):
        parse(["s", f"--port={text}"], RUN, TABLE).port("port")


def test_options_that_were_not_given_are_absent() -> None:
    """No default hides in the parser."""
    found = parsed("s")
    assert (found.text("port"), found.port("port"), found.duration_s("timeout"), found.many("tag")) == (
        None,
        None,
        None,
        (),
    )


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [("ping", "pign", 1), ("run", "run", 0), ("", "abc", 3), ("deny", "deploy", 3), ("abc", "ca", 3)],
)
def test_edits_between_words(left: str, right: str, expected: int) -> None:
    """A swap of neighbours counts once."""
    assert edits(left, right) == expected


def test_a_word_far_from_everything_suggests_nothing() -> None:
    """A wrong guess is worse than none."""
    assert nearest("frobnicate", ["run", "ping"]) == ""
    assert nearest("lst-agents", ["list-agents", "list-locks"]) == "list-agents"

"""`ctrl-exec check-config` and `doctor`: is the configuration right, and does what it names work."""

from __future__ import annotations

from ctrl_exec.cli import errors
from ctrl_exec.cli.command import Command, Option
from ctrl_exec.cli.output import GREEN, RED, YELLOW, plural, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.cli.findings import Finding
    from ctrl_exec.config import Config

COLOURS = {"ok": GREEN, "warning": YELLOW, "problem": RED}


def execute_check_config(context: Context, _arguments: Arguments) -> int:
    """Read the configuration file and say whether it is right; nothing is started."""
    config = context.config
    path = context.config_path
    found = settings_of(config)
    document = {"ok": True, "path": path, "settings": found}
    context.output.answer(document, lambda: context.output.line(f"{path} is correct"))
    return errors.OK


def settings_of(config: Config) -> dict[str, object]:
    """Give every setting by its key, with the defaults that apply."""
    from ctrl_exec.common.value import fields

    return {each.name: plain(getattr(config, each.name)) for each in fields(config)}


def plain(setting: object) -> object:
    """Give a setting as JSON can hold it."""
    if isinstance(setting, tuple):
        return [part if isinstance(part, int) else str(part) for part in setting]
    return setting


def execute_doctor(context: Context, arguments: Arguments) -> int:
    """Look for the usual mistakes, print each with its remedy."""
    output = context.output
    found: list[Finding] = []
    for finding in examine_all(context, arguments.flag("local")):
        found.append(finding)
        if finding.level != "ok" or not output.is_quiet:
            show_finding(context, finding)
    problems = sum(finding.level == "problem" for finding in found)
    warnings = sum(finding.level == "warning" for finding in found)
    document = {
        "ok": not problems,
        "problems": problems,
        "warnings": warnings,
        "findings": as_documents(found),
    }
    if output.is_json:
        output.document(document)
    output.message(f"{plural(problems, 'problem')}, {plural(warnings, 'warning')}")
    return errors.FAILED if problems else errors.OK


def examine_all(context: Context, is_local: bool) -> Iterator[Finding]:
    """Run the checks of this machine, then those of the agents."""
    from ctrl_exec.cli import doctor
    from ctrl_exec.cli.findings import Finding
    from ctrl_exec.common.errors import ConfigError
    from ctrl_exec.common.settings import NO_SUCH_FILE

    yield from doctor.check_file(context.config_path)
    try:
        config = context.config
    except ConfigError as error:
        if error.detail == NO_SUCH_FILE:  # that was said just now
            return
        yield Finding(
            "problem", "configuration", str(error), "correct it; `ctrl-exec check-config` checks it again"
        )
        return
    yield from doctor.examine(config)
    if not is_local:
        from ctrl_exec.cli.doctor_agents import examine as examine_agents

        yield from examine_agents(context.dispatcher)


def show_finding(context: Context, finding: Finding) -> None:
    """Print one finding: level, what, detail; the remedy on the next line."""
    word = context.output.coloured(f"{finding.level:<7}", COLOURS[finding.level])
    context.output.line(f"{word}  {finding.check}: {printable(finding.detail)}")
    if finding.remedy:
        context.output.line(f"         -> {printable(finding.remedy)}")


def as_documents(found: Sequence[Finding]) -> list[dict[str, str]]:
    """Give findings as `{"level", "check", "detail", "remedy"}`."""
    return [
        {"level": each.level, "check": each.check, "detail": each.detail, "remedy": each.remedy}
        for each in found
    ]


COMMANDS = {
    "check-config": Command(
        summary="check the configuration file without starting anything",
        execute=execute_check_config,
        description="With --json it also gives every setting as it applies, defaults included.",
        examples=(
            "ctrl-exec check-config",
            "ctrl-exec check-config --config /srv/fleet/ctrl-exec.conf --json",
        ),
        stays_root=True,
        exit_codes=(0, 2),
    ),
    "doctor": Command(
        summary="look for the usual mistakes and say how to mend them",
        execute=execute_doctor,
        options=(Option(("--local",), "look at this machine only, contact no agent"),),
        description=(
            "Looks at permissions, certificates, the auth hook, ports, logs, and at every agent: its name, "
            "whether it answers, its certificate, its clock. It changes nothing. Run it as root to see all."
        ),
        examples=("ctrl-exec doctor", "ctrl-exec doctor --local --json"),
        stays_root=True,
    ),
}

"""Typed parameters: their definitions on the wire, and the values an execution starts with.

Owns which value is right for which type; nothing is coerced. Knows no task and no database.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager

from ctrl_exec.common.errors import InvalidFieldsError
from ctrl_exec.tasks.forms import Form, is_storable, is_whole, raise_faults
from ctrl_exec.tasks.models import PARAMETER_TYPES, Parameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)
NAME_EXPECTED = "expected A-Z, 0-9 and _, beginning with a letter, at most 64"
SECRET = "SECRET"  # noqa: S105 - a type of parameter
TEXT_LIMIT = 65536
MOST_PARAMETERS = 100
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_PATTERN_LIMIT = 500
_OPTION_LIMIT = 1000
_MATCH_LIMIT_S = 0.5
ALL_MATCHES_LIMIT_S = 1.0
"""Of all patterns that one request has searched; in seconds of the processor."""
_BOUNDS = {"INTEGER": ("min", "max"), "DATE": ("min", "max"), "TEXT": ("minLength", "maxLength")}


def decode_parameters(form: Form) -> tuple[Parameter, ...]:
    """The `parameters` of a task; faults are the form's."""
    with pattern_time():
        found = tuple(_decode(each) for each in form.items("parameters", (), most=MOST_PARAMETERS))
    names = [each.name for each in found]
    for place, name in enumerate(names):
        if name in names[:place]:
            form.refuse(f"parameters[{place}].name", f"{name} is there already")
    return found


def _decode(form: Form) -> Parameter:
    kind = form.choice("type", PARAMETER_TYPES)
    least, most = _bounds(form, kind)
    parameter = Parameter(
        name=form.matching("name", NAME, NAME_EXPECTED),
        type=kind,
        label=form.text("label", "", most=200),
        default=form.raw("defaultValue"),
        is_required=form.flag("required", False),
        options=_options(form) if kind == "SELECTOR" else (),
        least=least,
        most=most,
        pattern=_pattern(form) if kind == "TEXT" else None,
        allows_leading_dash=form.flag("allowLeadingDash", False),
    )
    form.close()
    if parameter.default is None:
        return parameter
    fault = "a SECRET has no default" if kind == SECRET else fault_of(parameter, parameter.default)
    if fault and not form.faults:
        form.refuse("defaultValue", fault)
    return parameter


def _options(form: Form) -> tuple[tuple[str, str], ...]:
    given = form.raw("options")
    pairs = [_option(each) for each in given] if isinstance(given, list) else []
    choices = [pair for pair in pairs if pair is not None]
    if not pairs or len(choices) < len(pairs) or len(pairs) > _OPTION_LIMIT:
        form.refuse("options", "expected a non-empty array of strings or of {value, label}")
    elif len({content for content, _ in choices}) < len(choices):
        form.refuse("options", "expected no value twice")
    return tuple(choices)


def _option(given: Any) -> tuple[str, str] | None:
    if is_storable(given):
        return given, given
    if isinstance(given, dict) and set(given) == {"value", "label"} and all(map(is_storable, given.values())):
        return given["value"], given["label"]
    return None


def _bounds(form: Form, kind: str) -> tuple[Any, Any]:
    """The bounds that the type has; those of another type stay unread, and so unknown keys."""
    if kind not in _BOUNDS:
        return None, None
    found = []
    for key in _BOUNDS[kind]:
        if kind == "DATE":
            given = form.raw(key)
            if given is not None and not is_date(given):
                form.refuse(key, "expected a date YYYY-MM-DD")
                given = None
        elif kind == "INTEGER":
            given = form.whole(key, -(2**53), 2**53, None)
        else:
            given = form.whole(key, 0, TEXT_LIMIT, None)
        found.append(given)
    least, most = found
    if least is not None and most is not None and least > most:
        form.refuse(_BOUNDS[kind][1], f"expected nothing below {_BOUNDS[kind][0]}")
    return least, most


def _pattern(form: Form) -> str | None:
    given: str | None = form.text("pattern", None, most=_PATTERN_LIMIT)
    if given is not None:
        try:
            re.compile(given)
        except (re.error, RecursionError, OverflowError) as error:
            form.refuse("pattern", f"expected a regular expression: {error}")
            return None
    return given


def encode_parameter(parameter: Parameter) -> dict[str, Any]:
    """The parameter on the wire; keys beside the first five only where they are used."""
    document: dict[str, Any] = {
        "name": parameter.name,
        "label": parameter.label,
        "type": parameter.type,
        "defaultValue": parameter.default,
        "required": parameter.is_required,
    }
    if parameter.options:
        document["options"] = [
            content if content == label else {"value": content, "label": label}
            for content, label in parameter.options
        ]
    for key, bound in zip(_BOUNDS.get(parameter.type, ()), (parameter.least, parameter.most), strict=False):
        if bound is not None:
            document[key] = bound
    if parameter.pattern is not None:
        document["pattern"] = parameter.pattern
    if parameter.allows_leading_dash:
        document["allowLeadingDash"] = True
    return document


def is_date(given: Any) -> bool:
    """Whether it is a day that exists, `YYYY-MM-DD`."""
    if not (isinstance(given, str) and _DATE.fullmatch(given)):
        return False
    from datetime import date

    try:
        date.fromisoformat(given)
    except ValueError:
        return False
    return True


def fault_of(parameter: Parameter, given: Any) -> str:
    """What was expected of a value of this parameter; empty if it is right."""
    return _FAULTS[parameter.type](parameter, given)


def _selector_fault(parameter: Parameter, given: Any) -> str:
    choices = [content for content, _ in parameter.options]
    if isinstance(given, str) and given in choices:
        return ""
    return "expected one of " + ", ".join(ascii(each)[1:-1] for each in choices[:20])


def _checkbox_fault(_parameter: Parameter, given: Any) -> str:
    return "" if isinstance(given, bool) else "expected true or false"


def _integer_fault(parameter: Parameter, given: Any) -> str:
    if is_whole(given) and abs(given) <= 2**53 and _is_within(parameter, given):
        return ""
    return "expected an integer" + _range_words(parameter)


def _date_fault(parameter: Parameter, given: Any) -> str:
    if is_date(given) and _is_within(parameter, given):
        return ""
    return "expected a date YYYY-MM-DD" + _range_words(parameter)


def _is_within(parameter: Parameter, given: Any) -> bool:
    least, most = parameter.least, parameter.most
    return (least is None or given >= least) and (most is None or given <= most)


def _range_words(parameter: Parameter) -> str:
    least = "" if parameter.least is None else f" from {parameter.least}"
    return least + ("" if parameter.most is None else f" to {parameter.most}")


def _text_fault(parameter: Parameter, given: Any) -> str:
    most = TEXT_LIMIT if parameter.most is None else int(parameter.most)
    least = int(parameter.least or 0)
    if not is_storable(given) or not least <= len(given) <= most:
        return f"expected a string of {least} to {most} characters"
    if parameter.pattern is None:
        return ""
    is_match = _matches(parameter.pattern, given)
    if is_match is None:
        return f"expected a match of {parameter.pattern}, which takes too long to say"
    return "" if is_match else f"expected a match of {parameter.pattern}"


_FAULTS = {
    "SELECTOR": _selector_fault,
    "CHECKBOX": _checkbox_fault,
    "INTEGER": _integer_fault,
    "DATE": _date_fault,
    "TEXT": _text_fault,
    SECRET: _text_fault,
}


class _TooLongError(Exception):
    """A pattern backtracks without end."""


class _PatternTime:
    """What is left for the patterns of a request."""

    left_s: float | None = None


_pattern_time = _PatternTime()


@contextmanager
def pattern_time() -> Iterator[None]:
    """All patterns that are searched within take a second together at most; the outermost one counts."""
    if _pattern_time.left_s is not None:
        yield
        return
    _pattern_time.left_s = ALL_MATCHES_LIMIT_S
    try:
        yield
    finally:
        _pattern_time.left_s = None


def _matches(pattern: str, text: str) -> bool | None:
    """Whether the pattern matches the whole text; None if that can't be said in the time there is."""
    limit_s = _MATCH_LIMIT_S
    if _pattern_time.left_s is not None:
        limit_s = min(limit_s, _pattern_time.left_s)
    if limit_s < 0.001:
        return None
    begun = time.process_time()
    try:
        return _is_match(pattern, text, limit_s)
    finally:
        if _pattern_time.left_s is not None:
            _pattern_time.left_s = max(0.0, _pattern_time.left_s - (time.process_time() - begun))


def _is_match(pattern: str, text: str, limit_s: float) -> bool | None:
    """As `_matches`, within so many seconds of the processor.

    Patterns are written by managers of a project: `(a+)+$` must not keep a process of ours busy for ever.
    The engine of `re` looks for signals while it searches.
    """
    import signal

    def give_up(_number: int, _frame: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGVTALRM, give_up)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
        return re.fullmatch(pattern, text) is not None
    except _TooLongError:
        return None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def override_faults(
    parameters: Iterable[Parameter], overrides: Mapping[str, Any], path: str = "parameterMap"
) -> Iterator[tuple[str, str]]:
    """(key, expected) of each override that names no parameter or has a wrong value."""
    known = {each.name: each for each in parameters}
    for name, given in overrides.items():
        if name not in known:
            yield f"{path}.{ascii(name)[1:-1][:80]}", "no parameter of this task"
        elif given is not None or known[name].is_required:
            fault = fault_of(known[name], given)
            if fault:
                yield f"{path}.{name}", fault


def complete(
    parameters: Iterable[Parameter], overrides: Mapping[str, Any], path: str = "parameterMap"
) -> dict[str, Any]:
    """What an execution starts with: the defaults, then the overrides; what has no value is absent.

    Raises: InvalidFieldsError naming each unknown name, wrong value and missing required one.
    """
    listed = tuple(parameters)
    with pattern_time():
        faults = dict(override_faults(listed, overrides, path))
    made: dict[str, Any] = {}
    for parameter in listed:
        spare = False if parameter.type == "CHECKBOX" and parameter.default is None else parameter.default
        content = overrides.get(parameter.name)
        content = spare if content is None else content
        if content is not None:
            made[parameter.name] = content
        elif parameter.is_required:
            faults.setdefault(f"{path}.{parameter.name}", "required")
    raise_faults(faults)
    return made


def secret_names(parameters: Iterable[Parameter]) -> frozenset[str]:
    """The names whose values are kept apart and masked."""
    return frozenset(each.name for each in parameters if each.type == SECRET)


def as_text(content: Any) -> str:
    """A value as commands and templates get it: `true`, `5`, `2026-01-25`."""
    if isinstance(content, bool):
        return "true" if content else "false"
    return str(content)


def check_overrides(parameters: Iterable[Parameter], overrides: Mapping[str, Any], path: str) -> None:
    """Overrides that are kept for later starts, of a schedule or a step. Raises: InvalidFieldsError."""
    listed = tuple(parameters)
    kept = secret_names(listed) & overrides.keys()
    if kept:
        name = sorted(kept)[0]
        raise InvalidFieldsError(
            f"{path}.{name}: a SECRET is not kept", {f"{path}.{name}": "a SECRET is not kept"}
        )
    with pattern_time():
        faults = dict(override_faults(listed, overrides, path))
    raise_faults(faults)

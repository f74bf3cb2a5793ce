"""`key = value` files: parsing, typed reading into a value class, and the example file from it.

A settings class is a `@value` class whose fields carry `kind=` (one of the kinds below) and `doc=`.
The file has whole-line `#` comments, `key = value` lines, and `[section]` blocks that the class
must name in `SECTIONS`. An unknown key, a second one, or a bad value is refused with file, line and
what was expected; a program that cannot read its configuration does not start (exit 78).
"""

from __future__ import annotations

from ctrl_exec.common.errors import ConfigError
from ctrl_exec.common.files import read_bounded
from ctrl_exec.common.patterns import Pattern
from ctrl_exec.common.value import MISSING, Field, fields, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeVar

    from ctrl_exec.common.names import Spelling

    T = TypeVar("T")

LIMIT_BYTES = 1 << 20
NO_SUCH_FILE = "no such file"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNITS_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


_SECTION = Pattern(r"\[\s*([A-Za-z][A-Za-z0-9_-]*)(?:\s+([A-Za-z0-9_.-]+))?\s*\]")
_DURATION = Pattern(r"([0-9]{1,9})\s*(s|m|h|d)?")
_SIZE = Pattern(r"([0-9]{1,15})\s*(?:([kKmMgG])(?:i?[bB])?)?")


@value
class Kind:
    """How a setting is read: what was expected, text → value, value → text."""

    expected: str
    read: Callable[[str], Any]
    show: Callable[[Any], str] = str


@value
class Entry:
    """One `key = value` line."""

    line: int
    key: str
    text: str


@value
class Section:
    """One `[name title]` block with its lines."""

    line: int
    name: str
    title: str
    entries: tuple[Entry, ...]


@value
class Document:
    """A parsed file: the lines before any section, then the sections."""

    path: str
    entries: tuple[Entry, ...]
    sections: tuple[Section, ...]


def parse(text: str, path: str) -> Document:
    """Split the text into entries and sections.

    Raises: ConfigError naming the line.
    """
    top: list[Entry] = []
    sections: list[tuple[int, str, str, list[Entry]]] = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if any(ord(char) < 32 and char != "\t" for char in line):
            raise ConfigError("a control character; expected printable text", path=path, line=number)
        if line.startswith("["):
            found = _SECTION.fullmatch(line)
            if not found:
                raise ConfigError(f"{line!r} is no section; expected [name]", path=path, line=number)
            sections.append((number, found[1], found[2] or "", []))
            continue
        key, equals, setting = line.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{line!r} is no setting; expected 'key = value'", path=path, line=number)
        (sections[-1][3] if sections else top).append(Entry(number, key.strip(), setting.strip()))
    made = tuple(Section(line, name, title, tuple(lines)) for line, name, title, lines in sections)
    return Document(path, tuple(top), made)


def read_document(path: str) -> Document:
    """Parse the file.

    Raises: ConfigError if it is missing, unreadable, not UTF-8, or has a bad line.
    """
    try:
        content = read_bounded(path, LIMIT_BYTES, follow=True)
        return parse(content.decode("utf-8"), path)
    except FileNotFoundError as error:
        raise ConfigError(NO_SUCH_FILE, path=path) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 at byte {error.start}", path=path) from error
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(str(error).removeprefix(f"{path}: "), path=path) from error


def build(cls: type[T], document: Document, *, given: Mapping[str, Any] | None = None) -> T:
    """The settings object from the document's entries, `given` values on top.

    Keys with dots (`tasks.max_running`) are fields with an underscore. Sections are the caller's.

    Raises: ConfigError for an unknown, repeated, or badly valued key.
    """
    known = {each.name: each for each in fields(cls) if each.kind is not None}
    found = read_entries(document.entries, known, document.path)
    try:
        return cls(**(found | dict(given or {})))
    except ConfigError as error:
        if error.path:
            raise
        raise ConfigError(error.detail, path=document.path, line=error.line) from error


def read_entries(entries: Iterable[Entry], known: Mapping[str, Field], path: str) -> dict[str, Any]:
    """The values of the entries by field name.

    Raises: ConfigError for an unknown, repeated, or badly valued key.
    """
    found: dict[str, Any] = {}
    for entry in entries:
        name = entry.key.replace(".", "_")
        if name not in known:  # which are identifiers: a key with anything else in it is none of them
            raise ConfigError(unknown_key(entry.key, known), path=path, line=entry.line)
        if name in found:
            raise ConfigError(f"{entry.key} is set twice", path=path, line=entry.line)
        kind: Kind = known[name].kind
        try:
            found[name] = kind.read(entry.text)
        except (ValueError, TypeError) as error:
            wrong = f"{entry.key} = {entry.text!r}: expected {kind.expected}"
            raise ConfigError(wrong, path=path, line=entry.line) from error
    return found


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to say about a key nobody knows, with the nearest known one."""
    import difflib

    near = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def line_of(document: Document, key: str) -> int:
    """The line that sets the key, 0 if none does; for contradictions found later."""
    return next((entry.line for entry in document.entries if entry.key.replace(".", "_") == key), 0)


_FAMILIES = ("tasks_",)


def key_of(each: Field) -> str:
    """The key of a field as it stands in a file: `tasks.max_running` of `tasks_max_running`."""
    for family in _FAMILIES:
        if each.name.startswith(family):
            return family.replace("_", ".") + each.name.removeprefix(family)
    return each.name


def render_example(cls: type, header: str) -> str:
    """The example file: every key with its meaning, what is expected, and its default, commented out."""
    blocks = ["\n".join(f"# {line}".rstrip() for line in header.strip().split("\n"))]
    for each in fields(cls):
        if each.kind is None:
            continue
        default = each.initial()
        shown = "" if default is None or default is MISSING else each.kind.show(default)
        setting = f"#{key_of(each)} = {shown}".rstrip()
        blocks.append(f"# {each.doc}\n# Expected: {each.kind.expected}.\n{setting}")
    return "\n\n".join(blocks) + "\n"


# Kinds. Each is a constant or makes one.


def _read_text(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


def _read_flag(text: str) -> bool:
    found = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False}
    return found[text.lower()] if text.lower() in found else _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _read_path(text: str) -> str:
    return text if text.startswith("/") and "\0" not in text else _refuse(text)


def _read_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _read_path_list(text: str) -> tuple[str, ...]:
    return tuple(_read_path(part.strip()) for part in text.split(":") if part.strip())


def _read_duration(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return int(text)
    found = _DURATION.fullmatch(text)
    return int(found[1]) * _UNITS_S[found[2] or "s"] if found else _refuse(text)


def _read_size(text: str) -> int:
    found = _SIZE.fullmatch(text)
    return int(found[1]) * _UNITS_BYTES[(found[2] or "").lower()] if found else _refuse(text)


def _read_networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    import ipaddress

    return tuple(ipaddress.ip_network(part, strict=False) for part in _read_list(text))


_OCTETS = frozenset(map(str, range(256)))


def _read_addresses(text: str) -> tuple[str, ...]:
    return tuple(_read_address(part) for part in _read_list(text)) or _refuse(text)


def _read_address(text: str) -> str:
    # nearly all files; `ipaddress` costs a command 2 ms and a daemon 350 kB
    parts = text.split(".")
    if len(parts) == 4 and all(part in _OCTETS for part in parts):
        return text
    import ipaddress

    return str(ipaddress.ip_address(text))


def _show_list(parts: Iterable[Any]) -> str:
    return ", ".join(str(part) for part in parts)


TEXT = Kind("a text", _read_text)
FLAG = Kind("yes or no", _read_flag, lambda on: "yes" if on else "no")
PATH = Kind("an absolute path", _read_path)
PATHS = Kind("absolute paths separated by ':'", _read_path_list, ":".join)
TEXTS = Kind("a list separated by commas", _read_list, _show_list)
ADDRESSES = Kind("IPv4 or IPv6 addresses separated by commas", _read_addresses, _show_list)
NETWORKS = Kind("addresses or networks (CIDR) separated by commas", _read_networks, _show_list)


def _ranged(read: Callable[[str], int], least: int, most: int) -> Callable[[str], int]:
    def checked(text: str) -> int:
        number = read(text)
        return number if least <= number <= most else _refuse(text)

    return checked


def _read_integer(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else _refuse(text)


def integer(least: int, most: int) -> Kind:
    """A whole number within the range, both ends included."""
    return Kind(f"a whole number from {least} to {most}", _ranged(_read_integer, least, most))


def seconds(least: int, most: int) -> Kind:
    """A duration in seconds; `90`, `5m`, `24h` and `30d` are read alike."""
    words = f"seconds from {least} to {most} (or with a unit: 90s, 5m, 24h, 30d)"
    return Kind(words, _ranged(_read_duration, least, most))


def size(least: int, most: int) -> Kind:
    """A number of bytes; `10M` and `256 MiB` are read alike."""
    return Kind(
        f"bytes from {least} to {most} (or with a unit: 64K, 10M, 1G)", _ranged(_read_size, least, most)
    )


def choice(*words: str) -> Kind:
    """One of the words."""
    return Kind("one of " + ", ".join(words), lambda text: text if text in words else _refuse(text))


def matching(pattern: str, expected: str) -> Kind:
    """A text that matches the pattern whole."""
    lazy = Pattern(pattern)
    return Kind(expected, lambda text: text if lazy.fullmatch(text) else _refuse(text))


def spelled(spelling: Spelling, expected: str, *, may_be_empty: bool = False) -> Kind:
    """A text with the spelling, or nothing where that is allowed."""

    def read(text: str) -> str:
        return text if (may_be_empty and not text) or spelling.fullmatch(text) else _refuse(text)

    return Kind(expected, read)

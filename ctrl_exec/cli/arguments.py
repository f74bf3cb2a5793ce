"""The words of a command line, checked against what the command takes.

Options may stand anywhere before `--`; `--name value` and `--name=value` mean the same. Must not
know any command, and imports nothing slow: this is a third of the start of `ctrl-exec`.
"""

from __future__ import annotations

from ctrl_exec.common.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ctrl_exec.cli.command import Action, Argument, Command, Option

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


class Arguments:
    """The parsed words: options by their long name, the words in order, the rest after `--`."""

    __slots__ = ("_values", "rest", "words")

    def __init__(
        self, values: Mapping[str, tuple[str, ...]], words: tuple[str, ...] = (), rest: tuple[str, ...] = ()
    ) -> None:
        self._values = values
        self.words = words
        self.rest = rest

    def flag(self, name: str) -> bool:
        """Say whether the flag was given."""
        return name in self._values

    def text(self, name: str) -> str | None:
        """Give the value of an option, the last one if it was repeated."""
        given = self._values.get(name)
        return given[-1] if given else None

    def many(self, name: str) -> tuple[str, ...]:
        """Give every value of a repeated option, in the order of the command line."""
        return self._values.get(name, ())

    def integer(self, name: str, minimum: int = 0, maximum: int = 1 << 31) -> int | None:
        """Give an option's value as a whole number.

        Raises:
            UsageError: it is none, or outside the range.
        """
        given = self.text(name)
        if given is None:
            return None
        if not (given.isascii() and given.isdigit() and minimum <= int(given[:12]) <= maximum):
            raise UsageError(f"--{name}: expected a whole number from {minimum} to {maximum}, not {given!r}")
        return int(given)

    def port(self, name: str) -> int | None:
        """Give an option's value as a TCP port, 1 to 65535."""
        return self.integer(name, 1, 65535)

    def duration_s(self, name: str) -> float | None:
        """Give an option's value in seconds: `90`, `1.5`, `30s`, `10m`, `1h`, `7d`, `2w`.

        Raises:
            UsageError: it is none of these, or negative.
        """
        given = self.text(name)
        if given is None:
            return None
        unit = given[-1:].lower()
        digits, factor = (given[:-1], _UNITS_S[unit]) if unit in _UNITS_S else (given, 1.0)
        whole, _, part = digits.partition(".")
        if not (
            digits.isascii()
            and whole.isdigit()
            and (part.isdigit() or "." not in digits)
            and len(digits) < 16
        ):
            raise UsageError(f"--{name}: expected seconds or a number with s, m, h, d or w, not {given!r}")
        return float(digits) * factor


def option_table(options: Iterable[Option]) -> dict[str, Option]:
    """Index options by every one of their spellings."""
    return {name: option for option in options for name in option.names}


def parse(words: Sequence[str], command: Command, table: Mapping[str, Option]) -> Arguments:
    """Check the words of one command and sort them.

    Raises:
        UsageError: an option is unknown or lacks its value, a word is missing or too many.
    """
    values: dict[str, tuple[str, ...]] = {}
    positionals: list[str] = []
    position = 0
    rest: tuple[str, ...] = ()
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            rest = tuple(words[position:])
            break
        if word == "-" or not word.startswith("-"):
            positionals.append(word)
            continue
        option, given, used = read_option(word, words[position : position + 1], table)
        position += used
        before = values.get(option.key, ())
        values[option.key] = (*before, given) if option.is_repeated else (given,)
    if rest and not command.takes_rest:
        positionals += rest
        rest = ()
    # A command that only prints its help needs no words.
    if "help" not in values:
        check_count(positionals, command.arguments)
        check_action(positionals, command.actions)
    return Arguments(values, tuple(positionals), rest)


def read_option(word: str, following: Sequence[str], table: Mapping[str, Option]) -> tuple[Option, str, int]:
    """Give the option a word names, its value, and how many of the following words it used.

    Raises:
        UsageError: there is no such option, its value is missing or not one of the choices.
    """
    name, equals, attached = word.partition("=")
    option = table.get(name)
    if option is None and len(word) > 2 and word[1] != "-" and word[:2] in table:
        # `-tenv=prod`: the value stands right behind the letter
        option, name, equals, attached = table[word[:2]], word[:2], "=", word[2:]
    if option is None:
        raise UsageError(f"unknown option {name}" + suggestion(name, table))
    if not option.metavar:
        if equals:
            raise UsageError(f"{name} takes no value")
        return option, "", 0
    if not equals and not following:
        raise UsageError(f"{name} needs a value: {name} {option.metavar}")
    given, used = (attached, 0) if equals else (following[0], 1)
    if option.choices and given not in option.choices:
        raise UsageError(
            f"{name}: expected {one_of(option.choices)}, not {given!r}" + suggestion(given, option.choices)
        )
    return option, given, used


def check_count(words: Sequence[str], arguments: Sequence[Argument]) -> None:
    """Check that the words can fill the places of the command.

    Raises:
        UsageError: one is missing, too many, or not one of a place's choices.
    """
    minimum = sum(argument.minimum for argument in arguments)
    if len(words) < minimum:
        missing = [shown_missing(argument) for argument in arguments if argument.minimum][len(words) :]
        raise UsageError(f"missing {' and '.join(missing or ['more words'])}")
    maximum: int | None = 0
    for argument in arguments:
        maximum = None if maximum is None or argument.maximum is None else maximum + argument.maximum
    if maximum is not None and len(words) > maximum:
        raise UsageError(f"unexpected {words[maximum]!r}")
    for word, argument in zip(words, arguments, strict=False):
        if argument.choices and word not in argument.choices:
            expected = one_of(argument.choices)
            raise UsageError(
                f"{argument.name}: expected {expected}, not {word!r}" + suggestion(word, argument.choices)
            )


def shown_missing(argument: Argument) -> str:
    """Give the name of a place that nothing fills, with what may fill it."""
    return argument.name + (f": {', '.join(argument.choices)}" if argument.choices else "")


def check_action(words: Sequence[str], actions: Sequence[Action]) -> None:
    """Check that the words after an action are as many as it takes.

    Raises:
        UsageError: too few or too many.
    """
    action = next((each for each in actions if words and each.name == words[0]), None)
    if action is None:
        return
    places = action.shape.split()
    least = sum(not each.startswith("[") for each in places)
    is_open = bool(places) and "..." in places[-1]
    if len(words) - 1 < least or (len(words) - 1 > len(places) and not is_open):
        given = f", not {' '.join(words)}" if len(words) - 1 > len(places) else ""
        raise UsageError(f"expected {' '.join((action.name, *places))}{given}")


def one_of(words: Sequence[str]) -> str:
    """Give `a`, `a or b`, `a, b or c`."""
    return " or ".join(each for each in (", ".join(words[:-1]), *words[-1:]) if each)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Give ` (did you mean …?)` for the nearest known word, or nothing when none is near."""
    near = nearest(word, known)
    return f" (did you mean {near}?)" if near else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """Give the known word with the least edits from `word`, at most a third of its length, or ``""``."""
    best, best_distance = "", len(word) // 3 + 1
    for candidate in known:
        if abs(len(candidate) - len(word)) < best_distance:
            distance = edits(word, candidate)
            if distance < best_distance:
                best, best_distance = candidate, distance
    return best


def edits(left: str, right: str) -> int:
    """Count the single-letter changes between two words, a swap of neighbours counted once.

    Source: the optimal string alignment distance. `difflib` would do and costs 6 ms to import.
    """
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        above, row = row, [i] + [0] * len(right)
        for j, b in enumerate(right, 1):
            row[j] = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                row[j] = min(row[j], before[j - 2] + 1)
        before = above
    return row[-1]

"""Immutable values: what a frozen dataclass is, without the price of importing `dataclasses`.

`dataclasses` imports `inspect`, which costs every process of ours about 5 ms and 1.5 MB; an agent
that forks a child per request and a command line that must feel instant cannot pay that
(docs/adr/003-values-without-dataclasses.md). Type checkers see `@value` classes as frozen
dataclasses through PEP 681.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_):
        """Stand in for the typing decorator, which only type checkers read."""
        return lambda decorated: decorated


class Missing:
    """The type of the mark for "no default was given"."""

    def __repr__(self) -> str:
        return "<missing>"


MISSING = Missing()


class Field:
    """One field of a value class: its name, annotation text, default, and what it means."""

    __slots__ = ("annotation", "default", "default_factory", "doc", "kind", "name")

    def __init__(self, default: Any, default_factory: Any, doc: str, kind: Any) -> None:
        self.name = ""
        self.annotation = ""
        self.default = default
        self.default_factory = default_factory
        self.doc = doc
        self.kind = kind

    @property
    def is_required(self) -> bool:
        """Whether the constructor insists on this field."""
        return self.default is MISSING and self.default_factory is None

    def initial(self) -> Any:
        """The default as a fresh object."""
        return self.default_factory() if self.default_factory is not None else self.default


class _Unset:
    """Where a constructor finds no constant default: a factory for one, or None where one must be given."""

    __slots__ = ("factory",)

    def __init__(self, factory: Callable[[], Any] | None) -> None:
        self.factory = factory


def field(
    *,
    default: Any = MISSING,
    default_factory: Callable[[], Any] | None = None,
    doc: str = "",
    kind: Any = None,
) -> Any:
    """A field with a default made by a factory, a one-line meaning, or a settings kind."""
    return Field(default, default_factory, doc, kind)


def _init(self: Any, *positional: Any, **named: Any) -> None:
    cls = self.__class__
    names: tuple[str, ...] = cls.__value_names__
    # not by __setattr__, and no look at the fields: in a forked child each object looked at is memory
    content: dict[str, Any] = self.__dict__
    if named or len(positional) != len(names):
        content.update(cls.__value_constants__)
        content.update(zip(names, positional, strict=False))
        content.update(named)
        if len(content) != len(names) or not _is_each_once(cls, positional, named):
            content.clear()
            content.update(zip(names, positional, strict=False))
            _init_rest(cls, content, positional, named)
    else:
        content.update(zip(names, positional, strict=True))
    if cls.__value_is_checked__:
        self.__post_init__()


def _is_each_once(cls: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether what was given by name are fields, and none of those that were given by position."""
    names: tuple[str, ...] = cls.__value_names__
    if len(positional) > len(names) or not cls.__value_known__.issuperset(named):
        return False
    return not positional or named.keys().isdisjoint(names[: len(positional)])


def _init_rest(cls: Any, content: dict[str, Any], positional: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Fill in what was not given by position, and see that all is given once."""
    known: tuple[Field, ...] = cls.__value_fields__
    owner = cls.__name__
    if len(positional) > len(known):
        raise TypeError(f"{owner} takes {len(known)} values, got {len(positional)}")
    taken = 0
    for name, default in cls.__value_defaults__[len(positional) :]:
        if name in named:
            content[name] = named[name]
            taken += 1
        elif default.__class__ is not _Unset:
            content[name] = default
        elif default.factory is not None:
            content[name] = default.factory()
        else:
            raise TypeError(f"{owner} needs {name}")
    if taken != len(named):
        left = sorted(set(named) - set(cls.__value_names__[len(positional) :]))
        raise TypeError(f"{owner} has no field (or it was given twice): {', '.join(left)}")


def _refuse_set(self: Any, name: str, _given: Any) -> None:
    raise AttributeError(f"{type(self).__name__}.{name} cannot be changed: values are immutable")


def _refuse_delete(self: Any, name: str) -> None:
    raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted: values are immutable")


def _key(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, each.name) for each in type(self).__value_fields__)


def _equal(self: Any, other: object) -> bool:
    return type(self) is type(other) and _key(self) == _key(other)


def _hash(self: Any) -> int:
    return hash((type(self), _key(self)))


def _repr(self: Any) -> str:
    shown = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in type(self).__value_fields__)
    return f"{type(self).__name__}({shown})"


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """Make the class immutable, compared by content, constructed by position or name.

    A `__post_init__` is called at the end of construction, to check, never to fill in. A field
    whose default is mutable must use `field(default_factory=…)`.
    """
    found: dict[str, Field] = {}
    for parent in reversed(cls.__mro__[1:]):
        found |= {inherited.name: inherited for inherited in parent.__dict__.get("__value_fields__", ())}
    # inspect.get_annotations would import inspect, the very price this module saves
    annotations = cls.__dict__.get("__annotations__", {})  # noqa: RUF063
    found |= {name: _declared(cls, name, str(text)) for name, text in annotations.items()}
    made: Any = cls
    made.__value_fields__ = tuple(found.values())
    made.__value_names__ = tuple(found)
    made.__value_known__ = frozenset(found)
    made.__value_defaults__ = defaults = tuple((each.name, _default(each)) for each in found.values())
    made.__value_constants__ = {
        name: default for name, default in defaults if default.__class__ is not _Unset
    }
    made.__value_is_checked__ = hasattr(made, "__post_init__")
    made.__init__ = _init
    made.__setattr__ = _refuse_set
    made.__delattr__ = _refuse_delete
    for name, method in (("__eq__", _equal), ("__hash__", _hash), ("__repr__", _repr)):
        if cls.__dict__.get(name) is None:
            setattr(made, name, method)
    return cls


def _default(each: Field) -> Any:
    if each.default is MISSING or each.default_factory is not None:
        return _Unset(each.default_factory)
    return each.default


def _declared(cls: type, name: str, annotation: str) -> Field:
    given = cls.__dict__.get(name, MISSING)
    each = given if isinstance(given, Field) else Field(given, None, "", None)
    if isinstance(each.default, (list, dict, set)):
        raise TypeError(f"{cls.__name__}.{name}: a mutable default needs default_factory")
    each.name, each.annotation = name, annotation
    if isinstance(given, Field):
        delattr(cls, name)
    return each


def fields(cls: Any) -> tuple[Field, ...]:
    """The fields of a value class or object, in order of their writing."""
    made: Any = cls if isinstance(cls, type) else type(cls)
    found: tuple[Field, ...] = made.__value_fields__
    return found


def replace(original: T, /, **changes: Any) -> T:
    """A copy of the value with some fields changed; checked like any new one."""
    cls: Any = original.__class__
    made = cls.__new__(cls)
    content: dict[str, Any] = made.__dict__
    content.update(original.__dict__)
    content.update(changes)
    if len(content) != len(cls.__value_names__):
        raise TypeError(
            f"{cls.__name__} has no field: {', '.join(sorted(changes.keys() - cls.__value_known__))}"
        )
    if cls.__value_is_checked__:
        made.__post_init__()
    copy: T = made
    return copy


def as_dict(original: Any) -> dict[str, Any]:
    """The fields of a value by name, one level deep."""
    return {each.name: getattr(original, each.name) for each in fields(original)}

"""Values: immutable, compared by content, built by position or name."""

from __future__ import annotations

import pytest

from ctrl_exec.common.value import as_dict, field, fields, replace, value


@value
class Point:
    x: int
    y: int = 2
    tags: list[str] = field(default_factory=list, doc="words")


@value
class Named(Point):
    name: str = ""


def test_a_value_is_built_by_position_and_name() -> None:
    assert Point(1) == Point(x=1, y=2, tags=[])
    assert as_dict(Point(1, tags=["a"])) == {"x": 1, "y": 2, "tags": ["a"]}


def test_fields_of_a_parent_come_first() -> None:
    assert [each.name for each in fields(Named)] == ["x", "y", "tags", "name"]
    assert Named(1, 2, [], "n").name == "n"


def test_a_default_made_by_a_factory_is_fresh_each_time() -> None:
    Point(1).tags.append("a")
    assert Point(1).tags == []


@pytest.mark.parametrize(
    ("positional", "named"), [((), {}), ((1, 2, [], 4), {}), ((1,), {"x": 1}), ((1,), {"z": 3})]
)
def test_a_wrong_call_is_a_type_error(positional: tuple[object, ...], named: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="Point"):
        Point(*positional, **named)  # type: ignore[arg-type]


@value
class Size:
    width: int
    height: int
    unit: str = "mm"


@pytest.mark.parametrize(
    ("positional", "named"),
    [
        ((), {}),
        ((1,), {}),
        ((1, 2, "m", 4), {}),
        ((1, 2, "m", 4), {"unit": "m"}),
        ((1,), {"width": 1}),
        ((1, 2), {"width": 1}),
        ((1,), {"depth": 3}),
        ((1, 2), {"depth": 3}),
        ((), {"width": 1, "depth": 3}),
    ],
)
def test_a_wrong_call_is_one_without_factories_too(
    positional: tuple[object, ...], named: dict[str, object]
) -> None:
    with pytest.raises(TypeError, match="Size"):
        Size(*positional, **named)  # type: ignore[arg-type]


def test_a_copy_is_changed_only_in_its_fields() -> None:
    assert replace(Size(1, height=2), unit="m", width=3) == Size(3, 2, "m")
    with pytest.raises(TypeError, match="Size has no field: depth"):
        replace(Size(1, 2), depth=3)


def test_a_value_cannot_be_changed() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match="immutable"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del point.x
    assert replace(point, x=5) == Point(5)
    assert point.x == 1


def test_values_of_two_classes_differ() -> None:
    assert Point(1) != Named(1)
    assert Point(1) != 1


def test_a_hashable_value_is_a_key() -> None:
    @value
    class Key:
        a: int
        b: str = "b"

    assert {Key(1): "found"}[Key(1)] == "found"


def test_a_mutable_default_is_refused() -> None:
    with pytest.raises(TypeError, match="default_factory"):

        @value
        class _Wrong:
            a: list[int] = []  # noqa: RUF012


def test_post_init_checks() -> None:
    @value
    class Positive:
        n: int

        def __post_init__(self) -> None:
            if self.n < 1:
                raise ValueError("n")

    with pytest.raises(ValueError, match="n"):
        Positive(0)


def test_repr_shows_the_fields() -> None:
    assert repr(Point(1)) == "Point(x=1, y=2, tags=[])"

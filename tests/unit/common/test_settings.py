"""Settings files: every mistake is named with file, line and what was expected."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common import settings
from ctrl_exec.common.errors import ConfigError
from ctrl_exec.common.value import field, value


@value
class Sample:
    """All kinds."""

    port: int = field(default=7443, kind=settings.integer(0, 65535), doc="The port.")
    wait: int = field(default=60, kind=settings.seconds(1, 86400), doc="The wait.")
    room: int = field(default=10 << 20, kind=settings.size(1024, 1 << 40), doc="The room.")
    open: bool = field(default=False, kind=settings.FLAG, doc="Whether open.")
    home: str = field(default="/srv", kind=settings.PATH, doc="The home.")
    name: str | None = field(default=None, kind=settings.TEXT, doc="The name.")
    words: tuple[str, ...] = field(default=(), kind=settings.TEXTS, doc="Words.")
    dirs: tuple[str, ...] = field(default=(), kind=settings.PATHS, doc="Directories.")
    bind: tuple[str, ...] = field(default=("::1",), kind=settings.ADDRESSES, doc="Addresses.")
    nets: tuple[object, ...] = field(default=(), kind=settings.NETWORKS, doc="Networks.")
    mode: str = field(default="a", kind=settings.choice("a", "b"), doc="Mode.")
    slug: str = field(default="x", kind=settings.matching("[a-z]+", "lower-case letters"), doc="Slug.")
    tasks_limit: int = field(default=1, kind=settings.integer(1, 9), doc="With a dot.")
    hidden: str = "not a setting"


def read(text: str) -> Sample:
    return settings.build(Sample, settings.parse(text, "x.conf"))


def test_every_kind_is_read() -> None:
    found = read(
        """# a comment
        port = 1
        wait = 5m
        room = 64 KiB
        open = Yes
        home = /a
        name = a = b
        words = a, b ,,c
        dirs = /a:/b
        bind = 127.0.0.1, ::
        nets = 10.1.2.3/8, ::1
        mode = b
        slug = abc
        tasks.limit = 4
        """
    )
    assert found == Sample(
        1, 300, 65536, True, "/a", "a = b", ("a", "b", "c"), ("/a", "/b"), ("127.0.0.1", "::"),
        (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1/128")), "b", "abc", 4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("prot = 1", "unknown key 'prot'; did you mean 'port'?"), ("hidden = 1", "unknown key 'hidden'"),
        ("port = 65536", "a whole number from 0 to 65535"), ("port = -1", "whole number"), ("port = ٣", "whole number"),
        ("port =", "whole number"), ("wait = 5 weeks", "seconds from 1 to 86400"), ("wait = 2d", "seconds from"),
        ("room = 1", "bytes from 1024"), ("open = perhaps", "yes or no"), ("home = relative", "an absolute path"),
        ("name =", "a text"), ("dirs = /a:b", "absolute paths"), ("bind = localhost", "IPv4 or IPv6 addresses"),
        ("bind =", "IPv4 or IPv6"), ("nets = 1.2.3.4/33", "networks"), ("mode = c", "one of a, b"),
        ("slug = A", "lower-case letters"), ("just words", "expected 'key = value'"), ("= 1", "expected 'key = value'"),
        ("[bad section", "expected [name]"), ("port = 1\x07", "control character"), ("Port = 1", "unknown key 'Port'"),
    ],
)  # fmt: skip
def test_a_mistake_names_file_line_and_expectation(line: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f"# first\n{line}\n")
    assert str(caught.value).startswith("x.conf:2: ")
    assert says in str(caught.value)


def test_a_key_set_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"x.conf:2: port is set twice"):
        read("port = 1\nport = 1")


def test_sections_keep_their_lines() -> None:
    document = settings.parse("port = 1\n[tags]\nenv = production\n[profile db]\nrun_as = x\n", "x.conf")
    assert [(each.name, each.title, each.line) for each in document.sections] == [
        ("tags", "", 2),
        ("profile", "db", 4),
    ]
    assert document.sections[0].entries == (settings.Entry(3, "env", "production"),)
    assert settings.line_of(document, "port") == 1
    assert settings.line_of(document, "wait") == 0


def test_given_values_win_and_contradictions_get_the_file() -> None:
    assert settings.build(Sample, settings.parse("port = 1", "x.conf"), given={"port": 2}).port == 2

    @value
    class Strict:
        port: int = field(default=1, kind=settings.integer(1, 9), doc="")

        def __post_init__(self) -> None:
            if self.port == 3:
                raise ConfigError("port 3 is taken")

    with pytest.raises(ConfigError, match=r"x.conf: port 3 is taken"):
        settings.build(Strict, settings.parse("port = 3", "x.conf"))


def test_the_example_shows_every_key_and_reads_back_as_the_defaults() -> None:
    text = settings.render_example(Sample, "The example.")
    assert text.startswith("# The example.\n")
    for name in ("port", "wait", "tasks.limit"):
        assert f"\n#{name} = " in text
    uncommented = "\n".join(
        line[1:]
        for line in text.splitlines()
        if line.startswith("#") and line[1:2].isalpha() and not line.endswith("=")
    )
    assert read(uncommented) == Sample()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        settings.read_document(str(tmp_path / "none"))
    (tmp_path / "latin").write_bytes(b"# \xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 2"):
        settings.read_document(str(tmp_path / "latin"))
    (tmp_path / "big").write_bytes(b"#" * (settings.LIMIT_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        settings.read_document(str(tmp_path / "big"))
    (tmp_path / "good").write_text("port = 3\n")
    assert settings.build(Sample, settings.read_document(str(tmp_path / "good"))).port == 3


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    try:
        read(text)
    except ConfigError as error:
        assert error.path == "x.conf"
        assert error.line >= 1

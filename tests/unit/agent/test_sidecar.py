"""Schema sidecars: their version, and what is no sidecar."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from ctrl_exec.common.errors import StorageError
from ctrl_exec_agent.sidecar import load_sidecar


def test_no_file_is_no_sidecar(tmp_path: Path):
    assert load_sidecar(str(tmp_path / "tool")) is None


def test_its_own_version_counts_where_it_is_a_plain_word(tmp_path: Path):
    (tmp_path / "tool.schema.json").write_text('{"version": "1.2-rc_3", "description": "x"}')
    found = load_sidecar(str(tmp_path / "tool"))
    assert found is not None
    assert found.version == "1.2-rc_3"
    assert found.schema["description"] == "x"


@pytest.mark.parametrize("version", ["", "1 2", "x" * 65, 3, None, "1/2"])
def test_else_its_version_is_a_digest_of_its_canonical_form(tmp_path: Path, version: object):
    schema = {"z": [1, 2], "a": {"y": 1, "b": 2}, "version": version}
    (tmp_path / "tool.schema.json").write_text(json.dumps(schema, indent=4))
    found = load_sidecar(str(tmp_path / "tool"))
    canonical = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    assert found is not None
    assert found.version == "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'"x"',
        b"\xff",
        b"[" * 60000,
        b'{"a":"\\ud800"}',
        b'{"a": NaN}',
        b"{}" + b" " * 65536,
    ],
)
def test_anything_else_is_refused_by_name(tmp_path: Path, content: bytes):
    (tmp_path / "tool.schema.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"tool\.schema\.json"):
        load_sidecar(str(tmp_path / "tool"))

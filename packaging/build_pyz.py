"""Build the agent as one file: a zipapp of the kernel and the agent, sources and bytecode.

usage: build_pyz.py TARGET

It starts with `python3 -I -S` and nothing installed. The bytecode is that of the Python that builds;
another one (3.11 or later) compiles the sources at each start instead. The same sources give the same
bytes, whoever builds them and when.
"""

from __future__ import annotations

import io
import os
import py_compile
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INTERPRETER = "/usr/bin/python3 -IS"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment a zip file can state
MAIN = """\
import os
import sys

# a relative path would be lost when the agent goes to the root directory
sys.path[0] = os.path.abspath(sys.path[0])
from ctrl_exec_agent.main import main

sys.exit(main())
"""


def sources() -> dict[str, Path]:
    """The modules by their names inside the file."""
    found = {"ctrl_exec/__init__.py": ROOT / "ctrl_exec/__init__.py"}
    for folder, inside in (
        (ROOT / "ctrl_exec/common", "ctrl_exec/common"),
        (ROOT / "agent/ctrl_exec_agent", "ctrl_exec_agent"),
    ):
        found |= {f"{inside}/{path.name}": path for path in folder.glob("*.py")}
    return dict(sorted(found.items()))


def bytecode(name: str, path: Path, scratch: Path) -> bytes:
    """The compiled module, never checked against its source: both are in one file."""
    compiled = scratch / "module.pyc"
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(path), str(compiled), dfile=name, doraise=True, invalidation_mode=mode)
    return compiled.read_bytes()


def build() -> bytes:
    """The whole file."""
    packed = io.BytesIO()
    with (
        tempfile.TemporaryDirectory() as scratch,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive,
    ):
        entries = {"__main__.py": MAIN.encode()}
        for name, path in sources().items():
            entries[name] = path.read_bytes()
            entries[f"{name}c"] = bytecode(name, path, Path(scratch))
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            # bytecode as it is, so that a start needs no zlib; sources are for other Pythons and for people
            entry.compress_type = (
                zipfile.ZIP_STORED if name.endswith("c") or name == "__main__.py" else zipfile.ZIP_DEFLATED
            )
            archive.writestr(entry, content)
    return f"#!{INTERPRETER}\n".encode() + packed.getvalue()


def main() -> int:
    """Write the file, whole or not at all."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    fresh.write_bytes(build())
    fresh.chmod(0o755)
    os.replace(fresh, target)
    print(f"{target}: {target.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

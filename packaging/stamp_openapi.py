"""Copy openapi.json with the release's version stamped into it: stamp_openapi.py SOURCE TARGET."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ctrl_exec import __version__


def main() -> None:
    """Read SOURCE, set info.version, write TARGET."""
    source, target = map(Path, sys.argv[1:])
    document = json.loads(source.read_text(encoding="utf-8"))
    document["info"]["version"] = __version__
    target.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    target.chmod(0o644)


main()

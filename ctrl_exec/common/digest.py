"""SHA-256 without `hashlib`, whose OpenSSL half costs a process 0.7 MB and each forked child its share of it.

The interpreter's own implementation is the same function; `hashlib` stands in where there is none.
"""

from __future__ import annotations

__all__ = ["sha256"]

try:
    from _sha256 import sha256  # type: ignore[import-not-found]  # CPython 3.11
except ImportError:
    try:
        from _sha2 import sha256  # type: ignore[import-not-found]  # CPython 3.12 and later
    except ImportError:
        from hashlib import sha256

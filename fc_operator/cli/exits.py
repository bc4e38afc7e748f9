"""The exit codes of ``fc``; its help and the README name them."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
ERROR: Final = 1
"""Wrong usage, refused, not reachable; manifests with problems; a demo that differs."""
CHANGES: Final = 2
"""Only ``fc plan``: applying would change something."""
ENDED_BADLY: Final = 3
"""What was waited for ended, but not well."""
INTERRUPTED: Final = 130

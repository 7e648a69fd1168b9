"""The names of CLIPs, as an index stores them."""

from __future__ import annotations

import os


def there(name: str) -> bool:
    """Return whether the folders and files in the stored name of a CLIP exist."""
    parts = [part for one in name.split("+") for part in one.rpartition("*")[2].split("~")]
    return all(map(_there, parts))


def _there(part: str) -> bool:
    if not os.path.isabs(part):  # of open_clip, or a model's name followed by a checkpoint
        part = part.partition("/")[2]
    return not os.path.isabs(part) or os.path.exists(part) or os.path.exists(_placed(part))


def _placed(part: str) -> str:
    """Return a name without its device and dtype."""
    return part.rpartition("@")[0] or part

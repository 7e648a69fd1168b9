"""The names of CLIPs, as an index keeps them."""

from __future__ import annotations

import os


def there(name: str) -> bool:
    """Whether the folders and files that a CLIP's lasting name names are there."""
    parts = [part for one in name.split("+") for part in one.rpartition("*")[2].split("~")]
    return all(map(_there, parts))


def _there(part: str) -> bool:
    if not os.path.isabs(part):  # of open_clip, or with a checkpoint behind a model's name
        part = part.partition("/")[2]
    return not os.path.isabs(part) or os.path.exists(part) or os.path.exists(_placed(part))


def _placed(part: str) -> str:
    """A name without the device and dtype behind it."""
    return part.rpartition("@")[0] or part

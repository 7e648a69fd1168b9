"""The names of CLIPs, as an index keeps them."""

from __future__ import annotations

import os

from ..clip.load import MINI


def absolute(name: str) -> str:
    """A CLIP's name that means the same in another folder."""
    if name in MINI:
        return name
    if os.path.exists(name):
        return os.path.abspath(name)
    if "+" in name:
        return "+".join(map(absolute, name.split("+")))
    if "*" in name:
        weight, _, one = name.partition("*")
        return f"{weight}*{absolute(one)}"
    if "@" in name:
        source, _, place = name.rpartition("@")
        return f"{absolute(source)}@{place}"
    return "~".join(os.path.abspath(p) if os.path.exists(p) else p for p in name.split("~"))


def there(name: str) -> bool:
    """Whether the folders and files that a CLIP's name names are there."""
    parts = [part for one in name.split("+") for part in one.rpartition("*")[2].split("~")]
    return all(not os.path.isabs(p) or os.path.exists(p.rpartition("@")[0] or p) or
               os.path.exists(p) for p in parts)  # fmt: skip


"""Records of a benchmark that runs for hours: one line of JSON each, of one version of all models.

A run that was stopped goes on: what the records have by the models as they are is not measured
again, and what other models made is not counted.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from clipguide import mini
from training.evaluate.ledger import fingerprint


def models_of(*shipped: str, referee: Path | None = None) -> dict[str, str]:
    """The fingerprints of embedded models by their names in `mini.MODELS`, and of the referee."""
    found = {name: fingerprint(mini.path(name)) for name in shipped}
    return found | ({"referee": fingerprint(referee)} if referee else {})


def digest_of(models: dict[str, str]) -> str:
    """One short name for all of them."""
    return hashlib.sha256(json.dumps(models, sort_keys=True).encode()).hexdigest()[:12]


class Records:
    """The lines of a file that these models made.

    Args:
        path: of the file, which need not be there yet.
        mark: the digest of the models.
    """

    def __init__(self, path: Path, mark: str) -> None:
        self.path, self.mark = path, mark
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [row for row in map(json.loads, lines) if row.get("models") == mark]

    def of(self, task: str) -> list[dict]:
        """The rows of a task."""
        return [row for row in self.rows if row["task"] == task]

    def has(self, task: str, **key: object) -> bool:
        """Whether a task was done for that key."""
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.of(task))

    def add(self, task: str, **facts: object) -> None:
        """Keep what was measured, at once."""
        row = {"task": task, **facts, "models": self.mark}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)

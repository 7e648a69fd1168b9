"""Records of a benchmark that runs for hours: one line of JSON each, for one version of all models.

A run that was stopped continues: what the records contain for the present models is not measured
again. Records of other models do not count.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from clipguide import mini
from training.evaluate.ledger import fingerprint


def models_of(*shipped: str, referee: Path | None = None) -> dict[str, str]:
    """Return the fingerprints of embedded models by their names in `mini.MODELS`, and that of the
    referee."""
    found = {name: fingerprint(mini.path(name)) for name in shipped}
    return found | ({"referee": fingerprint(referee)} if referee else {})


def digest_of(models: dict[str, str]) -> str:
    """Return one short digest of all fingerprints."""
    return hashlib.sha256(json.dumps(models, sort_keys=True).encode()).hexdigest()[:12]


class Records:
    """The lines of a file that these models made.

    Args:
        path: the file, which need not exist.
        mark: the digest of the models.
    """

    def __init__(self, path: Path, mark: str) -> None:
        self.path, self.mark = path, mark
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [row for row in map(json.loads, lines) if row.get("models") == mark]

    def of(self, task: str) -> list[dict]:
        """Return the rows of a task."""
        return [row for row in self.rows if row["task"] == task]

    def has(self, task: str, **key: object) -> bool:
        """Return whether there is a record of the task with that key."""
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.of(task))

    def add(self, task: str, **facts: object) -> None:
        """Keep what was measured, at once."""
        row = {"task": task, **facts, "models": self.mark}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)

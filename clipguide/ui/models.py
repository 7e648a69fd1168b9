"""Load the models of the page when they are first needed, and stop its runs."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..clip import Clip
    from ..pipelines.text_to_image import TextToImage
    from ..retrieval import Index
    from ..unrelated import Unrelated

MINI = "mini"


@dataclass(kw_only=True, eq=False)
class Models:
    """The generator `model` with its guide `clip`, the index at `db` with its CLIP, and the CLIP
    that ranks: `clip`, or mini. The defaults are those of the commands."""

    db: str | os.PathLike | None = None
    model: str = MINI
    clip: str | None = None
    device: str = "cpu"
    rewards: tuple[str, ...] = ()
    question: str = ""
    key: str = ""
    stops: Stops = field(default_factory=lambda: Stops())
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _clips: dict[str, Clip] = field(default_factory=dict, repr=False)
    _unrelated: dict[int, Unrelated] = field(default_factory=dict, repr=False)
    _draw: TextToImage | None = field(default=None, repr=False)

    def generator(self) -> TextToImage:
        """Return the generator."""
        from ..pipelines.text_to_image import TextToImage

        with self._lock:
            if self._draw is None:
                self._draw = TextToImage(
                    model=self.model, clip=self.clip, device=self.device, key=self.key
                )
            return self._draw

    def ranker(self) -> Clip:
        """Return the CLIP that ranks uploads."""
        return self._load(self.clip or MINI)

    def index(self) -> tuple[Index, Clip]:
        """Return the current index, and its CLIP. Raise UsageError if there is none."""
        from ..retrieval import Index

        index = Index(self.db)
        with self._lock:
            clip = self._clips.get(index.model)
            if clip is None:
                clip = self._clips[index.model] = index.load(device=self.device)
        index.check(clip)
        return index, clip

    def unrelated(self, clip: Clip) -> Unrelated:
        """Return the scores of unrelated texts by a CLIP."""
        from ..unrelated import Unrelated

        with self._lock:
            if id(clip) not in self._unrelated:
                self._unrelated[id(clip)] = Unrelated(clip)
            return self._unrelated[id(clip)]

    def _load(self, name: str) -> Clip:
        from ..clip import load_clip

        with self._lock:
            if name not in self._clips:
                self._clips[name] = load_clip(name, device=self.device)
            return self._clips[name]


class Stops:
    """The events that stop the runs of sessions. A session has one run that waits, and runs in
    progress."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, threading.Event] = {}
        self._running: dict[str, set[threading.Event]] = {}

    def ask(self, session: str) -> bool:
        """Ask for a run. Return False if the session has a run in progress that is not stopped."""
        with self._lock:
            if any(not stop.is_set() for stop in self._running.get(session, ())):
                return False
            if session not in self._waiting or self._waiting[session].is_set():
                self._waiting[session] = threading.Event()
            return True

    def begin(self, session: str) -> threading.Event | None:
        """Return the event of the run that was asked for, or None."""
        with self._lock:
            stop = self._waiting.pop(session, None)
            if stop is not None:
                self._running.setdefault(session, set()).add(stop)
            return stop

    def ended(self, session: str, stop: threading.Event) -> None:
        """Remove a finished run."""
        with self._lock:
            events = self._running.get(session, set())
            events.discard(stop)
            if not events:
                self._running.pop(session, None)

    def stop(self, session: str | None = None) -> int:
        """Stop the runs of a session, or all runs. Return their number."""
        with self._lock:
            names = [*self._waiting, *self._running] if session is None else [session]
            events = {self._waiting[name] for name in names if name in self._waiting}
            events |= {stop for name in names for stop in self._running.get(name, ())}
        going = [event for event in events if not event.is_set()]
        for event in going:
            event.set()
        return len(going)

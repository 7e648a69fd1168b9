"""What the page works with, each loaded when it is first needed, and its runs, which can be
stopped."""

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
    """The generator `model` with its guide `clip` (by default the model's), the index at `db` (by
    default the user's) with the CLIP that it was made by, and the CLIP that ranks: `clip`, or
    mini's."""

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
        """What draws."""
        from ..pipelines.text_to_image import TextToImage

        with self._lock:
            if self._draw is None:
                self._draw = TextToImage(
                    model=self.model, clip=self.clip, device=self.device, key=self.key
                )
            return self._draw

    def ranker(self) -> Clip:
        """The CLIP that ranks uploads."""
        return self._load(self.clip or MINI)

    def index(self) -> tuple[Index, Clip]:
        """The index, as it is now, and its CLIP. UsageError if there is none."""
        from ..retrieval import Index

        index = Index(self.db)
        with self._lock:
            clip = self._clips.get(index.model)
            if clip is None:
                clip = self._clips[index.model] = index.load(device=self.device)
        index.check(clip)
        return index, clip

    def unrelated(self, clip: Clip) -> Unrelated:
        """The scores of unrelated texts by a CLIP."""
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
    """The events by which the runs of sessions are stopped: each session has one that is asked for
    and waits its turn, and those that are on their way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, threading.Event] = {}
        self._running: dict[str, set[threading.Event]] = {}

    def ask(self, session: str) -> bool:
        """Ask for a run; False if the session has one that is on its way and not stopped."""
        with self._lock:
            if any(not stop.is_set() for stop in self._running.get(session, ())):
                return False
            if session not in self._waiting or self._waiting[session].is_set():
                self._waiting[session] = threading.Event()
            return True

    def begin(self, session: str) -> threading.Event | None:
        """The event of the run that was asked for; None if there is none."""
        with self._lock:
            stop = self._waiting.pop(session, None)
            if stop is not None:
                self._running.setdefault(session, set()).add(stop)
            return stop

    def ended(self, session: str, stop: threading.Event) -> None:
        """A run is over."""
        with self._lock:
            events = self._running.get(session, set())
            events.discard(stop)
            if not events:
                self._running.pop(session, None)

    def stop(self, session: str | None = None) -> int:
        """Stop what waits or runs in a session, or everything; how many runs that were."""
        with self._lock:
            names = [*self._waiting, *self._running] if session is None else [session]
            events = {self._waiting[name] for name in names if name in self._waiting}
            events |= {stop for name in names for stop in self._running.get(name, ())}
        going = [event for event in events if not event.is_set()]
        for event in going:
            event.set()
        return len(going)

"""Claim the files of a run before it starts, and report them after it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import UsageError
from ..prompts import shorten
from . import console, naming, sureness, watching

if TYPE_CHECKING:
    from ..pipelines.picture import Picture
    from ..pipelines.text_to_image import Step
    from ..recipe import Recipe
    from .sureness import Drawn


@dataclass
class Files:
    """The files of a run. They are claimed before it starts, and reported however it ends."""

    paths: list[Path]  # the seed that was asked for, for each image
    named: Callable[[int, int], Path]  # (index of an image, the seed that drew it) -> its file
    sheets: dict[str, Path]
    force: bool
    resume: bool = False
    trace: bool = False
    own_seeds: bool = False  # whether the file name has the seed of the candidate that was kept
    pictures: list[Picture] = field(default_factory=list)
    sureness: Drawn | None = None  # gives the words for the scores
    # shares of each image, by the names of the scores
    shares: list[dict[str, float]] = field(default_factory=list)
    kept: list[Picture] = field(default_factory=list)  # images of an earlier run
    written: list[str] = field(default_factory=list)
    done: list[Path] = field(default_factory=list)  # the paths of `pictures`

    @classmethod
    def plan(
        cls,
        out: str | None,
        prompts: list[str],
        count: int,
        seed: int,
        wanted: dict[str, bool],
        *,
        force: bool,
        resume: bool,
    ) -> Files:
        paths = naming.plan(out, prompts=prompts, count=count, seed=seed)
        sheets = {kind: naming.beside(paths[0], kind) for kind in wanted if wanted[kind]}
        naming.claim([*paths, *sheets.values()], force=force or resume)
        if resume:
            naming.sweep(paths)
        named = partial(naming.of_seed, out, prompts, count)
        return cls(paths, named, sheets, force, resume)

    @property
    def tapes(self) -> Path | None:
        """Return the folder of the unfinished images if the run can be resumed, else None."""
        return naming.tapes(self.paths[0]) if self.resume else None

    def folder(self, index: int) -> Path:
        """Return the folder of the state of one unfinished image."""
        return naming.tapes(self.paths[index])

    def finished(self, index: int, recipes: Sequence[Recipe]) -> Picture | None:
        """Return image number `index` if an earlier run wrote it, else None.

        Raises:
            UsageError: another image has its place.
        """
        from ..images import load
        from ..pipelines.picture import Picture
        from ..recipe import differences, read_png, read_trace

        seeds = [one.seed for one in recipes]
        path = next((p for p in self._places(index, seeds) if p.exists()), None)
        if path is None:
            return None
        recipe = read_png(path)
        recipes = [recipe.resolving(one) for one in recipes]
        if changes := min((differences(recipe, one) for one in recipes), key=len):
            raise UsageError(
                f"{path} is there already, and this run would not make it "
                f"({shorten('; '.join(changes[:3]), 200)}): repeat the command that made it, or "
                "choose another --out."
            )
        picture = Picture(
            image=load(path),
            recipe=recipe,
            guide_score=recipe.guide_score,
            judge_score=recipe.judge_score if recipe.judge else None,
            seed=recipe.seed,
            trace=read_trace(path) if self.trace else [],
        )
        self.kept.append(picture)
        return picture

    def add(self, picture: Picture) -> None:
        """Write the next image, unless it exists already."""
        from ..recipe import save_png

        shares = self.sureness.shares(picture) if self.sureness else {}
        index, kept = len(self.pictures), any(picture is one for one in self.kept)
        places = self._places(index, [picture.seed])
        path = next(p for p in places if kept == p.exists() or self.force or p == places[-1])
        if not kept:
            trace = picture.trace if self.trace else None
            save_png(picture.image, picture.recipe, path, overwrite=self.force, trace=trace)
        self.pictures.append(picture)
        self.done.append(path)
        self.shares.append(shares)

    def _places(self, index: int, seeds: Sequence[int]) -> list[Path]:
        """Return the paths where the image of one of `seeds` may be. With best-of, the name has the
        seed of the candidate that was kept. The last path is the one that was claimed before the
        run."""
        named = {self.named(index, seed): None for seed in seeds} if self.own_seeds else {}
        return [*named, self.paths[index]]

    def add_sheet(self, kind: str, pictures: list[Any], labels: list[str], columns: int) -> None:
        """Write a sheet of PIL images. The preview is written repeatedly."""
        from ..images import contact_sheet
        from ..recipe import write_png

        sheet = contact_sheet(pictures, labels=labels, columns=columns)
        again = kind in self.written
        write_png(sheet, self.sheets[kind], overwrite=self.force or self.resume or again)
        if not again:
            self.written.append(kind)

    def add_preview(self, step: Step | None) -> None:
        """Write the progress of the run: the finished images, and those of `step`."""
        sheet = watching.live_grid(self.pictures, step, total=len(self.paths))
        self.add_sheet("preview", **sheet)

    def add_animation(self, reel: watching.Reel) -> None:
        """Write the animation, and list it with the sheets."""
        reel.write()
        self.sheets["animation"] = reel.path
        self.written.append("animation")

    def tell(self, *, as_json: bool, quiet: bool) -> None:
        """Print the path and the scores of each image that was written."""
        for path, picture, shares in zip(self.done, self.pictures, self.shares, strict=False):
            if as_json:
                known = {"prompt": picture.recipe.prompt, "seed": picture.seed}
                _print_json(path, **known, **_scores(picture), better_than=shares)
            elif quiet:
                console.tell(path)
            else:
                words = {name: sureness.word(share) for name, share in shares.items()}
                console.tell(f"{path}  {console.score_line(_scores(picture), words)}")
        for kind in self.written:
            if as_json:
                _print_json(self.sheets[kind], sheet=kind)
            else:
                console.tell(self.sheets[kind])


def _scores(picture: Picture) -> dict[str, float]:
    scores = {"guide": picture.guide_score, "judge": picture.judge_score}
    return {name: score for name, score in scores.items() if score is not None}


def _print_json(path: Path, **facts: object) -> None:
    typer.echo(json.dumps({"path": str(path), **facts}))

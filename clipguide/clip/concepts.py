"""Learned words: files that `finetune.inversion` writes, and a CLIP that reads them.

The word keeps the tokens that the tokenizer makes of it. Where these tokens follow each other in a
text, a hook on the token embedding replaces their vectors by learned ones (textual inversion, Gal
et al. 2023, §3). Vocabulary and tokenizer do not change.

Shapes: B texts, M places of the word in them, L tokens, T tokens of the word, V the vocabulary, W
the width of the text encoder.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UsageError, reason
from ..prompts import shorten
from .base import Clip

FORMAT = "clipguide concept 1"
ROOM = 2  # tokens that a word must leave for other words


@dataclass(frozen=True)
class Concept:
    """A learned word: its token_T, the vector_TW that replaces theirs, and the fingerprint and name
    of its CLIP."""

    word: str
    token_T: Tensor
    vector_TW: Tensor
    clip: str
    clip_name: str = ""

    @property
    def digest(self) -> str:
        """Return the sha256 digest of the word and its vectors."""
        parts = (self.token_T.long(), self.vector_TW.float())
        data = b"".join(t.cpu().contiguous().numpy().tobytes() for t in parts)
        return hashlib.sha256(self.clip.encode() + data).hexdigest()

    def save(self, file: str | os.PathLike) -> None:
        """Write a safetensors file of a few kilobytes."""
        from safetensors.torch import save_file

        tensors = {"tokens": self.token_T.cpu(), "vectors": self.vector_TW.detach().float().cpu()}
        told = {"word": self.word, "clip": self.clip, "clip_name": self.clip_name}
        new = Path(f"{os.fspath(file)}.new")
        save_file(
            {k: v.contiguous() for k, v in tensors.items()},
            new,
            metadata={"format": FORMAT, **told},
        )
        new.replace(file)

    @classmethod
    def load(cls, file: str | os.PathLike) -> Concept:
        """Return the concept in a file. Raise UsageError if it is not one."""
        from safetensors import safe_open

        try:
            with safe_open(os.fspath(file), framework="pt") as opened:
                told = opened.metadata() or {}
                if told.get("format") != FORMAT:
                    raise UsageError(f"{file} is no concept of clipguide's.")
                token_T, vector_TW = (opened.get_tensor(k) for k in ("tokens", "vectors"))
                return cls(told["word"], token_T, vector_TW, told["clip"], told["clip_name"])
        except UsageError:
            raise
        except FileNotFoundError:
            raise UsageError(f"There is no concept {file}.") from None
        except Exception as error:  # safetensors raises its own errors
            raise UsageError(f"{file} is no concept of clipguide's: {reason(error)}.") from error


def with_concept(clip: Clip, *concepts: Concept | str | os.PathLike) -> Clip:
    """Return the CLIP with the words of these concepts. It shares the weights.

    Its fingerprint differs, because its texts differ.

    Raises:
        UsageError: a concept belongs to another CLIP; or the CLIP is an ensemble, whose members
            take words one by one.
    """
    if hasattr(clip, "members"):
        raise UsageError("A concept belongs to one CLIP: give it to a member of the ensemble.")
    base, digest, other = clip.checkpoint_fingerprint, clip.fingerprint, copy.copy(clip)
    other._model = shared_copy(clip._model)
    for given in concepts:
        concept = given if isinstance(given, Concept) else Concept.load(given)
        if concept.clip != base:
            raise UsageError(
                f"The word {concept.word!r} was learned by another CLIP than {clip.name}"
                f"{f', {concept.clip_name}' if concept.clip_name != clip.name else ''}: "
                "learn it anew."
            )
        embedding = token_embedding(other._model)
        vector_TW = concept.vector_TW.to(embedding.weight)
        embedding.register_forward_hook(hook(concept.token_T, vector_TW))
        digest = hashlib.sha256((digest + concept.digest).encode()).hexdigest()
    other.fingerprint = digest
    return other


def shared_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the modules that shares their tensors. A hook on the copy does not act on
    the original."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def token_embedding(model: nn.Module) -> nn.Module:
    """Return the table of token vectors: of open_clip's text encoders (its own or of transformers),
    or of a model of transformers. Raise UsageError for an encoder without one."""
    tower = getattr(model, "text", model)
    for owner in (tower, getattr(tower, "transformer", None), getattr(model, "model", None)):
        owner = getattr(owner, "text_model", owner)
        if isinstance(getattr(owner, "token_embedding", None), nn.Module):
            return owner.token_embedding
        if hasattr(owner, "get_input_embeddings"):
            return owner.get_input_embeddings()
    raise UsageError("The text tower of this CLIP has no token embedding to learn a word in.")


def word_tokens(tokenizer: Callable[..., Tensor], word: str) -> Tensor:
    """Return token_T of a word alone, without the start and end tokens of a text."""
    empty_L, word_L = tokenizer([""])[0], tokenizer([word])[0]
    differ = (empty_L != word_L).nonzero().flatten().tolist()
    if word and differ:
        first, length = differ[0], len(word_L)
        for count in range(1, length - first - ROOM):
            if torch.equal(word_L[first + count :], empty_L[first : length - count]):
                return word_L[first : first + count].clone()
    raise UsageError(
        f"The tokenizer makes no tokens of the word {shorten(word)!r}, or too many: choose another."
    )


def places(token_BL: Tensor, token_T: Tensor) -> Tensor:
    """Return (row, column) of each start of the word's tokens in texts."""
    found = token_BL.unfold(1, len(token_T), 1) == token_T.to(token_BL)
    return found.all(-1).nonzero()


def hook(token_T: Tensor, vector_TW: Tensor) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
    """Return a forward hook of a token embedding that inserts the learned vectors at the word's
    tokens."""

    def replace(module: nn.Module, args: tuple, out_BLW: Tensor) -> Tensor:
        at_M2 = places(args[0], token_T)
        if not len(at_M2):
            return out_BLW
        out_BLW = out_BLW.clone()
        for k, vector_W in enumerate(vector_TW.to(out_BLW)):
            out_BLW[at_M2[:, 0], at_M2[:, 1] + k] = vector_W
        return out_BLW

    return replace

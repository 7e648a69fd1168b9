"""The reader of CLIP's own byte pairs beside open_clip's, which is transformers'."""

import json
import random
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from torch.testing import assert_close

from clipguide import mini, unrelated
from clipguide.clip.fingerprint import PROBES
from clipguide.clip.load import load_parts
from clipguide.clip.tokens import BytePairs, byte_pairs

ODD = [
    "", " ", "\n", "a", "A RED  fox's tail", "<|endoftext|> x <|startoftext|>fox", "<|ENDOFTEXT|>",
    "ＦＯＸ", "e\u0301 é", "x" * 300, "&amp; &lt;", "don't we'll", "1234", "ﬁ", "\u200b", "狐",
]  # fmt: skip


def texts():
    """Odd ones, nouns, and characters at random of several scripts."""
    draw = random.Random(0)
    ranges = ((32, 127), (32, 0x3000), (0x1F300, 0x1FAFF))
    lines = [
        "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(1, 60)))
        for _ in range(500)
    ]
    return [*ODD, *PROBES, *unrelated.words()[::5], *lines]


@pytest.mark.parametrize("name", ["guide", "judge"])
def test_tokens_are_those_of_transformers(name):
    folder = mini.path(name)
    theirs, ours = open_clip.get_tokenizer(f"local-dir:{folder}"), byte_pairs(folder)
    assert ours.context_length == theirs.context_length
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    for length in (None, 33, 7, 3):
        assert_close(ours(texts(), context_length=length), theirs(texts(), context_length=length))
    assert_close(ours("a fox"), theirs("a fox"))


def edited(file, **changes):
    """A change of a folder's file of JSON, by paths of names with dots."""

    def edit(folder: Path) -> None:
        path = folder / file
        known = json.loads(path.read_text()) if path.exists() else {}
        for place, value in changes.items():
            *above, last = place.split(".")
            inner = known
            for name in above:
                inner = inner[name]
            inner[last] = value
        path.write_text(json.dumps(known))

    return edit


TOWER = "model_cfg.text_cfg."


@pytest.mark.parametrize(
    "edit",
    [
        edited("tokenizer_config.json", tokenizer_class="BertTokenizer"),
        edited("tokenizer_config.json", do_lower_case=False),
        edited("tokenizer_config.json", bos_token="[CLS]"),
        edited("tokenizer_config.json", unheard_of=True),
        edited("special_tokens_map.json", pad_token="!"),
        edited("added_tokens.json"),
        edited("tokenizer.json"),
        edited("open_clip_config.json", **{TOWER + "tokenizer_kwargs": {"clean": "lower"}}),
        edited("open_clip_config.json", **{TOWER + "tokenizer_mode": "clips"}),
        edited("open_clip_config.json", **{TOWER + "hf_tokenizer_name": ""}),
        lambda folder: (folder / "special_tokens_map.json").unlink(),
    ],
)
def test_a_folder_that_is_set_up_otherwise_is_left_to_open_clip(edit, tmp_path):
    for file in mini.path("guide").iterdir():
        if file.suffix in (".json", ".txt"):
            shutil.copy(file, tmp_path)
    assert isinstance(byte_pairs(tmp_path), BytePairs)
    edit(tmp_path)
    assert byte_pairs(tmp_path) is None


def test_a_clip_is_given_the_reader_that_its_folder_needs(tmp_path):
    folder = shutil.copytree(mini.path("judge"), tmp_path / "clip")
    assert isinstance(load_parts(str(folder)).tokenizer, BytePairs)
    kwargs = {"clean": "canonicalize"}
    edited("open_clip_config.json", **{TOWER + "tokenizer_kwargs": kwargs})(folder)
    other = load_parts(str(folder)).tokenizer
    assert not isinstance(other, BytePairs)
    assert torch.equal(*other(["a_fox!", "a fox"]))

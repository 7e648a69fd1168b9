"""A learned word: in its places and nowhere else, nearer to its images, in a file of its own."""

import pytest
import torch
from hf_folder import write_hf_clip, write_hf_siglip
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from clipguide.clip import Ensemble, load_clip, load_parts
from clipguide.clip.concepts import (
    Concept,
    places,
    shared_copy,
    token_embedding,
    with_concept,
    word_tokens,
)
from clipguide.errors import UsageError
from clipguide.finetune.inversion import Inversion, InversionConfig

WORD = "blorvek"
CONFIG = InversionConfig(steps=40, lr=0.05, templates=("{}", "a {}", "{} out"), others=("fox", "b"))
KINDS = ("open_clip", "custom", "clip", "siglip")


def creatures(number=3, colour="purple"):
    """A purple disc in other places each time."""
    pictures = []
    for k in range(number):
        picture = Image.new("RGB", (48, 40), ("white", "#ddeeff", "#ffeedd")[k % 3])
        ImageDraw.Draw(picture).ellipse((4 + 6 * k, 6, 24 + 6 * k, 30), colour)
        pictures.append(picture)
    return pictures


@pytest.fixture(scope="module")
def folders(clip_folder, tmp_path_factory):
    """One of each kind of text tower."""
    home = tmp_path_factory.mktemp("kinds")
    return {
        "custom": clip_folder,
        "clip": write_hf_clip(home / "clip"),
        "siglip": write_hf_siglip(home / "siglip"),
        "open_clip": _plain_open_clip(home / "plain"),
    }


def _plain_open_clip(folder):
    """open_clip's own CLIP, whose text tower is the model itself, with its own tokenizer."""
    import json

    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 16,
            "head_width": 8,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 2,
        },
    }
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def learn(folder, config=CONFIG, word=WORD, **pictures):
    inversion = Inversion(load_parts(str(folder)), creatures(**pictures), word, config)
    return list(inversion), inversion.concept()


@pytest.mark.parametrize("kind", KINDS)
def test_the_word_comes_nearer_to_its_pictures_and_no_other_text_moves(kind, folders):
    steps, concept = learn(folders[kind])
    clip = load_clip(str(folders[kind]))
    reads = with_concept(clip, concept)
    assert len(steps) == steps[0].total == 40
    image = clip.encode_pictures(creatures(5)[3:])  # two that it has not seen
    near = [(image @ c.encode_text([f"a {WORD}"]).T).mean().item() for c in (clip, reads)]
    assert near[1] > near[0] + 0.02
    others = ["a fox", f"{WORD}s", "blorve k", ""]
    assert torch.equal(clip.encode_text(others), reads.encode_text(others))
    assert torch.equal(clip.encode_pictures(creatures()), reads.encode_pictures(creatures()))
    assert reads.fingerprint != clip.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_the_hook_is_a_row_of_the_table(kind, folders):
    """The same vectors written into a copy of the table, where these tokens stand for nothing
    else, give the same text."""
    parts = load_parts(str(folders[kind]))
    token_T = word_tokens(parts.tokenizer, WORD)
    weight = token_embedding(parts.model).weight
    vector_TW = torch.randn(
        len(token_T), weight.shape[1], generator=torch.Generator().manual_seed(0)
    )
    for token in set(token_T.tolist()):  # a token that comes twice has one vector
        same = (token_T == token).nonzero().flatten()
        vector_TW[same] = vector_TW[same[0]].clone()
    clip = parts.clip()
    concept = Concept(WORD, token_T, vector_TW, clip.fingerprint)
    hooked = with_concept(clip, concept).encode_text([f"a {WORD}"])
    with torch.no_grad():
        weight[token_T] = vector_TW
        token_L = parts.tokenizer([f"a {WORD}"])
        written = torch.nn.functional.normalize(parts.model.encode_text(token_L), dim=-1)
    alone = not set(token_T.tolist()) & set(parts.tokenizer(["a"])[0].tolist())
    assert not alone or torch.allclose(hooked, written, atol=1e-5)


def test_places_are_where_all_tokens_follow_each_other():
    token_BL = torch.tensor([[1, 5, 6, 5, 6], [5, 6, 1, 6, 5], [1, 1, 5, 5, 6]])
    assert places(token_BL, torch.tensor([5, 6])).tolist() == [[0, 1], [0, 3], [1, 0], [2, 3]]
    assert not len(places(token_BL, torch.tensor([6, 6])))


def test_tokens_of_a_word_alone(folders):
    """Between what stands before and behind each text, for tokenizers with and without a start."""
    for kind in KINDS:
        parts = load_parts(str(folders[kind]))
        token_T = word_tokens(parts.tokenizer, WORD)
        text_BL = parts.tokenizer([f"a {WORD}", f"{WORD} fox", f"{WORD}s", "fox"])
        assert places(text_BL, token_T)[:, 0].tolist() == [0, 1]
    with pytest.raises(UsageError, match="no tokens of the word"):
        word_tokens(parts.tokenizer, "")


def test_weights_are_shared_and_the_original_has_no_hook(clip, clip_folder):
    other = shared_copy(clip._model)
    pairs = zip(clip._model.parameters(), other.parameters(), strict=True)
    assert all(mine is theirs for mine, theirs in pairs)
    text = clip.encode_text([f"a {WORD}"])
    _, concept = learn(clip_folder, InversionConfig(steps=1))
    with_concept(clip, concept)
    assert torch.equal(clip.encode_text([f"a {WORD}"]), text)
    assert not token_embedding(clip._model)._forward_hooks


def test_a_seed_repeats_and_no_vector_is_longer_than_the_tower_knows(clip_folder):
    (_, first), (_, again) = (learn(clip_folder) for _ in range(2))
    assert torch.equal(first.vector_TW, again.vector_TW) and first.digest == again.digest
    table = token_embedding(load_parts(str(clip_folder)).model).weight
    assert first.vector_TW.norm(dim=1).max() <= table.norm(dim=1).max() + 1e-5


def test_a_word_begins_as_one_that_it_is_like(clip_folder):
    parts = load_parts(str(clip_folder))
    inversion = Inversion(parts, creatures(), WORD, InversionConfig(like="fox"))
    fox = token_embedding(parts.model).weight[word_tokens(parts.tokenizer, "fox")]
    assert torch.equal(inversion.vector_TW[: len(fox)], fox)
    assert torch.equal(inversion.vector_TW[-1], fox[-1])


def test_the_file(clip, clip_folder, tmp_path):
    _, concept = learn(clip_folder)
    file = tmp_path / "blorvek.safetensors"
    concept.save(file)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    assert file.stat().st_size < 10_000
    loaded = Concept.load(file)
    assert (loaded.word, loaded.clip, loaded.digest) == (WORD, clip.fingerprint, concept.digest)
    texts = [f"a {WORD}"]
    a, b = (with_concept(clip, what).encode_text(texts) for what in (concept, str(file)))
    assert torch.equal(a, b)


def test_two_words_in_one_clip(clip, clip_folder):
    _, purple = learn(clip_folder)
    _, green = learn(clip_folder, word="quazzim", colour="green")
    both, after = with_concept(clip, purple, green), with_concept(with_concept(clip, purple), green)
    assert both.fingerprint == after.fingerprint != with_concept(clip, purple).fingerprint
    for word, one in ((WORD, purple), ("quazzim", green)):
        alone = with_concept(clip, one).encode_text([word])
        assert torch.equal(both.encode_text([word]), alone)
        assert torch.equal(after.encode_text([word]), alone)


def test_a_guided_objective_takes_it(clip, clip_folder):
    from clipguide.objectives import Similarity

    _, concept = learn(clip_folder)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    Similarity(with_concept(clip, concept), f"a {WORD}:2 | fox")(image).sum().backward()
    assert image.grad.abs().sum() > 0


def test_what_goes_wrong(clip, judge, judge_folder, clip_folder, tmp_path):
    _, concept = learn(judge_folder, InversionConfig(steps=1))
    with pytest.raises(UsageError, match="'blorvek' was learned by another CLIP.*learn it anew"):
        with_concept(clip, concept)
    with pytest.raises(UsageError, match="member of the ensemble"):
        with_concept(Ensemble([clip, judge]), concept)
    with pytest.raises(UsageError, match="no images to learn"):
        Inversion(load_parts(str(clip_folder)), [], WORD)
    with pytest.raises(UsageError, match="The word is empty"):
        Inversion(load_parts(str(clip_folder)), creatures(), "  ")
    with pytest.raises(UsageError, match="or too many"):  # it would be cut
        Inversion(load_parts(str(clip_folder)), creatures(), WORD * 3)
    with pytest.raises(UsageError, match="otherwise in a sentence"):
        Inversion(
            load_parts(str(clip_folder)), creatures(), WORD, InversionConfig(templates=("{}s",))
        )
    with pytest.raises(UsageError, match="There is no concept"):
        Concept.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("no safetensors")
    with pytest.raises(UsageError, match="is no concept"):
        Concept.load(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(UsageError, match="is no concept"):
        Concept.load(tmp_path / "weights.safetensors")
    for settings in ({"steps": 0}, {"templates": ("a",)}, {"others": ()}):
        with pytest.raises(UsageError):
            InversionConfig(**settings)

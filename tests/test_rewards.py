"""Rewards by name: what is asked for, and each against an independent computation."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hf_folder import write_hf_clip, write_hf_siglip
from objective_checks import check_rows, images
from PIL import Image
from reward_folders import seeded, write_dino, write_image_reward, write_qwen2vl
from safetensors.torch import save_file
from test_objectives_preference import TINY, hps  # noqa: F401
from torch import nn
from torch.testing import assert_close
from torchvision import transforms

from clipguide import Region, Reward, Scheduled, register_reward
from clipguide.errors import ClipguideError, UsageError
from clipguide.images import to_pil, to_tensor
from clipguide.objectives import Objective, as_objective
from clipguide.rewards import REWARDS, table, wanted
from clipguide.rewards import hpsv3 as hpsv3_file
from clipguide.rewards.questions import Question

NAMES = ["clip", "siglip2", "pickscore", "hpsv2", "hpsv3", "imagereward", "aesthetic", "vqascore",
         "vlm", "dino", "sds"]  # fmt: skip


# ------------------------------------------------------------ names
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("pickscore", ("pickscore", "", "", 1.0)),
        ("pickscore:0.5", ("pickscore", "", "", 0.5)),
        ("clip=mini-judge:-2", ("clip", "mini-judge", "", -2.0)),
        ("vlm=http://localhost:8000", ("vlm", "http://localhost:8000", "", 1.0)),
        ("vlm=http://h:8000/v1#q:0.5", ("vlm", "http://h:8000/v1", "q", 0.5)),
        ("dino=a.png#folder", ("dino", "a.png", "folder", 1.0)),
    ],
)
def test_what_is_asked_for(text, parts):
    asked = wanted(text)
    assert (asked.name, asked.where, asked.model, asked.weight) == parts
    assert wanted(str(asked)) == asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pikscore", "no reward 'pikscore'. Did you mean pickscore"),
        ("pickscore:0", "has weight 0"),
        ("aesthetic", "aesthetic must be told a head"),
        ("dino:0.5", "dino must be told an image"),
        ("clip:20", "The weight of a reward is from −10 to 10, not 20"),
        ("pickscore:-1e3", "from −10 to 10, not -1000"),
        ("", "There is no reward ''"),
    ],
)
def test_what_cannot_be_asked_for(text, message):
    with pytest.raises(UsageError, match=message):
        wanted(text)


def test_a_missing_package_is_named():
    register_reward("odd", lambda settings: None, gradient=True, default="x",
                    package="no_such_package", install="'odd[all]'")  # fmt: skip
    try:
        with pytest.raises(UsageError, match=r"needs the package no_such_package.*odd\[all\]"):
            Reward("odd")
    finally:
        REWARDS.unregister("odd")


def test_settings():
    with pytest.raises(UsageError, match="Multiply the objective instead"):
        Reward("clip:2")
    with pytest.raises(UsageError, match="no setting 'devise'. Did you mean device"):
        Reward("clip", devise="cpu")
    with pytest.raises(UsageError, match="time limit"):
        Reward("vlm=http://h", timeout=0)


def test_the_table_of_the_docs():
    """docs/guides.md has what the registry says; names, gradients and proofs are all there."""
    from pathlib import Path

    assert list(REWARDS) == NAMES
    page = (Path(__file__).parents[1] / "docs" / "guides.md").read_text(encoding="utf-8")
    assert table() in page, "paste what clipguide.rewards.table() gives into docs/guides.md"
    assert all(kind.proof and kind.size and kind.licence for kind in REWARDS.values())


# ------------------------------------------------------------ one of one's own
class Bright(Objective):
    def __call__(self, image_B3HW, generators=None):
        return -image_B3HW.flatten(1).mean(1)


@pytest.fixture
def own():
    """Registers a reward for one test."""
    names = []

    def add(function, **facts):
        register_reward(
            "own", lambda settings: lambda prompts: function, default="-", **facts
        )
        names.append("own")
        return Reward("own")

    yield add
    for name in names:
        REWARDS.unregister(name)


def test_one_of_ones_own_composes(own):
    """In sums, regions and schedules, as any objective; loaded once for all prompts."""
    reward = own(Bright(), gradient=True)
    image = images()
    mean_B = image.flatten(1).mean(1)
    assert_close(reward(image), -mean_B)
    assert_close(reward.score(image), mean_B)
    assert_close((2 * reward + Bright())(image), -3 * mean_B)
    assert_close(Region(reward, (0, 0, 0.5, 1))(image), -image[..., :18].flatten(1).mean(1))
    late = Scheduled(reward, "1@0.5..1")
    assert_close(late.at(0.75)(image), -mean_B) and not late.at(0.1)(image).any()
    assert reward.towards("a fox")._loaded is reward._loaded
    check_rows(reward, image)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda image, generators: image.mean(), r"one value an image, of shape \(3,\)"),
        (lambda image, generators: 0.5, r"and gave 0.5"),
        (lambda image, generators: torch.ones(3, 1), r"and gave \(3, 1\)"),
        (lambda image, generators: torch.ones(3, device="meta"), "without values"),
    ],
)
def test_what_a_reward_may_not_give(own, give, message):
    reward = own(give, gradient=True)
    with pytest.raises(UsageError, match=message):
        reward(images())


def test_whole_numbers_are_scores_too(own):
    """As a count of things: a mean over frames and a rank can be taken of them."""
    counted = own(lambda image, generators: (9 * image.flatten(1).mean(1)).long(), gradient=False)
    loss_B = counted(images())
    assert loss_B.dtype == torch.float32
    assert_close(loss_B, (9 * images().flatten(1).mean(1)).floor().float())
    function = as_objective(lambda image: (9 * image.flatten(1).mean(1)).long())
    assert function(images()).dtype == torch.float32 and torch.equal(function(images()), loss_B)


def test_what_does_not_load_is_one_sentence():
    with pytest.raises(ClipguideError, match="The reward vqascore=nowhere cannot be loaded"):
        Reward("vqascore=nowhere").load()
    with pytest.raises(UsageError, match="There are no weights nowhere.pt"):
        Reward("hpsv2=nowhere.pt").load()


# ------------------------------------------------------------ CLIPs and heads
def test_pickscore_and_siglip2(tmp_path):
    """Of a folder, as transformers computes them: exp(scale) · cosine, and the cosine."""
    from transformers import AutoModel, AutoProcessor, AutoTokenizer

    pictures = to_pil(images(2))
    for name, folder in (
        ("pickscore", write_hf_clip(tmp_path / "pick")),
        ("siglip2", write_hf_siglip(tmp_path / "siglip")),
    ):
        model = AutoModel.from_pretrained(folder).eval()
        processor = AutoProcessor.from_pretrained(folder)
        tokens = AutoTokenizer.from_pretrained(folder)(
            ["a red fox"], padding="max_length", max_length=16, return_tensors="pt"
        )
        pixels = getattr(processor, "image_processor", processor)(pictures, return_tensors="pt")
        with torch.no_grad():
            image_BD = model.get_image_features(pixel_values=pixels.pixel_values).pooler_output
            text_1D = model.get_text_features(input_ids=tokens.input_ids).pooler_output
            scale = model.logit_scale.exp() if name == "pickscore" else 1.0
            expected = scale * F.cosine_similarity(image_BD, text_1D)
        reward = Reward(f"{name}={folder}", "a red fox")
        assert_close(reward.score_pictures(pictures), expected, atol=1e-4, rtol=1e-4)
        image = images(2).float().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(image)[0], image)
        assert gradient[0].count_nonzero() and not gradient[1].count_nonzero()
        assert_close(reward.score(image), -reward(image).detach())
        assert len(reward.fingerprint) == 64


def test_hpsv2_and_aesthetic(hps, clip_folder, tmp_path):  # noqa: F811
    folder, model, transform, tokenizer = hps
    pictures = to_pil(images(2))
    with torch.no_grad():
        image_BD = model.encode_image(torch.stack(list(map(transform, pictures))), normalize=True)
        text_BD = model.encode_text(tokenizer(["a red fox"]), normalize=True)
    reward = Reward(f"hpsv2={folder / 'hps.safetensors'}#{TINY}", "a red fox")
    assert_close(reward.score_pictures(pictures), (image_BD @ text_BD.T)[:, 0])
    wide = to_pil(images(1, size=64)[..., 20:44, :])  # is padded, as its own code does, not cut
    with torch.no_grad():
        small = F.interpolate(to_tensor(wide), (12, 32), mode="bicubic", antialias=True).clamp(0, 1)
        padded = F.pad(small, (0, 0, 10, 10))
        pixels = transform.transforms[-1](padded)  # its normalisation
        image_BD = model.encode_image(pixels, normalize=True)
    assert_close(reward.score_pictures(wide), (image_BD @ text_BD.T)[:, 0], atol=2e-3, rtol=0)
    assert_close(reward.score(to_tensor(wide)), (image_BD @ text_BD.T)[:, 0], atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="trust_pickle"):
        Reward(f"hpsv2={folder / 'hps.pt'}#{TINY}").load()
    Reward(f"hpsv2={folder / 'hps.pt'}#{TINY}", trust_pickle=True).load()
    weight, bias = torch.randn(1, 24, generator=torch.manual_seed(0)), torch.tensor([5.0])
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    judge = Reward(f"aesthetic={tmp_path / 'head.safetensors'}#{clip_folder}")
    unit_BD = judge.load()._objective.clip.encode_pictures(pictures)
    assert_close(judge.score_pictures(pictures), (unit_BD @ weight.T + bias)[:, 0])


# ------------------------------------------------------------ DINO
def test_dino(tmp_path):
    """As transformers' processor and model compute it; tensors near it, with a gradient."""
    from transformers import AutoImageProcessor, AutoModel

    folder = write_dino(tmp_path / "dino")
    shapes = [torch.rand(1, 3, 60, 80, generator=torch.manual_seed(k)) for k in range(3)]
    smooth = [F.interpolate(s[..., ::8, ::8], (60, 80), mode="bicubic") for s in shapes]
    pictures = [to_pil(image)[0] for image in smooth]
    pictures[0].save(tmp_path / "photo.png")
    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        pixels = processor(images=pictures, return_tensors="pt").pixel_values
        unit_BD = F.normalize(model(pixels).last_hidden_state[:, 0], dim=-1)
    expected = unit_BD @ unit_BD[0]
    reward = Reward(f"dino={tmp_path / 'photo.png'}#{folder}")
    assert_close(reward.score_pictures(pictures), expected, atol=1e-5, rtol=0)
    assert_close(expected[0].item(), 1.0) and (expected[1:] < 0.99).all()
    image = to_tensor(pictures).requires_grad_()
    assert_close(-reward(image).detach(), expected, atol=0.02, rtol=0)
    (gradient,) = torch.autograd.grad(reward(image)[1], image)
    assert gradient[1].count_nonzero() and not gradient[0].count_nonzero()
    small = [picture.resize((36, 36)) for picture in pictures]  # nothing is left to resize
    with torch.no_grad():
        pixels = processor(images=small, return_tensors="pt").pixel_values
        expected = F.normalize(model(pixels).last_hidden_state[:, 0], dim=-1) @ unit_BD[0]
    assert_close(reward.score(to_tensor(small)), expected, atol=1e-5, rtol=0)


# ------------------------------------------------------------ ImageReward
def test_imagereward(tmp_path):
    """score_gard of its code, of timm's transformer and a BERT of plain torch."""
    vision, text, head = write_image_reward(tmp_path / "reward")
    name = f"imagereward={tmp_path / 'reward'}#{tmp_path / 'reward'}"
    with pytest.raises(UsageError, match="trust_pickle"):
        Reward(name).load()
    reward = Reward(name, ["a red fox", "an owl"], trust_pickle=True).load()
    image = torch.rand(2, 3, 224, 224, generator=torch.manual_seed(0), requires_grad=True)
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    ids = torch.zeros(2, 35, dtype=torch.long)
    for row, words in enumerate(([2, 5, 6, 7, 3], [2, 9, 8, 3])):  # [CLS] … [SEP]
        ids[row, : len(words)] = torch.tensor(words)
    with torch.no_grad():
        seen = vision.forward_features((image - mean) / std)
        first = text(ids, (ids > 0).long(), seen)[:, 0]
        expected = (head.layers(first)[:, 0] - 0.16717362830052426) / 1.0333394966054072
    assert_close(-reward(image).detach(), expected, atol=1e-4, rtol=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-3
    pictures = [to_pil(F.interpolate(image.detach(), size, mode="bicubic").clamp(0, 1))[0]
                for size in ((300, 260), (180, 240))]  # fmt: skip
    own = transforms.Compose(  # _transform of its code
        [transforms.Resize(224, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224),
         transforms.ToTensor(), transforms.Normalize(mean.flatten(), std.flatten())]
    )  # fmt: skip
    with torch.no_grad():
        seen = vision.forward_features(torch.stack([own(picture) for picture in pictures]))
        first = text(ids, (ids > 0).long(), seen)[:, 0]
        exact = (head.layers(first)[:, 0] - 0.16717362830052426) / 1.0333394966054072
    assert_close(reward.score_pictures(pictures), exact, atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(reward(image)[0], image)
    assert gradient[0].count_nonzero() and not gradient[1].count_nonzero()
    bare = torch.load(tmp_path / "reward" / "ImageReward.pt")
    bare.pop("blip.text_encoder.encoder.layer.1.crossattention.self.key.weight")
    torch.save(bare, tmp_path / "reward" / "ImageReward.pt")
    with pytest.raises(ClipguideError, match="are not ImageReward's"):
        Reward(name, trust_pickle=True).load()


# ------------------------------------------------------------ questions
@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return write_qwen2vl(tmp_path_factory.mktemp("qwen"))


def first_word(folder, picture, question):
    """The probabilities of the first word of the answer, by transformers alone."""
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    said = (
        "<|im_start|> user <|vision_start|><|image_pad|><|vision_end|> "
        f"{question} <|im_end|> <|im_start|>"
    )
    given = processor(text=[said], images=[picture], return_tensors="pt")
    with torch.no_grad():
        out = model.generate(
            **given, max_new_tokens=1, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    words = processor.tokenizer.get_vocab()
    return {w: p for w, p in zip(words, out.logits[0][0].softmax(-1)[list(words.values())])}


def test_vqascore_and_vlm(qwen):
    """P(Yes) of all words, and of yes and no alone, by the model's own generate."""
    pictures = to_pil(images(2, size=56))
    question = "is it a red fox ?"
    found = [first_word(qwen, picture, question) for picture in pictures]
    asked = {"question": "is it {} ?"}
    vqa = Reward(f"vqascore={qwen}", "a red fox", **asked).score_pictures(pictures)
    assert_close(vqa, torch.stack([p["Yes"] for p in found]), atol=1e-5, rtol=1e-3)
    vlm = Reward(f"vlm={qwen}", "a red fox", **asked)
    expected = torch.stack(
        [(p["Yes"] + p["yes"]) / (p["Yes"] + p["yes"] + p["No"] + p["no"]) for p in found]
    )
    assert_close(vlm.score_pictures(pictures), expected, atol=1e-5, rtol=1e-3)
    assert expected[0] != expected[1]
    image = images(2, size=56).float().requires_grad_()
    loss_B = vlm(image)
    assert not loss_B.requires_grad and not vlm.differentiable
    assert_close(loss_B, -expected, atol=1e-4, rtol=1e-3)
    with pytest.raises(UsageError, match="other braces"):
        Reward(f"vlm={qwen}", "a", question="is it {} or {x} ?").load()


def test_what_they_ask_and_count(qwen):
    """VQAScore's own question and its one answer; all spellings of yes and no for vlm."""
    vqa = Reward(f"vqascore={qwen}", "a red fox").load()._objective
    assert vqa.texts == ['Does this figure show "a red fox"? Please answer yes or no.']
    yes, no = (
        {f"{blank}{word}": k for k, (blank, word) in enumerate(product(("", " "), words), first)}
        for first, words in ((100, ("Yes", "yes", "YES")), (200, ("No", "no", "NO")))
    )
    spelled = yes | no
    vqa.processor.tokenizer.encode = lambda word, add_special_tokens: [spelled[word]]
    asked = Question(vqa.model, vqa.processor, ["?"], relative=True)
    assert (asked.yes, asked.no) == (set(yes.values()), set(no.values()))
    assert asked._answer == {yes["Yes"]}


def test_a_model_without_words_for_it(qwen):
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(qwen)
    processor = AutoProcessor.from_pretrained(qwen)
    processor.tokenizer.encode = lambda word, add_special_tokens: [1, 2]
    with pytest.raises(ClipguideError, match="no words for yes and no"):
        Question(model, processor, ["?"], relative=True)


# ------------------------------------------------------------ HPSv3
def test_hpsv3(tmp_path, monkeypatch):
    """The head on the hidden state of its token, by the steps of its package; weights under the
    names of transformers 4.45, and a question where its package has one."""
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    folder = write_qwen2vl(tmp_path / "base")
    whole = Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
    head = seeded(
        lambda: nn.Sequential(
            nn.Linear(32, 12), nn.ReLU(), nn.Dropout(0.05), nn.Linear(12, 6), nn.ReLU(),
            nn.Linear(6, 2),
        )
    )  # fmt: skip
    state = {
        k.replace("model.visual.", "visual.").replace("model.language_model.", "model."): v
        for k, v in whole.state_dict().items()
    }
    state |= {f"rm_head.{k}": v for k, v in head.state_dict().items()}
    save_file({k: v.clone().contiguous() for k, v in state.items()}, tmp_path / "h.safetensors")
    home = tmp_path / "site" / "hpsv3" / "dataset"
    home.mkdir(parents=True)
    (home.parent / "__init__.py").write_text("")
    (home / "data_collator_qwen.py").write_text(
        'raise RuntimeError\nINSTRUCTION = "rate this {text_prompt} "\n'
        'prompt_with_special_token = "is <|Reward|> it"\n'
    )
    monkeypatch.syspath_prepend(str(home.parents[1]))
    pictures = [picture.crop((0, 0, 448, 300)) for picture in to_pil(images(2, size=448))]
    reward = Reward(f"hpsv3={tmp_path / 'h.safetensors'}#{folder}", "a red fox")
    found = reward.score_pictures(pictures)
    processor = AutoProcessor.from_pretrained(folder)
    said = (
        "<|im_start|> user <|vision_start|><|image_pad|><|vision_end|> "
        "rate this a red fox is <|Reward|> it <|im_end|> <|im_start|>"
    )
    for frequencies in whole.buffers():  # as `.to(torch.bfloat16)` of its package leaves them
        frequencies.copy_(frequencies.bfloat16())
    model, expected = whole.model, []
    for picture in pictures:
        picture = picture.resize((560, 392), Image.BICUBIC)  # at least 256 · 28² pixels
        size = {"size": {"shortest_edge": 56 * 56, "longest_edge": 10**7}}
        given = processor(text=[said], images=[picture], images_kwargs=size, return_tensors="pt")
        ids = given["input_ids"]
        seen = ids == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        assert seen.sum() == 20 * 14
        place = ids[0].tolist().index(processor.tokenizer.convert_tokens_to_ids("<|Reward|>"))
        with torch.no_grad():  # the forward pass of its package: it gives no positions
            words = model.get_input_embeddings()(ids)
            vision = model.visual(given["pixel_values"], grid_thw=given["image_grid_thw"])
            words = words.masked_scatter(seen[..., None], vision.pooler_output)
            hidden = model.language_model(inputs_embeds=words).last_hidden_state[0, place]
            expected.append(head(hidden)[0])
    assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert found[0] != found[1] and not reward.differentiable
    with pytest.raises(UsageError, match="cannot read an image of 2010 x 10 pixels.*200"):
        reward.score_pictures([pictures[0].resize((2010, 10))])
    save_file({"x": torch.zeros(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(ClipguideError, match="no head of HPSv3"):
        Reward(f"hpsv3={tmp_path / 'bad.safetensors'}#{folder}").load()


def test_hpsv3_without_its_question(monkeypatch):
    monkeypatch.setattr(hpsv3_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ClipguideError, match="pip install --no-deps hpsv3"):
        hpsv3_file.question_of_package()



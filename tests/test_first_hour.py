"""What people try in the first hour, and that it works, or says in one sentence what does."""

from __future__ import annotations

import pytest
import torch
from clipguide.pipelines.generation import Generation
from clipguide.pipelines.text_to_image import TextToImage
from test_guidance import draw, use
from test_methods import Brightness
from tiny_pipelines import noise, tiny
from torch import nn
from torch.testing import assert_close

from clipguide.clip import load_clip
from clipguide.errors import ClipguideError, UsageError
from clipguide.guidance import Particles, Shortcut, steer
from clipguide.guidance.steer import guide_dtype
from clipguide.objectives import Similarity, TotalVariation, as_objective

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Mean(nn.Module):
    """A module as an objective, with weights of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image_B3HW):
        return -self.scale * image_B3HW.flatten(1).mean(1)


def with_generators(image_B3HW, generators):
    assert len(generators) == len(image_B3HW)
    return -image_B3HW.flatten(1).mean(1)


@pytest.mark.parametrize(
    "objective",
    [lambda image_B3HW: -image_B3HW.mean((1, 2, 3)), with_generators, Mean()],
)
def test_a_function_is_an_objective(pipe, objective):
    use(pipe, "DDIM")
    with steer(pipe, Brightness()):
        expected = draw(pipe)
    with steer(pipe, objective):
        assert_close(draw(pipe), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "wrong", [lambda image: image.mean(), lambda image: image, lambda image: 0.5]
)
def test_a_loss_per_image(pipe, wrong):
    with steer(pipe, wrong), pytest.raises(UsageError, match="a loss per image"):
        draw(pipe)


@pytest.mark.parametrize("method", ["shortcut", "backprop", "noise", "embedding"])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda image: image.detach().mean((1, 2, 3)),
        lambda image: torch.zeros(len(image), requires_grad=True) * 2,  # of something else
    ],
    ids=["detached", "of another"],
)
def test_a_loss_without_a_gradient(pipe, wrong, method):
    """One sentence where a method takes it, and an image by a method that does not."""
    use(pipe, "DDIM")
    with steer(pipe, wrong, method=method) as s, pytest.raises(UsageError, match="no gradient"):
        draw(s, seeds=(3,), steps=2)
    with steer(pipe, wrong, method="best-of", number=1) as s:
        assert draw(s, seeds=(3,), steps=2).isfinite().all()


def test_not_an_objective(pipe):
    with pytest.raises(UsageError, match="prompts, an Objective or a function"):
        as_objective(3)


@pytest.mark.parametrize("other", ["mini", None, torch.nn.Linear(1, 1)])
def test_what_is_no_pipeline_is_said_to_be_none(other):
    with pytest.raises(UsageError, match="not a (str|NoneType|Linear): load one"):
        steer(other, "a fox")


def test_a_named_guide_computes_in_what_the_pipeline_does(pipe, clip_folder, clip):
    """In bfloat16 beside 16 bits, unless its name says what else; one handed in is as it is."""
    use(pipe, "DDIM")
    name = str(clip_folder)
    for dtype, expected in (
        (torch.float16, "bfloat16"), (torch.bfloat16, "bfloat16"), (torch.float32, "float32"),
    ):  # fmt: skip
        pipe.to(dtype)
        assert guide_dtype(pipe) == expected
    assert steer(pipe, "a red fox", clip=name).guide.clip.dtype == torch.float32
    half = steer(pipe, "a red fox", clip=f"{name}@cpu:bfloat16", strength=0.3)
    assert half.guide.clip.dtype == torch.bfloat16
    assert steer(pipe, "a fox", clip=clip).guide.clip is clip
    pipe.to(torch.bfloat16)
    plain = draw(pipe)
    with half:
        steered = draw(pipe)
    whole = Similarity(clip, "a red fox")
    assert (whole.score(steered) > whole.score(plain)).all()


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (5, {}, "A prompt is a text, a Prompt, or an image: .*, not int"),
        (["a fox", None], {}, "a PIL image or a tensor, not NoneType"),
        ("", {}, "The prompt is empty"),
        ([], {}, "no prompts"),
        ("a fox", {"generators": "x"}, "generators is a torch.Generator"),
        ("a fox", {"generators": [torch.Generator(), 3]}, "generators is a torch.Generator"),
        ("a fox", {"on_step": 3}, "on_step is a function"),
        ("a fox", {"tape": 3}, "The tape is a folder"),
        ("a fox", {"score_every": "2"}, "score_every must be a whole number from 1"),
    ],
)
def test_what_is_of_another_kind_is_refused_before_a_clip_is_loaded(
    pipe, objective, settings, message
):
    with pytest.raises(ClipguideError, match=message):
        steer(pipe, objective, clip="a CLIP that is not there", **settings)


def test_objectives_are_reckoned_with():
    image = torch.rand(2, 3, 8, 8)
    a, b = Brightness(), TotalVariation()
    assert_close((-a)(image), -a(image))
    assert_close((a - b)(image), a(image) - b(image))
    assert_close((a / 2)(image), a(image) / 2)
    assert_close(sum([a, b, a])(image), a(image) + b(image) + a(image))
    with pytest.raises(UsageError, match="not multiplied"):
        a * b
    with pytest.raises(UsageError, match="divided by 0"):
        a / 0
    with pytest.raises(TypeError):
        a - 1


def test_they_can_be_read(clip, pipe):
    shown = repr(-Similarity(clip, "a fox | fog:-0.5") + 0.1 * TotalVariation())
    assert shown.startswith("-1 * Similarity('a fox | fog:-0.5'; ") and "0.1 * Total" in shown
    s = steer(pipe, "a fox", clip=clip, method="particles", number=2)
    assert "StableDiffusionPipeline by Particles(" in repr(s) and "closed" in repr(s)
    with s:
        assert "open" in repr(s)
    assert repr(clip) == f"<Clip {clip.name} on cpu, float32>"
    assert repr(Shortcut(strength="0.1@0..0.5")).startswith(
        "Shortcut(window=(0.1, 1.0), every=1, strength=Schedule('0.1@0..0.5'), inner=1"
    )


def test_a_decoder_of_ones_own(pipe):
    use(pipe, "DDIM")
    with steer(pipe, Brightness()):
        expected = draw(pipe)
    with steer(pipe, Brightness(), decoder=lambda z: pipe.vae.decode(z).sample / 2 + 0.5):
        assert_close(draw(pipe), expected, atol=1e-3, rtol=0)
    with steer(pipe, Brightness(), decoder=lambda z: z):
        with pytest.raises(UsageError, match=r"shape \(N, 3, height, width\)"):
            draw(pipe)


@pytest.mark.parametrize(
    ("method", "options"),
    [(Particles, {"number": 2}), ("particles", {"number": 2}), (Particles(number=2), {})],
)
def test_a_method_by_class_name_and_options(pipe, method, options):
    use(pipe, "Euler a")
    with steer(pipe, Brightness(), method=Particles(number=2)):
        expected = draw(pipe)
    with steer(pipe, Brightness(), method=method, **options) as s:
        assert torch.equal(draw(pipe), expected) and s.method == Particles(number=2)
    with pytest.raises(UsageError, match="particles has no option numbr. Did you mean number"):
        steer(pipe, Brightness(), method="particles", numbr=2)
    with pytest.raises(UsageError, match="A method is a name"):
        steer(pipe, Brightness(), method=3)


def test_one_generator_for_all_views(pipe, clip):
    def drawn(generators, seeds=(3, 4)):
        with steer(pipe, "a red fox", clip=clip, generators=generators):
            return draw(pipe, seeds=seeds)

    one = drawn(torch.Generator().manual_seed(7))
    assert torch.equal(drawn(torch.Generator().manual_seed(7)), one)
    alone = drawn(torch.Generator().manual_seed(7), seeds=(3,))
    assert_close(one[:1], alone, atol=1e-4, rtol=0)
    two = drawn([torch.Generator().manual_seed(k) for k in (7, 8)])
    assert torch.equal(one, two)


def test_a_similarity_as_judge(pipe, clip, judge):
    judged = Similarity(judge, "a wolf", views=None)
    with steer(pipe, "a red fox", clip=clip, judge=judged) as s:
        image = draw(pipe)
    assert s.judge is judged and s.report.judge_score_B.shape == (2,)
    with steer(pipe, Brightness(), judge=judged) as s:
        draw(pipe)
    assert s.report.judge_score_B is not None and image.isfinite().all()


def test_a_clip_by_its_name_on_the_hub(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="hf download openai/clip-vit-base-patch32"):
        load_clip("openai/clip-vit-base-patch32")
    with pytest.raises(UsageError, match="There is no CLIP 'ViT-B-32/laion2b'. Did you mean"):
        load_clip("ViT-B-32/laion2b")


def test_types_of_torch(clip_folder):
    clip = load_clip(str(clip_folder), dtype=torch.bfloat16, device=torch.device("cpu"))
    assert clip.dtype == torch.bfloat16
    with pytest.raises(UsageError, match="There is no dtype 'int64'"):
        load_clip(str(clip_folder), dtype=torch.int64)


def test_a_pipeline_and_a_clip_that_are_loaded(pipe, clip, judge):
    draw_ours = TextToImage(model=pipe, clip=clip, judge=judge)
    (picture,) = draw_ours("a fox", steps=3, seed=7)
    assert draw_ours.pipe is pipe and draw_ours.clip is clip and draw_ours.judge is judge
    assert picture.recipe.clip == clip.name and picture.judge_score is not None
    again = draw_ours.replay(picture.recipe)
    assert again.image.tobytes() == picture.image.tobytes()


def test_settings_are_one_thing(pipe, clip):
    """By name or as one frozen set: the same image; a name that there is not is said."""
    model = TextToImage(model=pipe, clip=clip)
    settings = Generation(steps=3, seed=7, strength="0.2@0..0.6", cutouts=2)
    (one,) = model("a red fox", settings)
    (other,) = model("a red fox", steps=3, seed=7, strength="0.2@0..0.6", cutouts=2)
    assert one.image.tobytes() == other.image.tobytes()
    assert model.replay(one.recipe).image.tobytes() == one.image.tobytes()
    (changed,) = model("a red fox", settings, seed=8)
    assert changed.seed == 8
    with pytest.raises(UsageError, match="no setting 'sed'. Did you mean seed"):
        model("a red fox", sed=7)
    with pytest.raises(UsageError, match="made of a function"):
        model("a red fox", strength=lambda noise: 0.1)
    assert Generation.of(one.recipe).changed({"size": None}).steps == 3


@pytest.mark.parametrize(("name", "size"), [("FLUX", 128), ("SD3", 48), ("SDXL", 32)])
def test_text_to_image_of_other_families(name, size, clip):
    """There are no text encoders here, so that a class of the test encodes the prompts."""
    pipe, given = tiny(name)
    embeds = {k: v[:1] for k, v in given.items() if k.endswith("embeds")}

    class Encoded(type(pipe)):
        def encode_prompt(self, *args, **kwargs):
            found = [embeds.get(k) for k in ORDER[name]]
            return (*found, torch.zeros(found[0].shape[1], 3)) if name == "FLUX" else tuple(found)

        def check_inputs(self, *args, **kwargs):
            pass

    pipe.__class__ = Encoded
    model = TextToImage(model=pipe, clip=clip)
    (picture,) = model("a fox", steps=2, size=size)
    assert picture.image.size == (size, size) and picture.recipe.method == "shortcut"


ORDER = {
    "FLUX": ("prompt_embeds", "pooled_prompt_embeds"),
    "SD3": (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ),
}
ORDER["SDXL"] = ORDER["SD3"]


def test_hugging_faces_model_stays_as_it_is(clip_hf):
    from clipguide.clip.hf import wrap_hf_clip

    model, processor, tokenizer = clip_hf
    model.train()
    before = {k: (v.dtype, v.data_ptr()) for k, v in model.state_dict().items()}
    clip = wrap_hf_clip(model, processor, tokenizer, name="mine", dtype="bfloat16")
    assert clip.encode_image(noise(1, 3, 32, 32).sigmoid()).isfinite().all()
    assert {k: (v.dtype, v.data_ptr()) for k, v in model.state_dict().items()} == before
    assert model.training and all(p.requires_grad for p in model.parameters())
    shared = wrap_hf_clip(model, processor, tokenizer, name="mine")
    theirs = {p.data_ptr() for p in model.parameters() if p.ndim != 4}
    ours = {p.data_ptr() for p in shared._model.parameters() if p.ndim != 4}
    assert theirs == ours


@pytest.fixture
def clip_hf(tmp_path):
    """A CLIPModel of transformers with its processor and tokenizer."""
    import transformers
    from hf_folder import write_hf_clip

    folder = write_hf_clip(tmp_path / "hf")
    return (
        transformers.CLIPModel.from_pretrained(folder),
        transformers.AutoImageProcessor.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )

"""benchmarks/classic.py: each piece against a closed form or a reference, and the loop whole."""

from __future__ import annotations

import json
import math

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torchvision.transforms import functional as TF
from typer.testing import CliRunner

from benchmarks import classic, loops
from benchmarks.classic import Classic, cutouts, homography, prompt_loss, recolour, vector_quantize


@pytest.fixture(scope="module")
def vq():
    torch.manual_seed(0)
    model = diffusers.VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=16,
        vq_embed_dim=4,
    ).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model.requires_grad_(False)


@pytest.fixture
def make(vq, clip):
    def make(seed=0, **settings):
        settings = {"height": 24, "width": 32, "cutouts": 8, **settings}
        generator = torch.Generator().manual_seed(seed)
        return Classic(vq, clip, ["a red fox"], generator=generator, **settings)

    return make


def test_the_loss_falls(make):
    """Adam's rate is of the latents' size here: a twentieth of it is enough."""
    loop = make(lr=0.02)
    torch.manual_seed(0)
    losses = torch.stack([loop.step() for _ in range(60)])
    assert losses[-15:].mean() < losses[:15].mean() - 0.002
    image_13HW = loop.image()
    assert image_13HW.shape == (1, 3, 24, 32) and not image_13HW.requires_grad
    assert image_13HW.min() >= 0 and image_13HW.max() <= 1


def test_latents_stay_within_the_codebook(make, vq):
    codes_KD = vq.quantize.embedding.weight
    loop = make(lr=5.0)
    loop.step()
    latents_PD = loop.z_1Dhw.detach().movedim(1, 3).flatten(0, 2)
    assert (latents_PD >= codes_KD.amin(0)).all() and (latents_PD <= codes_KD.amax(0)).all()
    at_a_bound = (latents_PD == codes_KD.amin(0)) | (latents_PD == codes_KD.amax(0))
    assert at_a_bound.float().mean() > 0.9


def test_begins_as_codes_or_as_told(make, vq):
    """Codes of a generator, of the global one, or latents that are given, and copied."""
    first = make(1).z_1Dhw
    assert torch.equal(first, make(1).z_1Dhw) and not torch.equal(first, make(2).z_1Dhw)
    code_1hwD = vector_quantize(first.movedim(1, 3), vq.quantize.embedding.weight)
    assert torch.equal(code_1hwD, first.movedim(1, 3))
    given = torch.randn(1, 4, 12, 16)
    loop = make(z=given)
    loop.step()
    assert not torch.equal(loop.z_1Dhw, given)


def test_the_global_generator_repeats(make):
    def run(seed):
        loop = make()
        torch.manual_seed(seed)
        return [loop.step().item() for _ in range(3)], loop.image()

    (losses, image_13HW), (again, same_13HW), (other, _) = run(1), run(1), run(2)
    assert losses == again and torch.equal(image_13HW, same_13HW)
    assert losses != other


def test_vector_quantize_by_hand():
    """(0.9, 0) is nearest to (1, 0); the gradient is the one at the code, unchanged."""
    codes_KD = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    latents_1hwD = torch.tensor([0.9, 0.0]).view(1, 1, 1, 2).requires_grad_()
    code_1hwD = vector_quantize(latents_1hwD, codes_KD)
    assert torch.equal(code_1hwD.flatten(), codes_KD[1])
    (code_1hwD.square().sum() + 3 * code_1hwD[..., 1].sum()).backward()
    assert_close(latents_1hwD.grad.flatten(), torch.tensor([2.0, 3.0]), atol=0, rtol=0)


@pytest.mark.parametrize("weight", [1.0, 0.5, -2.0])
def test_prompt_loss_closed_form(weight):
    """2·asin²(‖u − t‖/2) is half the squared angle: here 0.3 and 1.1, of vectors of any length."""
    angle_N = torch.tensor([0.3, 1.1], dtype=torch.float64, requires_grad=True)
    features_N2 = 3 * torch.stack([angle_N.cos(), angle_N.sin()], 1)
    text_2 = torch.tensor([7.0, 0.0], dtype=torch.float64)
    loss = prompt_loss(features_N2, text_2, weight)
    assert_close(loss, (weight * angle_N.square() / 2).mean())
    (gradient_N,) = torch.autograd.grad(loss, angle_N)
    assert_close(gradient_N, weight * angle_N / 2)  # the mean of two


def test_prompt_loss_stops():
    """Below `stop` a cutout is counted, and pulls no more."""
    angle_N = torch.tensor([0.3, 1.1], dtype=torch.float64, requires_grad=True)
    features_N2 = torch.stack([angle_N.cos(), angle_N.sin()], 1)
    text_2 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    loss = prompt_loss(features_N2, text_2, 1.0, 0.1)  # 0.3² / 2 < 0.1
    assert_close(loss, (angle_N.square() / 2).mean())
    (gradient_N,) = torch.autograd.grad(loss, angle_N)
    assert_close(gradient_N, torch.tensor([0, 1.1 / 2]).double())


@pytest.mark.parametrize("height, width", [(24, 32), (64, 48), (32, 32)])
def test_cutouts_are_squares(height, width):
    torch.manual_seed(0)
    assert cutouts(torch.rand(1, 3, height, width), 32, 5).shape == (5, 3, 32, 32)


def test_cutouts_without_augmentations(monkeypatch):
    """All are the image, pooled: of the blocks of 2 x 2, the mean of their mean and maximum."""
    monkeypatch.setattr(classic, "P", 0.0)
    monkeypatch.setattr(classic, "NOISE", 0.0)
    image_13HW = torch.rand(1, 3, 16, 16)
    block_3ssP = image_13HW[0].unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    pooled_3ss = (block_3ssP.mean(3) + block_3ssP.amax(3)) / 2
    expected_N3ss = pooled_3ss.expand(4, -1, -1, -1)
    assert_close(cutouts(image_13HW, 8, 4), expected_N3ss, atol=1e-5, rtol=0)


def test_cutouts_augmented():
    """By size: noise of up to 0.1, erased alike or not at all, and shown from aside on black."""
    torch.manual_seed(0)
    view_N3ss = cutouts(torch.full((1, 3, 64, 64), 0.7), 32, 200)
    deviation_N = view_N3ss[:, :, 14:18, 14:18].flatten(1).std(1)
    assert deviation_N.max() < 0.15
    image_13HW = torch.full((1, 3, 64, 64), 0.7)
    alike = []
    for _ in range(40):
        black_Nss = (cutouts(image_13HW, 32, 16).mean(1) < 0.35).all(0)
        alike.append(black_Nss.float().mean().item())
    hit = [share for share in alike if share > 0.05]
    assert 20 <= len(hit) <= 36 and max(hit) < 0.45  # of 40, by a probability of 0.7


def test_recolour_by_reference():
    """The hue against torchvision's; the saturation by its definition, (max − min) / max."""
    torch.manual_seed(0)
    view_N3ss = torch.rand(2, 3, 8, 8)
    hue_N, one_N = torch.tensor([0.1, -0.07]), torch.ones(2)
    turned = [TF.adjust_hue(v, h) for v, h in zip(view_N3ss, hue_N.tolist(), strict=True)]
    assert_close(recolour(view_N3ss, hue_N, one_N), torch.stack(turned), atol=1e-5, rtol=0)

    def saturation(view):
        return 1 - view.amin(1) / view.amax(1)

    scaled_N3ss = recolour(view_N3ss, 0 * one_N, torch.tensor([0.9, 1.1]))
    expected_Nss = saturation(view_N3ss) * torch.tensor([0.9, 1.1])[:, None, None]
    assert_close(saturation(scaled_N3ss), expected_Nss.clamp_max(1), atol=1e-5, rtol=0)
    assert_close(scaled_N3ss.amax(1), view_N3ss.amax(1))
    assert_close(recolour(view_N3ss, 0 * one_N, one_N), view_N3ss, atol=1e-5, rtol=0)


def test_homography():
    """Four places go to four others, exactly."""
    torch.manual_seed(0)
    from_N42 = classic.CORNERS_42 * (1 - 0.7 * torch.rand(5, 4, 2))
    to_N42 = classic.CORNERS_42.expand(5, 4, 2)
    moved_N43 = F.pad(from_N42, (0, 1), value=1) @ homography(from_N42, to_N42).mT
    assert_close(moved_N43[..., :2] / moved_N43[..., 2:], to_N42, atol=1e-4, rtol=0)


def test_what_the_clip_sees(clip):
    """Normalised as the CLIP's own, and not clamped."""
    view_N3ss = torch.rand(2, 3, clip.image_size, clip.image_size)
    unit_ND = F.normalize(classic.encode(clip, view_N3ss), dim=1)
    assert_close(unit_ND, clip.encode_image(view_N3ss))
    assert not torch.equal(classic.encode(clip, 2 * view_N3ss), classic.encode(clip, view_N3ss * 0))


def test_prompts_add_up(vq, clip):
    settings = {"height": 24, "width": 32, "z": torch.zeros(1, 4, 12, 16)}
    both = Classic(
        vq, clip, [("a red fox", 1.0, -math.inf), ("a dog", -0.5, -math.inf)], **settings
    )
    fox, dog = (Classic(vq, clip, [text], **settings) for text in ("a red fox", "a dog"))
    view_N3ss = torch.rand(3, 3, clip.image_size, clip.image_size)
    expected = fox.loss(view_N3ss) - 0.5 * dog.loss(view_N3ss)
    assert_close(both.loss(view_N3ss), expected)


def test_speed_runs(tiny_mini, tmp_path):
    """On toys: a row for the classic loop and ours, and six pieces that make up a step."""
    out = tmp_path / "speed.json"
    toys = ["speed", "--quick", "--side", "32", "--views", "2", "--steps", "1"]
    result = CliRunner().invoke(loops.app, [*toys, "--ways", "ours", "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert list(rows) == ["classic", "ours"]
    for name, row in rows.items():
        assert f"| {name} |" in result.output
        assert len(row["pieces"]) == len(loops.PIECES) and min(map(min, row["pieces"])) >= 0
    assert CliRunner().invoke(loops.app, ["speed", "--ways", "faster"]).exit_code == 2


def test_folded_compares_the_same_guide(tiny_mini):
    told = CliRunner().invoke(loops.app, ["folded", "--times", "1", "--views", "2"])
    assert told.exit_code == 0 and float(told.output.split(":")[1]) > 0


def test_speed_compares_the_same_work(vq, clip):
    """As many views in both, of the same size, and a gradient that reaches the latents."""
    for way in loops.WAYS[:2]:
        loop = loops.running(way, vq, clip, side=32, views=3)
        image_13HW = loop.decode()
        view_N3ss = loop.views(image_13HW)
        assert view_N3ss.shape == (3, 3, clip.image_size, clip.image_size)
        assert loop.loss(view_N3ss).requires_grad
        assert (loops.pieces(loop, "cpu") >= 0).all()

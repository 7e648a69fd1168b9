"""benchmarks/peers.py: what can be proved without the peers, by small references of our own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hf_folder import write_hf_clip
from PIL import Image
from torch.testing import assert_close
from typer.testing import CliRunner

from benchmarks import mistakes, peers
from clipguide import load_clip
from clipguide.zero_shot import Classifier


def drawing(seed: int = 0, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Blocks of colour within a white margin."""
    random = np.random.default_rng(seed)
    blocks = Image.fromarray(random.integers(0, 200, (4, 4, 3), dtype=np.uint8))
    sheet = Image.new("RGB", size, "white")
    inner = (size[0] - 16, size[1] - 16)
    sheet.paste(blocks.resize(inner, Image.Resampling.NEAREST), (8, 8))
    return sheet


@pytest.fixture
def data():
    pictures = [drawing(seed) for seed in range(6)]
    names = ["fox", "red fox", "owl", "bee", "sun", "key", "tent"]
    return peers.Data("drawings", pictures, names, [0, 1, 2, 3, 3, 5])


def test_accuracies_by_sorting():
    """Against ranks in a sorted list and scikit-learn's definition of balanced accuracy."""
    score_BK = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    target_B = torch.arange(50) % 7  # two names have no image
    rank = [
        sorted(row, reverse=True).index(row[k])
        for row, k in zip(score_BK.tolist(), target_B.tolist())
    ]
    of = [[r for r, t in zip(rank, target_B.tolist()) if t == k] for k in range(7)]
    found = peers.accuracies(score_BK, target_B)
    assert found["acc1"] == sum(r == 0 for r in rank) / 50
    assert found["acc5"] == sum(r < 5 for r in rank) / 50
    by_hand = sum(sum(r == 0 for r in one) / len(one) for one in of) / 7
    assert found["mean_per_class_recall"] == pytest.approx(by_hand, abs=1e-12)


def test_ties_count_against():
    same_BK = torch.zeros(4, 6)
    assert peers.accuracies(same_BK, torch.arange(4))["acc5"] == 0
    found = peers.recalls(torch.zeros(12, 12), torch.arange(12))
    assert set(found.values()) == {0.0}


def test_few_names_have_no_top_5():
    assert np.isnan(peers.accuracies(torch.eye(4), torch.arange(4))["acc5"])


def test_recalls_by_sorting():
    """Text n belongs to image n // 3; each query looks through its own sorted list."""
    score_NB = torch.randn(60, 20, generator=torch.Generator().manual_seed(1))
    found = peers.recalls(score_NB, torch.arange(60) // 3)
    for k in peers.RECALLS:
        best = score_NB.argsort(1, descending=True)[:, :k]
        images = np.mean([n // 3 in best[n].tolist() for n in range(60)])
        best = score_NB.T.argsort(1, descending=True)[:, :k] // 3
        texts = np.mean([b in best[b].tolist() for b in range(20)])
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(images)
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(texts)


def test_zero_shot_as_clip_benchmark_spells_it(tmp_path, data):
    """open_clip's own model, one class at a time: normalise, average, divide by the length."""
    import open_clip

    folder = peers.write_vit(tmp_path / "vit")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    columns = []
    with torch.no_grad():
        for name in data.names:
            said = tokenizer([t.format(name) for t in peers.TEMPLATES["seven"]])
            unit_TD = model.eval().encode_text(said, normalize=True)
            columns.append(unit_TD.mean(0) / unit_TD.mean(0).norm())
        seen = torch.stack([transform(picture) for picture in data.pictures])
        cosine_BK = model.encode_image(seen, normalize=True) @ torch.stack(columns, 1)
    clip = load_clip(str(folder))
    classifier = Classifier(clip, data.names, templates=peers.TEMPLATES["seven"])
    ours_BK = classifier.cosines(clip.encode_pictures(data.pictures))
    assert_close(ours_BK, cosine_BK, atol=1e-6, rtol=0)
    assert ours_BK.std() > 1e-3  # a model that tells things apart
    figures = peers.ours(folder, data, peers.TEMPLATES["seven"])
    assert figures == peers.accuracies(cosine_BK, torch.tensor(data.target))


def test_texts_of_pictures_own(data, tmp_path):
    """A text for each image, and three by default, against cosines ranked by hand."""
    assert data.texts[3] == ["a bee", "a drawing of a bee", "somebody drew a bee here"]
    own = ["a red fox", "a blue fox", "owl", "a green bee", "a bee", "key"]
    asked = peers.replace(data, own=own)
    assert asked.texts == [[text] for text in own]
    alone = peers.without_twins(asked)
    assert alone.own == [own[i] for i in (0, 1, 2, 3, 5)]
    assert [alone.names[k] for k in alone.target] == ["fox", "red fox", "owl", "bee", "key"]
    folder = peers.write_vit(tmp_path / "vit")
    clip = load_clip(str(folder))
    cosine_NB = clip.encode_text(own) @ clip.encode_pictures(data.pictures).T
    found = peers.ours(folder, asked, None)
    ranks = [int((row > row[n]).sum()) for n, row in enumerate(cosine_NB)]
    for k in peers.RECALLS:
        share = sum(rank < k for rank in ranks) / len(own)
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(share)


@pytest.mark.skipif(not peers.BUILT.exists(), reason="the drawings are not built")
def test_styles_by_colour_are_some_of_those_by_name():
    plain = peers.style_data("EmojiOne v1", coloured=False)
    coloured = peers.style_data("EmojiOne v1", coloured=True)
    assert len(set(plain.own)) == len(plain.own) == len(plain.pictures) and plain.own == plain.names
    assert 0.2 < len(coloured.own) / len(plain.own) < 0.9
    assert {d.split(" ", 2)[2] for d in coloured.own} <= set(plain.own)
    assert "a red heart suit" in coloured.own or "a red apple" in coloured.own


def test_clip_score_as_torchmetrics_spells_it(tmp_path):
    """max(cosine, 0) by transformers' own get_*_features of images of the model's size; a text
    that is too long and loses its end token, as torchmetrics cuts it, is any other one."""
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = write_hf_clip(tmp_path / "clip")
    model, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    files = [f"{i}.png" for i in range(4)]
    for i, file in enumerate(files):
        drawing(i, (32, 32)).save(tmp_path / file)
    texts = ["a red fox", "an owl", "a bee", "the sun"]

    def unit(found) -> torch.Tensor:
        features_BD = getattr(found, "pooler_output", found)
        return features_BD / features_BD.norm(dim=-1, keepdim=True)

    with torch.no_grad():
        pixel_B3HW = processor(
            images=[Image.open(tmp_path / file) for file in files], return_tensors="pt"
        )["pixel_values"]
        image_BD = unit(model.get_image_features(pixel_B3HW))
        text_BD = unit(
            model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt"))
        )
        score_B = (image_BD * text_BD).sum(1).clamp(min=0)
        said = [f"{text} {'and more ' * 9}" for text in texts]
        long = tokenizer(said, padding=True, return_tensors="pt")
        cut_BL = long.input_ids[:, : model.config.text_config.max_position_embeddings]
        lost_BD = unit(model.get_text_features(cut_BL))
    found = peers.compare(
        load_clip(str(folder)), processor, tmp_path, list(zip(files, texts)), score_B, 0.0
    )
    assert found["difference"] < 1e-5 and found["difference by Pillow"] < 1e-5
    assert found["levels"] == 0 and found["distinct of ours"] == 4
    assert_close(lost_BD, lost_BD[:1].expand_as(lost_BD))


def test_mistakes_do_what_they_say():
    picture = drawing(size=(48, 40))
    assert mistakes._turned(picture).size == (40, 48)
    assert mistakes._loaded(mistakes._turned(picture)).tobytes() == picture.tobytes()
    cut_out = mistakes._cut_out(picture)
    assert mistakes._loaded(cut_out).tobytes() == picture.tobytes()
    assert cut_out.convert("RGB").getpixel((0, 0)) == (0, 0, 0)
    assert cut_out.convert("RGB").getpixel((20, 20)) == picture.getpixel((20, 20))
    assert mistakes._oblong(drawing()).size == (53, 40)
    assert mistakes._oblong(picture) is picture


def test_mistakes_are_measured(clip, data):
    """No change measures as none, another image's vectors as another's."""
    right = clip.encode_pictures
    none = mistakes.measure(mistakes.Mistake("none", right, right), clip, data, {})
    assert none["mean"] == none["max"] == none["renamed"] == 0
    assert none["top-1 before"] == none["top-1 after"]
    rolled = mistakes.Mistake("rolled", right, lambda p: right(p).roll(1, 0))
    found = mistakes.measure(rolled, clip, data, {})
    cosine_BK = right(data.pictures) @ clip.encode_text(data.names).T
    change = [abs(cosine_BK[b, k] - cosine_BK[b - 1, k]) for b, k in enumerate(data.target)]
    assert found["mean"] == pytest.approx(float(sum(change) / 6), abs=1e-6)
    assert found["max"] == pytest.approx(float(max(change)), abs=1e-6)


def test_every_mistake_runs(tiny_mini, monkeypatch, tmp_path):
    for i, name in enumerate(["fox", "owl", "n02119022_red_fox"]):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        drawing(i).save(tmp_path / "pictures" / f"{name}.png")
    monkeypatch.setattr(mistakes, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(peers, "OUT", tmp_path / "peers.json")
    monkeypatch.setattr(peers, "DOCUMENT", tmp_path / "peers.md")
    marks = "a\n<!-- mistakes -->\nold\n<!-- end of mistakes -->\nb\n"
    (tmp_path / "peers.md").write_text(marks)
    result = CliRunner().invoke(mistakes.app, ["--photos", str(tmp_path / "pictures")])
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "peers.json").read_text())["mistakes"]
    assert facts["scale"][0]["names"] == 3
    rows = [row for row in facts["rows"] if row["data"] == "photographs"]
    assert len(rows) == 10  # all but that of transparency
    document = (tmp_path / "peers.md").read_text()
    assert document.startswith("a\n<!-- mistakes -->\n| mistake |") and document.endswith("b\n")
    assert "old" not in document


def test_a_table_goes_between_its_marks_and_nowhere_else():
    empty = "a\n<!-- x -->\n<!-- end of x -->\nb\n<!-- y -->\nkept\n<!-- end of y -->\nc\n"
    once = peers.insert(empty, "x", "| 1 |")
    assert once == empty.replace("<!-- x -->\n", "<!-- x -->\n| 1 |\n")
    assert peers.insert(peers.insert(empty, "x", "| 2 |\n| 3 |"), "x", "| 1 |") == once
    assert peers.insert(empty, "z", "| 1 |") == empty


def test_the_document_has_the_figures():
    """docs/peers.md holds the tables of peers.json, and they say what it promises."""
    facts = json.loads(peers.OUT.read_text())
    document = peers.DOCUMENT.read_text()
    tables = {
        "clip-benchmark": peers.table_of_clip_benchmark,
        "torchmetrics": peers.table_of_torchmetrics,
        "mistakes": mistakes.table_of_mistakes,
    }
    for command, table in tables.items():
        assert "\n".join(table(facts[command])) in document
    assert all(row["equal"] for row in facts["clip-benchmark"]["rows"])
    for row in facts["torchmetrics"]["rows"]:
        bar = 1e-5 if row["group"] != "one picture, too long texts" else 1
        assert row["difference by Pillow"] < bar

"""What a CLIP is fine-tuned on: read, looked over, split, and made into batches."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import tarfile
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from clipguide import near
from clipguide.clip import load_parts
from clipguide.errors import ClipguideError, UsageError
from clipguide.finetune import duplicates, sources
from clipguide.finetune.batches import Augment, Batches
from clipguide.finetune.data import Dataset, Example, Report, read, split
from clipguide.finetune.inspection import cut, inspect

SIDE = 48


def drawing(number: int, *, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """An image that is like no other of another number."""
    random = np.random.default_rng(number)
    picture = Image.new("RGB", size, tuple(random.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        (x, y), (w, h) = random.integers(0, size, 2), random.integers(6, 30, 2)
        draw.rectangle((x, y, x + w, y + h), fill=tuple(random.integers(0, 256, 3).tolist()))
    return picture


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def class_folder(folder, counts: dict[str, int], *, size=(SIDE, SIDE)):
    number = itertools.count(1000 * sum(map(ord, folder.name)))
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            drawing(next(number), size=size).save(folder / name / f"{i}.png")
    return folder


def table(file, rows: list[dict], **settings):
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], **settings)
        writer.writeheader()
        writer.writerows(rows)
    return file


def captioned(folder, count: int = 6) -> list[dict]:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        drawing(i).save(folder / f"{i}.png")
    return [{"image": f"{i}.png", "caption": f"drawing {i}"} for i in range(count)]


def add(archive: tarfile.TarFile, name: str, content: bytes | str) -> None:
    content = content.encode() if isinstance(content, str) else content
    about = tarfile.TarInfo(name)
    about.size = len(content)
    archive.addfile(about, io.BytesIO(content))


def refused(source, **settings) -> str:
    """The sentence by which a source is refused."""
    with pytest.raises(UsageError) as found:
        read(source, **settings)
    said = str(found.value)
    assert said.endswith(("?", ".")) and "Traceback" not in said and "\n" not in said
    return said


@pytest.fixture(scope="module")
def parts(clip_folder):
    return load_parts(str(clip_folder))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return class_folder(tmp_path_factory.mktemp("x") / "three", {"fox": 9, "hen": 5, "red_owl": 2})


# sources


def test_folder_of_classes(three):
    found = read(three)
    assert found.classes == ["fox", "hen", "red owl"]
    assert found.report.counts == {"fox": 9, "hen": 5, "red owl": 2} and len(found) == 16
    for example in found.examples:
        content = open(example.path, "rb").read()
        assert example.digest == hashlib.sha256(content).hexdigest()
        assert found.classes[example.label] == example.caption
        assert png(example.picture()) == png(Image.open(example.path))


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "jsonl", "parquet", "metadata"])
def test_tables_say_the_same(tmp_path, kind):
    rows = captioned(tmp_path / "a")
    for row in rows:
        row["image"] = f"a/{row['image']}"
    file = tmp_path / {"semicolon": "t.csv", "metadata": "metadata.csv"}.get(kind, f"t.{kind}")
    if kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet

        pa.parquet.write_table(pa.Table.from_pylist(rows), file)
    else:
        table(file, rows, delimiter={"semicolon": ";", "tsv": "\t"}.get(kind, ","))
    found = read(tmp_path if kind == "metadata" else file)
    assert [e.caption for e in found.examples] == [row["caption"] for row in rows]
    assert [e.path for e in found.examples] == [str(tmp_path / row["image"]) for row in rows]
    assert found.classes == [] and {e.label for e in found.examples} == {None}


def test_usual_columns_and_given_ones(tmp_path):
    captioned(tmp_path)
    rows = [
        {"id": i, "FilePath": f"{i}.png", "Title": f"t {i}", "kind": "ab"[i % 2], "note": f"n {i}"}
        for i in range(6)
    ]
    file = table(tmp_path / "t.csv", rows)
    assert read(file).examples[1].caption == "t 1"
    assert read(file, caption_column="note").examples[1].caption == "n 1"
    assert read(file, label_column="kind").classes == ["a", "b"]


def test_hub_parquet_of_bytes_and_numbered_labels(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    rows = [{"image": {"bytes": png(drawing(i)), "path": None}, "label": i % 2} for i in range(6)]
    features = {"info": {"features": {"label": {"names": ["fox", "hen"], "_type": "ClassLabel"}}}}
    whole = pa.Table.from_pylist(rows)
    whole = whole.replace_schema_metadata({"huggingface": json.dumps(features)})
    for i in range(2):
        pa.parquet.write_table(whole[i * 3 : i * 3 + 3], tmp_path / f"train-{i}.parquet")
    found = read(tmp_path / "train-*.parquet")
    assert [e.caption for e in found.examples] == ["fox", "hen"] * 3
    assert png(found.examples[4].picture()) == png(drawing(4))


def test_several_captions_of_one_picture(tmp_path):
    captioned(tmp_path)
    rows = [{"image": f"{i}.png", "caption": [f"a {i}", f"b {i}"]} for i in range(4)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    looked = []
    found = read(tmp_path / "t.jsonl", progress=lambda done, total: looked.append((done, total)))
    assert [e.caption for e in found.examples][:3] == ["a 0", "b 0", "a 1"]
    assert looked[-1] == (4, 4) and found.report.pictures == 4 and not found.report.exact


def test_captions_beside_pictures(tmp_path):
    captioned(tmp_path)
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text(f"beside\n {i}\n")
    assert read(tmp_path).examples[2].caption == "beside 2"


def test_webdataset_tars(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard:03}.tar", "w") as archive:
            for i in range(3 * shard, 3 * shard + 3):
                add(archive, f"a/{i}.png", png(drawing(i)))
                add(archive, f"a/{i}.seg.png", png(drawing(100 + i)))
                add(archive, f"a/{i}.txt", f"drawing {i}\n")
                add(archive, f"a/{i}.json", json.dumps({"caption": "no", "other": f"o {i}"}))
    for source in ("s-*.tar", "s-{000..001}.tar"):
        found = read(tmp_path / source)
        assert [e.caption for e in found.examples] == [f"drawing {i}" for i in range(6)]
    assert found.examples[4].path == f"{tmp_path / 's-001.tar'}!/a/4.png"
    assert png(found.examples[4].picture()) == png(drawing(4))  # at its place, out of order
    assert read(tmp_path, caption_column="other").examples[5].caption == "o 5"
    assert "Did you mean other" in refused(tmp_path, caption_column="othr")


def test_tar_of_numbered_classes(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for i in range(6):
            add(archive, f"{i}.jpg", png(drawing(i)))
            add(archive, f"{i}.cls", str(i % 2))
    assert "names" in refused(tmp_path / "t.tar")
    assert read(tmp_path / "t.tar", names=["fox", "hen"]).classes == ["fox", "hen"]
    (tmp_path / "classes.txt").write_text("red fox\nhen\n")
    assert read(tmp_path / "t.tar").examples[0].caption == "red fox"


def test_tar_of_folders(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for i in range(6):
            add(archive, f"./set/{'fox hen'.split()[i % 2]}/{i}.png", png(drawing(i)))
    assert read(tmp_path / "t.tar").classes == ["fox", "hen"]


def test_index(tmp_path, clip, three):
    pytest.importorskip("lancedb")
    from clipguide.engine import Engine
    from clipguide.retrieval import update

    for _ in update(tmp_path / "db", [three], engine=Engine(clip, cache=None)):
        pass
    found, folder = read(tmp_path / "db"), read(three)
    assert found.classes == folder.classes and found.report.counts == folder.report.counts
    assert {e.digest for e in found.examples} == {e.digest for e in folder.examples}
    for i, example in enumerate(folder.examples):
        open(os.path.splitext(example.path)[0] + ".txt", "w").write(f"said {i}")
    for _ in update(tmp_path / "db", [three], engine=Engine(clip, cache=None)):
        pass
    assert {e.caption for e in read(tmp_path / "db").examples} == {f"said {i}" for i in range(16)}
    assert read(tmp_path / "db", label_column="folder").classes == folder.classes


def test_numbers_need_names(tmp_path):
    folder = class_folder(tmp_path / "digits", {"0": 3, "01": 3, "n00000002": 3})
    assert "classes.txt" in refused(folder)
    names = {"0": "fox", "1": "hen", "n00000002": "owl"}
    assert read(folder, names=names).classes == ["fox", "hen", "owl"]
    (tmp_path / "names.txt").write_text("n00000002 brown owl\n0 fox\n1 hen\n")
    assert read(folder, names=tmp_path / "names.txt").classes == ["brown owl", "fox", "hen"]
    assert "none for the class 'n00000002'" in refused(folder, names=["fox", "hen"])
    (folder / "classes.txt").write_text("0,fox\n1,hen\nn00000002,owl\n")
    assert read(folder).classes == ["fox", "hen", "owl"]


# what is found


def test_report(tmp_path, parts):
    folder = class_folder(tmp_path / "d", {"fox": 8, "hen": 8, "owl": 1})
    content = (folder / "fox" / "0.png").read_bytes()
    (folder / "fox" / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "fox" / "none.jpg").write_bytes(b"")
    (folder / "hen" / "text.png").write_text("no image")
    same = (folder / "fox" / "1.png").read_bytes()
    (folder / "hen" / "as fox.png").write_bytes(same)
    drawing(5, size=(400, 300)).save(folder / "fox" / "big.png")
    drawing(5, size=(400, 300)).resize((200, 150)).save(folder / "fox" / "big.jpg", quality=40)
    drawing(6).save(folder / "nowhere.png")
    (folder / "elk").mkdir()
    (folder / "yak").mkdir()
    (folder / "yak" / "0.png").write_text("no image")
    report = read(folder, tokenizer=parts.tokenizer).report
    assert report.hollow == ["elk", "yak"]
    assert report.counts == {"fox": 10, "hen": 9, "owl": 1} and report.lonely == ["owl"]
    broken = dict(report.broken)
    assert sorted(map(os.path.basename, broken)) == ["0.png", "cut.png", "none.jpg", "text.png"]
    assert all(path in why for path, why in broken.items())
    assert report.exact == report.disputed
    assert [list(map(os.path.basename, s)) for s in report.exact] == [["1.png", "as fox.png"]]
    assert [sorted(map(os.path.basename, s)) for s in report.near] == [["big.jpg", "big.png"]]
    assert list(map(os.path.basename, report.passed)) == ["nowhere.png"]
    lines = str(report).splitlines()
    assert len(lines) == 8 and max(map(len, lines)) < 500
    assert "20 images in 3 classes, 1 (owl) to 10 each" in lines[0]
    assert "is empty" in lines[1] and "4" in lines[1]


def test_texts_that_are_cut_or_empty(tmp_path, parts, clip):
    rows = captioned(tmp_path)
    rows[1]["caption"] = long = "one two three four five six seven eight nine ten eleven twelve"
    rows[2]["caption"] = " "
    report = read(table(tmp_path / "t.csv", rows), tokenizer=parts.tokenizer).report
    assert report.cut == [long] and report.empty == [str(tmp_path / "2.png")]
    letters = ["a " * n for n in range(1, 30)]  # as Clip counts them, at the edge as well
    assert cut(letters, parts.tokenizer) == [text for text in letters if _too_long(clip, text)]


def _too_long(clip, text: str) -> bool:
    return bool(clip._too_long([text], clip._tokenizer([text])))


def test_alike_pictures(tmp_path):
    """Copies by other means are one; drawings that differ in a detail are two."""
    base = [drawing(i, size=(300, 300)) for i in range(60)]
    base = [p for p in base if np.std(duplicates.small(p)) > 25][:40]  # faint ones are less sure
    other = [
        lambda p: Image.open(io.BytesIO(_jpeg(p, 40))),
        lambda p: p.resize((150, 150), Image.Resampling.BICUBIC),
        lambda p: p.point(lambda value: int(value * 0.85)),
        lambda p: p.resize((260, 300), Image.Resampling.BICUBIC),
    ]
    every = base + [change(p) for change in other for p in base]
    assert duplicates.groups(np.stack([duplicates.small(p) for p in every])) == list(range(40)) * 5
    face = Image.new("RGB", (128, 128), "yellow")
    smile, frown = face.copy(), face.copy()
    for picture, start in ((smile, 0), (frown, 180)):
        ImageDraw.Draw(picture).ellipse((4, 4, 124, 124), outline="black", width=5)
        ImageDraw.Draw(picture).arc((40, 60, 90, 100), start, start + 180, fill="black", width=5)
    blank = [Image.new("RGB", (9, 9), colour) for colour in ("white", "black")]
    small = np.stack([duplicates.small(p) for p in (smile, frown, *blank)])
    assert duplicates.groups(small) == [0, 1, 2, 3]


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def test_groups_are_those_of_all_pairs(monkeypatch):
    """The search by principal directions loses nothing: the same as each with each."""
    random = np.random.default_rng(0)
    widest = np.linspace(-1, 1, 768)  # the direction in which they vary most, copies as well
    base = random.integers(80, 176, (150, 768)) + random.uniform(-70, 70, (150, 1)) * widest
    noise = random.integers(0, 2, (600, 768)) * random.integers(1, 9, (600, 1))
    noise = noise + random.uniform(-8, 8, (600, 1)) * widest
    small = np.clip(base[random.integers(0, 150, 600)] + noise, 0, 255).astype(np.uint8)
    x = small.astype(float) - small.mean(1, keepdims=True)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    parent = list(range(len(x)))
    for i in range(len(x)):
        cell = np.abs(x - x[i]).max(1) * 768**0.5
        for j in np.flatnonzero((x @ x[i] >= duplicates.COSINE) & (cell <= duplicates.CELL)):
            a, b = sorted((parent[i], parent[j]))
            parent = [a if one == b else one for one in parent]
    number = {}
    want = [number.setdefault(one, len(number)) for one in parent]
    monkeypatch.setattr(near, "ROWS", 8)
    assert duplicates.groups(small) == want and 150 < len(number) < 600


# the split


def test_split_keeps_groups_and_classes(tmp_path):
    folder = class_folder(tmp_path / "d", {"fox": 30, "hen": 10, "owl": 2, "elk": 1})
    for i in range(5):
        copy = (folder / "fox" / f"{i}.png").read_bytes()
        (folder / "fox" / f"copy {i}.png").write_bytes(copy)
        (folder / "hen" / f"copy {i}.png").write_bytes(copy)
    whole = read(folder)
    seen = set()
    for seed in range(20):
        train, test = split(whole, share=0.2, seed=seed)
        assert sorted(e.path for e in train.examples + test.examples) == sorted(
            e.path for e in whole.examples
        )
        groups = [{e.group for e in side.examples} for side in (train, test)]
        assert not groups[0] & groups[1]
        counts = [Counter(e.caption for e in side.examples) for side in (train, test)]
        assert all(counts[0][name] and counts[1][name] for name in ("fox", "hen", "owl"))
        assert counts[0]["elk"] == 1 and 5 <= counts[1]["fox"] <= 9
        seen.add(frozenset(e.path for e in test.examples))
    assert len(seen) == 20
    assert "elk" not in {e.caption for e in split(whole, share=0.99)[1].examples}
    with pytest.raises(UsageError, match="between 0 and 1"):
        split(whole, share=1.0)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_split_has_both_sides(tmp_path, share):
    rows = captioned(tmp_path, 5)
    for whole in (
        read(table(tmp_path / "t.csv", rows)),
        read(class_folder(tmp_path / "d", {"a": 2, "b": 3})),
    ):
        train, test = split(whole, share=share)
        for label in range(max(1, len(whole.classes))):
            for side in (train, test):
                assert any(e.label in (label, None) for e in side.examples)


def test_split_follows_content(three, tmp_path):
    """Other names and another order: the same images are tested on."""
    first = split(read(three))[1]
    for example in read(three).examples:
        folder = tmp_path / "moved" / example.caption
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{example.digest}.png").write_bytes(open(example.path, "rb").read())
    moved = split(read(tmp_path / "moved"))[1]
    assert {e.digest for e in first.examples} == {e.digest for e in moved.examples}


# batches


def test_batches_go_on_to_the_bit(three, parts):
    whole = read(three)
    settings = dict(batch=5, seed=3)
    run = list(itertools.islice(Batches(whole, parts, workers=2, **settings), 12))
    again = itertools.islice(Batches(whole, parts, workers=1, start=7, memory=0, **settings), 5)
    alone = Batches(whole, parts, **settings)
    for step, batch in enumerate(again, start=7):
        for other in (run[step], alone.at(step)):
            assert torch.equal(batch["image"], other["image"])
            assert torch.equal(batch["index"], other["index"])
            assert torch.equal(batch["label"], other["label"])
    assert not torch.equal(run[0]["image"], run[1]["image"])
    other = Batches(whole, parts, batch=5, seed=4)
    assert any(other.order(i) != alone.order(i) for i in range(5))
    for batch in run:
        assert batch["image"].shape == (5, 3, 32, 32) and batch["image"].dtype == torch.float32
        assert 0 <= batch["image"].min() and batch["image"].max() <= 1
        examples = [whole.examples[i] for i in batch["index"].tolist()]
        assert batch["label"].tolist() == [e.label for e in examples]
        assert batch["caption"] == [e.caption for e in examples]


def test_classes_in_turn_and_pictures_in_turn(three, parts):
    whole = read(three)
    batches = Batches(whole, parts, batch=6)
    drawn = [i for step in range(45) for i in batches.order(step)]  # 90 of each class
    by_class = defaultdict(list)
    for i in drawn:
        by_class[whole.examples[i].label].append(i)
    assert [len(by_class[label]) for label in range(3)] == [90, 90, 90]
    for label, found in by_class.items():
        count = whole.report.counts[whole.classes[label]]
        assert set(Counter(found).values()) == {90 // count}
        for start in range(0, 90, count):
            assert len(set(found[start : start + count])) == count
    assert by_class[0][:9] != by_class[0][9:18]  # in another order
    plain = Batches(whole, parts, batch=4, balanced=False)
    assert plain.epoch == 4
    for epoch in range(3):
        drawn = [i for step in range(4) for i in plain.order(4 * epoch + step)]
        assert sorted(drawn) == list(range(16))


PREPROCESS = [
    {"resize_mode": mode, "interpolation": interpolation}
    for mode in ("squash", "shortest", "longest")
    for interpolation in ("bicubic", "bilinear")
]


@pytest.mark.parametrize("config", PREPROCESS, ids=lambda c: "-".join(c.values()))
def test_unvaried_pictures_are_the_checkpoint_s(tmp_path, config):
    from dataclasses import asdict

    from open_clip.transform import PreprocessCfg, image_transform_v2

    preprocess = PreprocessCfg(size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), **config)
    some = SimpleNamespace(
        transform=image_transform_v2(preprocess, is_train=False),
        preprocess=asdict(preprocess),
        image_size=32,
    )
    folder = tmp_path / "d"
    for i, size in enumerate([(40, 70), (33, 32), (20, 20), (200, 31), (640, 480), (32, 32)]):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        drawing(i, size=size).save(folder / "ab"[i % 2] / f"{i}.jpg")
    whole = read(folder)
    batch = Batches(whole, some, batch=6, balanced=False, augment=False).at(0)
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    opened = [Image.open(whole.examples[i].path) for i in batch["index"].tolist()]
    want = torch.stack([some.transform(picture) for picture in opened])
    assert torch.equal((batch["image"] - mean) / std, want)
    some.transform.transforms.append(lambda tensor: tensor)  # one of which the end is not known
    opaque = Batches(whole, some, batch=6, balanced=False, augment=False).at(0)
    torch.testing.assert_close(opaque["image"], batch["image"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_crops(tmp_path, mode, parts):
    """Without any variance a crop is nearly the checkpoint's own view; with it, pixels say where
    it is from: an image whose red is x and whose green is y."""
    ramp = np.zeros((120, 160, 3), np.uint8)
    ramp[..., 0] = np.linspace(20, 235, 160)
    ramp[..., 1] = np.linspace(20, 235, 120)[:, None]
    for i, name in enumerate("aabb"):
        (tmp_path / name).mkdir(exist_ok=True)
        picture = Image.fromarray(ramp)
        ImageDraw.Draw(picture).point((i, i), fill="blue")
        picture.save(tmp_path / name / f"{i}.png")
    config = {**parts.preprocess, "resize_mode": mode, "fill_color": 0}
    some = SimpleNamespace(transform=parts.transform, preprocess=config, image_size=32)
    whole = _apart(tmp_path)
    still = Augment(scale=(1, 1), ratio=(1, 1))
    whole_view = Batches(whole, some, batch=1, augment=still).at(0)["image"][0] * 255
    across = whole_view[0, 16].max() - whole_view[0, 16].min()
    assert abs(across - (215 if mode != "shortest" else 160)) < 12
    edge = whole_view[:2, 0].max()
    assert edge < 1 if mode == "longest" else edge > 100  # the padding
    images = [
        b["image"] for b in itertools.islice(Batches(whole, some, batch=8, augment=Augment()), 4)
    ]
    starts = {round(float(image[0, 16, 0]), 3) for image in torch.cat(images)}
    assert len(starts) > 9
    flipped = [
        a.sub(b.flip(-1)).abs().max() == 0
        for a, b in zip(
            Batches(whole, some, batch=8, augment=Augment(flip=1)).at(0)["image"],
            Batches(whole, some, batch=8, augment=Augment()).at(0)["image"],
        )
    ]
    assert all(flipped)


def _apart(folder):
    """The data set of a folder whose images are all alike, as if they were not."""
    listing = sources.rows(folder)
    looks = inspect(listing.rows, 1, None)
    rows = zip(itertools.count(), listing.rows, looks)
    examples = [Example(r.path, r.text, i % 2, d, i, r) for i, r, (d, _) in rows]
    return Dataset(examples, ["a", "b"], Report(str(folder), len(examples)))


def test_mirrors_are_for_classes(three, tmp_path, parts):
    assert Batches(read(three), parts, batch=1).augment.flip == 0.5
    whole = read(table(tmp_path / "t.csv", captioned(tmp_path)))
    batches = Batches(whole, parts, batch=3)
    assert batches.augment.flip == 0.0 and batches.at(0)["label"] is None


def test_what_is_kept_is_bounded(three, parts):
    whole = read(three)
    bytes_each = 40 * 40 * 3  # the side of 32 and a quarter
    batches = Batches(whole, parts, batch=16, balanced=False, memory=5 * bytes_each + 100)
    next(iter(batches))
    assert len(batches._kept) == 5 and batches.waited > 0
    assert {kept.shape for kept in batches._kept.values()} == {(40, 40, 3)}


def test_a_picture_that_changes_is_refused(tmp_path, parts):
    folder = class_folder(tmp_path / "d", {"a": 2, "b": 2})
    whole = read(folder)
    drawing(77).save(folder / "a" / "0.png")
    with pytest.raises(ClipguideError, match="has changed"):
        for _ in itertools.islice(Batches(whole, parts, batch=2), 4):
            pass
    (folder / "a" / "0.png").unlink()
    with pytest.raises(UsageError, match="There is no image"):
        whole.examples[0].picture()


def test_odd_pictures(tmp_path, parts):
    folder = tmp_path / "d"
    sizes = [(1, 1), (3000, 2), (2, 3000), (5, 5), (500, 20), (64, 64)]
    for i, size in enumerate(sizes):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        drawing(i, size=size).save(folder / "ab"[i % 2] / f"{i}.png")
    whole = read(folder)
    for mode in ("squash", "shortest", "longest"):
        config = {**parts.preprocess, "resize_mode": mode}
        some = SimpleNamespace(transform=parts.transform, preprocess=config, image_size=32)
        batch = Batches(whole, some, batch=12).at(0)
        assert batch["image"].shape == (12, 3, 32, 32) and batch["image"].isfinite().all()


# bad input


def test_sources_that_are_not_there(tmp_path):
    assert "no file or folder" in refused(tmp_path / "no")
    assert "No file matches" in refused(tmp_path / "*.tar")
    assert "is empty" in refused(tmp_path)
    (tmp_path / "a.xlsx").write_text("x")
    assert "must be a folder, or end in" in refused(tmp_path / "a.xlsx")
    assert "holds no images" in refused(tmp_path)
    assert "name" in refused("")
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as archive:
        add(archive, "0.png", b"x")
    assert "unpack" in refused(tmp_path / "t.tar.gz")
    os.rename(tmp_path / "t.tar.gz", tmp_path / "t.tar")
    assert "packed" in refused(tmp_path / "t.tar")


def test_folders_of_which_nothing_is_learned(tmp_path):
    assert "one class, 'fox'" in refused(class_folder(tmp_path / "one", {"fox": 5}))
    few = refused(class_folder(tmp_path / "few", {"fox": 2, "hen": 1}))
    assert "has 3 different images" in few and "needs 4" in few and "test on" in few
    assert len(read(tmp_path / "few", train=False)) == 3
    assert read(tmp_path / "one", train=False).classes == ["fox"]
    single = class_folder(tmp_path / "single", {"fox": 4, "hen": 1, "owl": 1})
    assert "two classes at least of two" in refused(single)
    copies = class_folder(tmp_path / "copies", {"fox": 1, "hen": 1})
    for i in range(9):
        (copies / "fox" / f"c{i}.png").write_bytes((copies / "fox" / "0.png").read_bytes())
    assert "has 2 different images" in refused(copies)
    parts_of = class_folder(tmp_path / "parts", {"train": 3, "val": 3})
    assert "clipguide splits it" in refused(parts_of)
    captioned(tmp_path / "flat")
    assert "subfolder" in refused(tmp_path / "flat")
    assert "leave out label_column" in refused(
        class_folder(tmp_path / "two", {"a": 2, "b": 2}), label_column="x"
    )
    broken = class_folder(tmp_path / "broken", {"fox": 2, "hen": 2})
    for file in broken.rglob("*.png"):
        file.write_text("x")
    assert "None of the 4 images" in refused(broken)


def test_tables_of_which_nothing_is_learned(tmp_path):
    rows = captioned(tmp_path)
    file = table(tmp_path / "t.csv", rows)
    assert "Did you mean caption" in refused(file, caption_column="captoin")
    assert "Did you mean image" in refused(file, image_column="imag")
    assert "one of the two" in refused(file, caption_column="a", label_column="b")
    same = [{**row, "caption": "a fox"} for row in rows]
    assert "all 'a fox'" in refused(table(tmp_path / "same.csv", same))
    empty = [{**row, "caption": " "} for row in rows]
    assert "all empty" in refused(table(tmp_path / "empty.csv", empty))
    numbers = [{**row, "caption": i} for i, row in enumerate(rows)]
    assert "label_column" in refused(table(tmp_path / "numbers.csv", numbers))
    numbers = [{"image": row["image"], "label": i % 2} for i, row in enumerate(rows)]
    labels = table(tmp_path / "labels.csv", numbers)
    assert "give their names" in refused(labels)
    assert read(labels, names=["fox", "hen"]).classes == ["fox", "hen"]
    odd = table(tmp_path / "odd.csv", [{"a": 1, "b": 2}])
    assert "Its columns: a, b" in refused(odd)
    lost = [{**row, "image": f"no/{row['image']}"} for row in rows]
    assert "There is no image" in refused(table(tmp_path / "lost.csv", lost))
    away = [{**row, "image": "https://a.b/c.png"} for row in rows]
    assert "is a URL" in refused(table(tmp_path / "away.csv", away))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "no rows"),
        ("b.csv", b"image,caption\n", "no rows"),
        ("c.csv", "image,caption\na.png,größe\n".encode("latin1"), "UTF-8"),
        ("d.csv", b'image,caption\na.png,"open\n', "cannot be read"),
        ("e.csv", b"image,caption\na.png,a fox, red\n", "double quotes"),
        ("f.jsonl", b'{"image": "a.png", "caption": "x"}\nno\n', "line 2"),
        ("g.parquet", b"no parquet", "cannot be read"),
        ("h.tar", b"no tar", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert said in refused(tmp_path / name)


def test_settings_that_cannot_be(three, parts):
    whole = read(three)
    for settings in ({"batch": 0}, {"batch": 1, "workers": 0}, {"batch": 1, "start": -1}):
        with pytest.raises(UsageError):
            Batches(whole, parts, **settings)
    for settings in ({"scale": (0, 1)}, {"flip": 2}, {"ratio": (2, 1)}):
        with pytest.raises(UsageError):
            Augment(**settings)

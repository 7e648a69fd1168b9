"""Questions to an index: the order, the filters, the sums, and what is refused."""

from __future__ import annotations

import math
import os
import time
from datetime import datetime

import numpy as np
import pytest
import torch
from test_clip import landscape
from torch.testing import assert_close

pytest.importorskip("lancedb")

from benchmarks import search as benchmark
from benchmarks import vectors
from clipguide import unrelated
from clipguide.engine import Engine
from clipguide.errors import ClipguideWarning, UsageError
from clipguide.rerank import rank
from clipguide.retrieval import (
    Index,
    Query,
    compose,
    encode_texts,
    maintenance,
    search,
    update,
)
from clipguide.retrieval.filters import checked
from clipguide.retrieval.store import Store

WIDTH = 8


def made(path, unit_BD, **columns):
    """An index of vectors as they are."""
    import pyarrow as pa

    store = Store(path, make=True)
    store.create(unit_BD.shape[1], key="0 float32 alpha white frames 1", model="made")
    known = {"path": [f"{i:03}" for i in range(len(unit_BD))], "vector": list(unit_BD), **columns}
    schema = store.table.schema
    columns = [
        pa.array(known[f.name], f.type) if f.name in known else pa.nulls(len(unit_BD), f.type)
        for f in schema
    ]
    store.table.add(pa.table(columns, schema=schema))
    maintenance._index_scalars(store.table, 0)
    return Index(path)


def units(count, width=WIDTH, seed=0):
    values_BD = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return values_BD / np.linalg.norm(values_BD, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """40 vectors, with some columns."""
    unit_BD = units(40)
    days = [datetime(2024, 1 + i % 12, 1, 12) if i % 4 else None for i in range(40)]
    captions = ["a red fox" if i % 10 == 3 else f"picture {i}" for i in range(40)]
    prompts = ["foxes in snow" if i == 7 else None for i in range(40)]
    width = list(range(100, 140))
    return made(tmp_path_factory.mktemp("db"), unit_BD, date=days, caption=captions,
                prompt=prompts, width=width)  # fmt: skip


@pytest.fixture(scope="module")
def query():
    return Query(torch.from_numpy(units(1, seed=5)[0]), "fox")


def order(query, where=lambda i: True):
    """The right order, by numpy."""
    cosine_B = units(40) @ query.unit_D.numpy()
    return [(f"{i:03}", cosine_B[i]) for i in np.argsort(-cosine_B) if where(i)]


def names(answer):
    return [hit.path for hit in answer.hits]


def test_exact_order_and_scores(index, query):
    answer = index.search(query, k=10)
    expected = order(query)[:10]
    assert names(answer) == [name for name, _ in expected] and answer.total == 40
    scores = [hit.score for hit in answer.hits]
    np.testing.assert_allclose(scores, [score for _, score in expected], atol=1e-6)


def test_pages_are_the_whole(index, query):
    pages = [names(index.search(query, k=7, offset=7 * page)) for page in range(7)]
    assert sum(pages, []) == [name for name, _ in order(query)]
    assert pages[5] == [name for name, _ in order(query)][35:] and pages[6] == []
    assert len(index.search(query, k=1000).hits) == 40
    for diversity in (0.0, 0.5):  # no number is beyond LanceDB's
        assert len(index.search(query, k=10**30, diversity=diversity).hits) == 40
        assert index.search(query, k=7, offset=10**30, diversity=diversity).hits == []
    for k, offset in ((0, 0), (-1, 0), (1, -1)):
        with pytest.raises(UsageError, match="At least one image"):
            index.search(query, k=k, offset=offset)


@pytest.mark.parametrize(
    "condition, where",
    [
        ("width > 120", lambda i: i > 20),
        ("date > '2024-06-15' and width <= 130", lambda i: i % 4 and i % 12 > 5 and i <= 30),
        ("date between '2024-03-01' and '2024-05-02'", lambda i: i % 4 and 2 <= i % 12 <= 4),
        ("'2024-06-15' < date or date is null", lambda i: not i % 4 or i % 12 > 5),
        ("Date < '2024-03' -- the winter", lambda i: i % 4 and i % 12 < 2),
        ("date >= '2024' and date < '2025'", lambda i: i % 4),
        ("lower(caption) = 'a red fox'", lambda i: i % 10 == 3),
        ("date = timestamp '2024-02-01 12:00:00'", lambda i: i % 4 and i % 12 == 1),
        ("caption like '%fox%'", lambda i: i % 10 == 3),
        ("not (caption = 'a red fox')", lambda i: i % 10 != 3),
        ("caption = 'it''s; drop -- (table)'", lambda i: False),
        ("caption = '2024-01-01'", lambda i: False),
        ("`width` in (101, 102)", lambda i: i in (1, 2)),
    ],
)
def test_conditions(index, query, condition, where):
    answer = index.search(query, k=40, where=condition)
    assert names(answer) == [name for name, _ in order(query, where)]


@pytest.mark.parametrize(
    "condition, message",
    [
        ("width >", "is not understood at '>'"),
        ("width > 5 foo", "'width > 5 foo' is not one"),
        ("widht > 5", "there is no column widht. Did you mean width"),
        ("width", "does not return a boolean"),
        ("width > 'a'", "is not understood: Received literal"),
        ("width > 5; drop table images", "nothing more: .* is not one"),
        ("1=1) or (1=1", r"is not understood at '\)'"),
        ("DROP TABLE images", "nothing more: .* is not one"),
        ("path in (select path from images)", "nothing more: .* is not one"),
        ("exists(select 1)", "nothing more: .* is not one"),
        ("date > 'tomorrow'", "compares date with 'tomorrow', which is no date"),
        (";", "nothing more: .* is not one"),
        ("(" * 3000, "too many parentheses"),
        ("path = 'a", "a quote that is not closed"),
        ("  ", "--where is empty"),
        ("(" * 20_000, "longer than"),
        ("path = '\udcff'", "not valid text"),
    ],
)
def test_what_is_no_condition(index, query, condition, message):
    with pytest.raises(UsageError, match=message) as raised:
        index.search(query, where=condition)
    assert "\n" not in str(raised.value) and ".rs" not in str(raised.value)
    assert index.search(query).total == 40


def test_conditions_are_spelt_as_the_table_does():
    first = "CAST('2024-01-01' AS TIMESTAMP)"
    assert checked("DATE>'2024-01-01'") == checked("date > '2024'") == f"(`date` > {first})"
    assert checked("date > date '2024-01-01'") == "(`date` > CAST('2024-01-01' AS DATE))"
    assert checked("Date in ('2024-01', '2024-01-02 10:00')") == (
        f"(`date` IN ({first}, CAST('2024-01-02 10:00' AS TIMESTAMP)))"
    )
    assert checked("date > '2024-01-01' and camera = '2024-01-01'").endswith("= '2024-01-01')")


def test_hybrid_is_reciprocal_rank_fusion(index, query):
    """Against the formula, over the order by vectors and that of those that say fox."""
    by_vector = [name for name, _ in order(query)]
    worded = index._mixed([], query, 100, None, vectors=False)
    by_word = [row["path"] for row in worded]
    assert set(by_word) == {"003", "007", "013", "023", "033"}, "in captions and prompts, stemmed"
    sums = {}
    for ranking in (by_vector, by_word):
        for number, name in enumerate(ranking):
            sums[name] = sums.get(name, 0) + 1 / (61 + number)
    expected = sorted(by_vector, key=lambda name: -sums[name])
    answer = index.search(query, k=40, hybrid=True)
    assert names(answer) == expected
    cosine = dict(order(query))
    for hit in answer.hits:
        assert math.isclose(hit.score, cosine[hit.path], abs_tol=1e-6)
    answer = index.search(query, k=3, hybrid=True, where="width < 110")
    assert set(names(answer)[:2]) <= {"003", "007"} | {by_vector[0]}
    assert all(hit.facts["width"] < 110 for hit in answer.hits)
    with pytest.raises(UsageError, match="--hybrid searches in words"):
        index.search(Query(query.unit_D), hybrid=True)


def test_hybrid_without_captions_warns(tmp_path, query):
    plain = made(tmp_path / "db", units(5))
    with pytest.warns(ClipguideWarning, match="No image of the index has a caption"):
        answer = plain.search(query, k=5, hybrid=True)
    assert names(answer) == names(plain.search(query, k=5))


def test_diversity_is_that_of_rerank(index, query):
    unit_BD, cosine_B = torch.from_numpy(units(40)), torch.from_numpy(units(40)) @ query.unit_D
    best = rank(cosine_B, unit_BD, diversity=0.6, keep=8).best
    answer = index.search(query, k=5, offset=3, diversity=0.6)
    assert names(answer) == [f"{i:03}" for i in best[3:]]
    assert names(index.search(query, k=8, diversity=0.0)) == names(index.search(query, k=8))


def test_sums():
    first, second = torch.eye(3)[0], torch.eye(3)[1]
    query = compose([(first, 1.0), (second, 1.0)])
    torch.testing.assert_close(query.unit_D, torch.tensor([0.5**0.5, 0.5**0.5, 0]))
    query = compose([(first, 2.0), (second, -1.0)])
    torch.testing.assert_close(query.unit_D, torch.tensor([2.0, -1.0, 0]) / 5**0.5)
    for terms, message in (
        ([], "nothing to search for"),
        ([(first, 1.0), (first, -1.0)], "cancel each other out"),
        ([(first, float("nan"))], "finite"),
    ):
        with pytest.raises(UsageError, match=message):
            compose(terms)


def test_texts(clip):
    long = " ".join(f"word{i}" for i in range(5000))
    unit_ND = encode_texts(clip, ["a red fox", "красная лиса", "赤い狐", long])
    torch.testing.assert_close(unit_ND.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(unit_ND[:1], clip.encode_text(["a red fox"]))
    for text in ("", " \t\n"):
        with pytest.raises(UsageError, match="text is empty"):
            encode_texts(clip, [text])


@pytest.mark.parametrize("one_graph", [250_000, 0])
def test_an_index_of_vectors_gives_nearly_the_same(tmp_path, monkeypatch, one_graph):
    """In a graph and in cells, and filtered: recall@10, and true cosines. The cells' rotation is
    drawn anew each time, and 32 numbers make a short code; for real sizes see
    benchmarks/vectors.py."""
    centre_CD = units(30, width=32, seed=1)
    noise_BD = units(3000, width=32, seed=2)
    unit_BD = centre_CD[np.arange(3000) % 30] + noise_BD
    unit_BD /= np.linalg.norm(unit_BD, axis=1, keepdims=True)
    index = made(tmp_path / "db", unit_BD, width=list(range(3000)))
    monkeypatch.setattr(maintenance, "ONE_GRAPH", one_graph)
    maintenance.index_vectors(index.store)
    for least in (0, 2500):
        hits = 0
        for query_D in unit_BD[:40] + 0.3 * units(40, width=32, seed=3):
            query_D /= np.linalg.norm(query_D)
            cosine_B = unit_BD[least:] @ query_D
            truth = {f"{i + least:03}" for i in np.argsort(-cosine_B)[:10]}
            where = f"width >= {least}" if least else None
            answer = index.search(Query(torch.from_numpy(query_D)), where=where)
            assert len(answer.hits) == 10
            hits += len(truth & set(names(answer)))
            for hit in answer.hits:
                expected = unit_BD[int(hit.path)] @ query_D
                assert math.isclose(hit.score, expected, abs_tol=1e-5)
        assert hits >= (0.98 if one_graph else 0.9) * 400
    assert maintenance.cells(3000) == 219 and maintenance.probes(3000) == 44
    assert maintenance.cells(10**6) == 4000 and maintenance.probes(10**6) == 190
    (kept,) = index.store.table.list_indices()
    kind = {250_000: ("IvfHnswSq", "graph"), 0: ("IvfRq", "cells")}[one_graph]
    assert (kept.index_type, index.store.notes()["kind"]) == kind
    nearest = index.store.table.search(unit_BD[0], vector_column_name="vector")
    nearest = maintenance.sought(index.store, nearest.distance_type("l2"), 10, filtered=False)
    plan = nearest.analyze_plan()
    assert f"partitions_searched={1 if one_graph else 44}," in plan, plan


def test_what_is_known_of_a_table_is_of_its_newest_version(tmp_path):
    """An index that was asked, and is then written to, by itself or by another."""
    unit_BD = units(30, width=8)
    index = made(tmp_path / "db", unit_BD)
    query = Query(torch.from_numpy(unit_BD[0]))
    assert index.search(query).total == 30
    index.store.delete(["003"])
    assert index.search(query).total == 29
    index.store.note(kind="cells")
    assert index.store.about().notes["kind"] == "cells"
    other = Index(tmp_path / "db")
    assert other.search(query).total == 29
    other.store.delete(["004"])
    index.store.refresh()
    assert index.search(query).total == 28
    found = index.store.find("path", ["005"], ["path"])
    index.store.delete_rows(found["_rowid"].to_pylist())
    assert index.search(query, k=30).total == 27


def gaussian(count, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=random), dim=1)


def test_the_best_of_each_noun_is_of_the_whole_collection():
    """In whatever chunks it comes; and a share is a share of those that are lower, by counting."""
    unit_BD, word_WD = gaussian(90, 16), gaussian(len(unrelated.words()), 16, seed=1)
    expected = [max(float(unit_D @ word_D) for unit_D in unit_BD) for word_D in word_WD[:20]]
    for size in (7, 64, 90):
        best_W = unrelated.best(unit_BD.split(size), word_WD)
        assert_close(best_W[:20], torch.tensor(expected))
    apart_W = torch.arange(len(word_WD)) % 3 > 0
    for score in (-1.0, 0.5, 0.6, 0.7, 2.0):
        below = sum(float(b) < score for b, is_apart in zip(best_W, apart_W) if is_apart)
        share = unrelated.share_below(score, best_W, apart_W)
        assert math.isclose(share, below / int(apart_W.sum()))
    assert unrelated.share_below(0.0, unrelated.best([], word_WD), apart_W) == 1


def test_kin_is_not_unrelated():
    """A noun that means what the text means, by its vector or by its words, is left out."""
    word_WD = gaussian(len(unrelated.words()), 64)
    kin, names = unrelated.kin(word_WD), unrelated.words()
    near_D = torch.nn.functional.normalize(word_WD[30] + 0.05 * word_WD[31], dim=0)
    far_D = gaussian(1, 64, seed=9)[0]
    assert not unrelated.apart("no noun at all", near_D, word_WD, kin)[30]
    assert unrelated.apart("no noun at all", near_D, word_WD, 1.0)[30]
    assert not unrelated.apart(f"a {names[30]}", far_D, word_WD, 1.0)[30]
    assert unrelated.apart("no noun at all", far_D, word_WD, -1.0).all(), "else none would be left"


def test_a_score_is_shown_beside_the_collection_s_own_distribution(tmp_path):
    """A collection of images that lie where a noun does, and of none where others do."""
    names = unrelated.words()
    word_WD = gaussian(len(names), 64)
    noise_BD = torch.from_numpy(units(200, width=64, seed=4))
    unit_BD = torch.nn.functional.normalize(
        word_WD[torch.arange(200) % 100] + 0.7 * noise_BD, dim=1
    )
    index = made(tmp_path / "db", unit_BD.numpy())
    here, *gone = (Query(word_WD[w], names[w]) for w in (5, *range(500, 1700, 40)))
    assert index.search(here).hits[0].better_than is None, "it is not compared yet"
    fake = type("Clip", (), {"encode_text": lambda self, names: word_WD})()
    maintenance.compare(index.store, fake, 200)
    assert index.search(here).hits[0].better_than > 0.93, "100 of 1,770 nouns are there"
    absent = [index.search(query).hits[0].better_than for query in gone]
    assert 0.3 < float(np.mean(absent)) < 0.7, "as other nouns that are not there"
    assert index.search(here, compare=False).hits[0].better_than is None
    assert index.search(Query(here.unit_D)).hits[0].better_than is None, "an image is asked for"
    shares = [hit.better_than for hit in index.search(here, k=20).hits]
    assert shares == sorted(shares, reverse=True) and shares[-1] < 0.9
    index.store.db.drop_table("background")
    assert Index(tmp_path / "db").search(here).hits[0].better_than is None, "nothing is known"


def test_settling_is_done_when_it_is_due(clip, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    done = []
    monkeypatch.setattr(maintenance, "EXACT", 6)
    monkeypatch.setattr(maintenance, "index_vectors", lambda table: done.append("vectors"))

    def grow(count):
        done.clear()
        for i in range(len(list(home.iterdir())), count):
            landscape(20, 20, seed=i).save(home / f"{i:03}.png")
            os.utime(home / f"{i:03}.png", (time.time() - 100,) * 2)
        list(update(tmp_path / "db", [home], engine=Engine(clip)))
        return done

    monkeypatch.setattr(maintenance, "compare", lambda store, clip, count: (
        done.append("compare"), store.note(compared=str(count))))  # fmt: skip
    assert grow(5) == ["compare"]
    assert grow(5) == []
    assert grow(6) == ["vectors", "compare"]
    assert grow(8) == ["compare"]
    assert grow(12) == ["vectors", "compare"]


def test_a_query_of_another_width(index):
    with pytest.raises(UsageError, match="3 numbers, and the vectors of .* have 8"):
        index.search(Query(torch.eye(3)[0]))


def test_fusing_keeps_the_first_of_equals():
    row = [{"path": name} for name in "abc"]
    assert [r["path"] for r in search.fuse([row, row[::-1]])] == ["a", "c", "b"]


def test_the_benchmark_of_vectors_builds_once(tmp_path):
    settings = {"count": 1500, "queries": 20, "peers": False, "keep": False, "thumbnail": 10}
    first = vectors.vectors(**settings, keep_index=tmp_path, build_only=True)
    assert "clipguide, images" not in first
    (folder,) = tmp_path.iterdir()
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    facts = vectors.vectors(**settings, keep_index=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    for kind in ("images", "texts"):
        assert facts[f"clipguide, {kind}"]["recall@10"] == 1
    assert facts["db made in s"] == first["db made in s"]
    (folder / "db").rename(folder / "part-db")  # killed in the middle
    again = vectors.vectors(**settings, keep_index=tmp_path)
    assert again["clipguide, images"]["recall@10"] == 1 and not (folder / "part-db").exists()


def test_the_made_vectors_are_what_is_said():
    """Of length 1, the same whenever asked for; 13 directions hold half of the variance, and 127
    nine tenths."""
    made = vectors.Made(4000)
    (_, unit_BD), (_, again_BD) = next(made.chunks()), next(vectors.Made(4000).chunks())
    np.testing.assert_array_equal(unit_BD, again_BD)
    np.testing.assert_allclose(np.linalg.norm(unit_BD, axis=1), 1, atol=1e-5)
    share_D = np.linalg.svd(unit_BD - unit_BD.mean(0), compute_uv=False) ** 2
    share_D /= share_D.sum()
    assert 0.48 < share_D[:13].sum() < 0.56 and 0.88 < share_D[:127].sum() < 0.92
    assert 0.6 < np.linalg.norm(unit_BD.mean(0)) < 0.8
    truth = vectors.Truth(made.queries(5)["texts"])
    for start in range(0, 4000, 700):  # in other chunks than they are made in
        truth.add(start, unit_BD[start : start + 700])
    expected = np.argsort(-(truth.query_QD @ unit_BD.T), axis=1)[:, : vectors.TOP]
    np.testing.assert_array_equal(truth.place_QK, expected)


def test_the_benchmark_of_absence_on_what_is_clear():
    """Images that are their names: all else is far behind them."""
    word_WD = gaussian(len(unrelated.words()), 256)
    text_ND, target_B = gaussian(60, 256, seed=1), torch.arange(60)
    concepts = [f"thing{n}" for n in range(60)]
    found = benchmark.compared_with(text_ND, target_B, text_ND, word_WD, concepts, 0, 20)
    assert found["pictures"] == 30 and found["absent names"] == 20
    assert found["AUC"] == 1 == found["recall@1 of those there"]
    assert found["better than, of those there"] == 1 == found["refused at 5 % false"]
    assert 0.3 < found["better than, of absent ones"] < 0.7


def test_many_rows_are_looked_up_by_an_index(tmp_path, monkeypatch):
    """Of paths and digests, from LOOKED_UP rows on; of texts wherever there is one."""
    index = made(tmp_path / "db", units(40), caption=["a red fox"] * 40)
    word_WD = gaussian(len(unrelated.words()), WIDTH)
    nouns = type("Clip", (), {"encode_text": lambda self, names: word_WD})()

    def indexed():
        return {name for one in index.store.table.list_indices() for name in one.columns}

    assert indexed() == {"caption"}
    monkeypatch.setattr(maintenance, "LOOKED_UP", 41)
    maintenance.maintain(index.store, nouns, changed=True)
    assert indexed() == {"caption"}
    monkeypatch.setattr(maintenance, "LOOKED_UP", 40)
    maintenance.maintain(index.store, nouns, changed=True)
    assert indexed() == {"caption", "path", "digest"}

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

pytest.importorskip("lancedb")

from benchmarks import search as benchmark
from clipguide.engine import Engine
from clipguide.errors import ClipguideWarning, UsageError
from clipguide.rerank import rank
from clipguide.retrieval import (
    Index,
    Query,
    compose,
    encode_texts,
    maintenance,
    refusal,
    search,
    update,
)
from clipguide.retrieval.filters import checked
from clipguide.retrieval.store import Store
from clipguide.zero_shot.none import unlike_each

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
    for k, offset in ((0, 0), (-1, 0), (1, -1)):
        with pytest.raises(UsageError, match="At least one picture"):
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
    assert names(answer) == [name for name, _ in order(query, where)] and answer.absent is None


@pytest.mark.parametrize(
    "condition, message",
    [
        ("width >", "is not understood at '>'"),
        ("width > 5 foo", "'width > 5 foo' is not one"),
        ("widht > 5", "there is no column widht. Did you mean width"),
        ("width", "does not return a boolean"),
        ("width > 'a'", "is not understood: Received literal"),
        ("width > 5; drop table pictures", "nothing more: .* is not one"),
        ("1=1) or (1=1", r"is not understood at '\)'"),
        ("DROP TABLE pictures", "nothing more: .* is not one"),
        ("path in (select path from pictures)", "nothing more: .* is not one"),
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
    with pytest.warns(ClipguideWarning, match="No picture of the index has a caption"):
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


def test_an_index_of_vectors_gives_nearly_the_same(tmp_path):
    """Trained, appended to, filtered: recall@10 ≥ 0.9 (its rotation is drawn anew each time, and 32
    numbers make a short code; see benchmarks/search.py for real sizes), and true cosines."""
    centre_CD = units(30, width=32, seed=1)
    noise_BD = units(3000, width=32, seed=2)
    unit_BD = centre_CD[np.arange(3000) % 30] + noise_BD
    unit_BD /= np.linalg.norm(unit_BD, axis=1, keepdims=True)
    index = made(tmp_path / "db", unit_BD, width=list(range(3000)))
    maintenance.index_vectors(index.store.table)
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
        assert hits >= 0.9 * 400
    assert maintenance.cells(3000) == 55 and maintenance.probes(3000) == 32
    nearest = index.store.table.search(unit_BD[0], vector_column_name="vector")
    plan = nearest.distance_type("l2").nprobes(maintenance.probes(3000)).limit(10).analyze_plan()
    assert "partitions_ranked=55" in plan or "partitions_searched=32" in plan


def test_evidence_against_the_definition():
    """For two texts, by loops in double precision."""
    unit_BD, word_WD = units(6).astype(float), units(20, seed=1).astype(float)
    text_ND = units(2, seed=2).astype(float)
    other_NW = np.stack([np.arange(20) % 3 != 0, np.arange(20) > 4])
    expected = []
    for text_D, other_W in zip(text_ND, other_NW, strict=True):
        found = []
        for unit_D in unit_BD:
            cosines = [float(unit_D @ word_D) for word_D in word_WD]
            scale = refusal.SHARPNESS / np.std(cosines, ddof=1)
            mine = math.exp(scale * float(unit_D @ text_D))
            rivals = sum(math.exp(scale * cosines[w]) for w in range(20) if other_W[w])
            found.append(math.log(mine / (mine + rivals)))
        expected.append(max(found))
    cosine_BN, word_BW = (torch.from_numpy(unit_BD @ x.T).float() for x in (text_ND, word_WD))
    value_N = refusal.evidence(cosine_BN, word_BW, torch.from_numpy(other_NW))
    np.testing.assert_allclose(value_N, expected, rtol=1e-4)
    closer_N = refusal.evidence(0.01 * cosine_BN + 0.5, 0.01 * word_BW + 0.5, torch.from_numpy(
        other_NW))  # fmt: skip
    np.testing.assert_allclose(closer_N, expected, rtol=1e-3, err_msg="cosines in a narrow band")


def test_evidence_of_what_is_extreme_is_a_number():
    """One word far above all others, in and out of the rivals; a picture alike to all words."""
    word_BW = torch.zeros(3, 1700)
    word_BW[0, 7], word_BW[1] = 1.0, torch.linspace(-1, 1, 1700)
    for other_1W in (torch.arange(1700)[None] == 7, torch.arange(1700)[None] != 7):
        for cosine in (-1.0, 0.0, 1.0):
            value_1 = refusal.evidence(torch.full((3, 1), cosine), word_BW, other_1W)
            assert torch.isfinite(value_1).all() and value_1 <= 0


def gaussian(count, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=random), dim=1)


def test_calibration_is_asking_for_every_word():
    unit_BD, word_WD = gaussian(90, 16), gaussian(len(refusal.words()), 16, seed=1)
    whole = refusal.calibrate([unit_BD], word_WD)
    for size in (7, 64):
        parts = refusal.calibrate(unit_BD.split(size), word_WD)
        assert math.isclose(parts, whole, abs_tol=1e-4)
    kin = refusal.kin(word_WD)
    asked = [
        refusal.of_text(refusal.words()[w], word_WD[w], unit_BD, word_WD, kin)
        for w in range(0, len(word_WD), 20)
    ]
    below = sum(value < whole for value in asked) / len(asked)
    assert 0.42 < below < 0.58
    assert refusal.calibrate([], word_WD) == -math.inf


def test_kin_is_no_rival():
    """A word that means what the text means, by its vector or by its words, is left out."""
    word_WD = gaussian(len(refusal.words()), 64)
    kin, names = refusal.kin(word_WD), refusal.words()
    text_D = torch.nn.functional.normalize(word_WD[30] + 0.05 * word_WD[31], dim=0)
    unit_BD = torch.nn.functional.normalize(word_WD[30:31] + 0.2 * word_WD[40:41], dim=1)
    alone = refusal.of_text("no noun at all", text_D, unit_BD, word_WD, kin)
    strict = refusal.of_text("no noun at all", text_D, unit_BD, word_WD, 1.0)
    assert alone > math.log(0.9) and strict < math.log(0.7)
    named = refusal.of_text(f"a {names[30]}", text_D, unit_BD, word_WD, 1.0)
    assert math.isclose(named, alone, abs_tol=1e-5)
    other_1W = unlike_each(word_WD, word_WD[30:31], names, [names[30]])
    whole = refusal.evidence(unit_BD @ word_WD[30:31].T, unit_BD @ word_WD.T, other_1W)
    asked = refusal.of_text(names[30], word_WD[30], unit_BD, word_WD, kin)
    assert math.isclose(asked, float(whole[0]), abs_tol=1e-6)


def test_what_is_not_there_is_said(tmp_path):
    """A collection of pictures that lie where a word does, and of none where others do."""
    words = len(refusal.words())
    word_WD = torch.nn.functional.normalize(
        torch.randn(words, 64, generator=torch.Generator().manual_seed(0)), dim=1
    )
    noise_BD = torch.from_numpy(units(200, width=64, seed=4))
    unit_BD = torch.nn.functional.normalize(
        word_WD[torch.arange(200) % 100] + 0.7 * noise_BD, dim=1
    )
    index = made(tmp_path / "db", unit_BD.numpy())
    here, *gone = (Query(word_WD[w], refusal.words()[w]) for w in (5, *range(500, 1700, 40)))
    assert index.search(here).absent is None, "it is not calibrated"
    fake = type("Clip", (), {"encode_text": lambda self, names: word_WD})()
    maintenance.calibrate(index.store, fake, 200)
    assert index.search(here).absent is False
    refused = [query for query in gone if index.search(query).absent]
    assert len(refused) > 0.4 * len(gone)
    assert index.search(refused[0], tell_absent=False).absent is None
    assert index.search(refused[0], where="width > 5").absent is None
    assert index.search(Query(refused[0].unit_D)).absent is None, "a picture is asked for"


def test_settling_is_done_when_it_is_due(clip, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    done = []
    monkeypatch.setattr(maintenance, "EXACT", 6)
    monkeypatch.setattr(maintenance, "index_vectors", lambda table: done.append("vectors"))
    monkeypatch.setattr(maintenance, "calibrate", lambda *a: done.append("threshold"))

    def grow(count):
        done.clear()
        for i in range(len(list(home.iterdir())), count):
            landscape(20, 20, seed=i).save(home / f"{i:03}.png")
            os.utime(home / f"{i:03}.png", (time.time() - 100,) * 2)
        list(update(tmp_path / "db", [home], engine=Engine(clip)))
        return done

    monkeypatch.setattr(maintenance, "calibrate", lambda store, clip, count: (
        done.append("threshold"), store.note(usual="-5", calibrated=str(count))))  # fmt: skip
    assert grow(5) == ["threshold"]
    assert grow(5) == []
    assert grow(6) == ["vectors", "threshold"]
    assert grow(8) == ["threshold"]
    assert grow(12) == ["vectors", "threshold"]


def test_a_query_of_another_width(index):
    with pytest.raises(UsageError, match="3 numbers, and the vectors of .* have 8"):
        index.search(Query(torch.eye(3)[0]))


def test_fusing_keeps_the_first_of_equals():
    row = [{"path": name} for name in "abc"]
    assert [r["path"] for r in search.fuse([row, row[::-1]])] == ["a", "c", "b"]


def test_the_benchmark_of_vectors_builds_once(tmp_path):
    settings = {"count": 1500, "clusters": 15, "queries": 20, "peers": False, "keep": False}
    first = benchmark.vectors(**settings, keep_index=tmp_path, build_only=True)
    assert "clipguide" not in first and abs(first["within, share"] - 0.5) < 0.05
    (folder,) = tmp_path.iterdir()
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    facts = benchmark.vectors(**settings, keep_index=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert facts["clipguide"]["recall@10"] == 1 and facts["db made in s"] == first["db made in s"]
    (folder / "db").rename(folder / "part-db")  # killed in the middle
    again = benchmark.vectors(**settings, keep_index=tmp_path)
    assert again["clipguide"]["recall@10"] == 1 and not (folder / "part-db").exists()


def test_the_benchmark_of_refusal_on_what_is_clear():
    """Pictures that are their names: nothing that is there is refused, all else far behind it."""
    word_WD = gaussian(len(refusal.words()), 256)
    text_ND, target_B = gaussian(60, 256, seed=1), torch.arange(60)
    concepts = [f"thing{n}" for n in range(60)]
    found = benchmark.refused(text_ND, target_B, text_ND, word_WD, concepts, 0, 20)
    assert found["pictures"] == 30 and found["absent"] == 20
    assert found["AUC"] == 1 == found["recall@1 of those there"] and found["false"] == 0
    assert found["refused at 5 % false"] == 1 and found["refused"] > 0.2

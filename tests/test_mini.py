"""The embedded models as they ship."""

import pytest

from clipguide import mini
from clipguide.errors import ClipguideError, UsageError


@pytest.mark.parametrize("name", mini.MODELS)
def test_whole_and_described(name):
    mini.check(name)
    assert mini.weights(name), "SHA256SUMS lists none of its files"
    card = mini.card(name)
    assert {"name", "licence", "task", "data", "figures"} <= set(card) and card["figures"]


def test_every_weights_file_is_listed():
    listed = {file for name in mini.MODELS for file in mini.weights(name)}
    assert listed == set(mini.FOLDER.rglob("*.safetensors"))


def test_nothing_that_a_pickle_could_hide_in():
    kinds = {file.suffix for file in mini.FOLDER.rglob("*") if file.is_file()}
    assert kinds <= {".safetensors", ".json", ".txt", ".md", ".py", ".pyc", ""}


def test_small_enough_to_ship():
    sizes = [file.stat().st_size for file in mini.FOLDER.rglob("*.safetensors")]
    assert sum(sizes) <= 95e6 and max(sizes) <= 48e6


def test_no_file_names_a_folder_of_the_machine_that_made_it():
    texts = {file: file.read_text("utf-8") for file in mini.FOLDER.rglob("*.json")}
    assert texts and not [f.name for f, text in texts.items() if "_name_or_path" in text]


def test_unknown():
    with pytest.raises(UsageError, match="Did you mean judge"):
        mini.path("jugde")


def test_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "FOLDER", tmp_path)
    for _ in range(2):  # without the folder, then without the list of digests
        with pytest.raises(ClipguideError, match="reinstall"):
            mini.check("guide")
        (tmp_path / "guide").mkdir(exist_ok=True)

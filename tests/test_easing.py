"""What is said where the judge eased the steering: one line, when everything is drawn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from clipguide.pipelines.picture import easing
from test_cli import FAST, in_a_folder, invoke  # noqa: F401

from clipguide.guidance.trust import Trust


def drawn(*steps):
    return [SimpleNamespace(eased=step) for step in steps]


def test_the_sentence():
    assert easing(drawn(None, None)) is None and easing([]) is None
    assert easing(drawn(14)) == "Steering was eased from step 15 on: the judge disagreed"
    one, two = easing(drawn(None, 14, None)), easing(drawn(20, 14, None))
    assert one == "Steering of 1 of 3 images was eased from step 15 on: the judge disagreed"
    assert two == (
        "Steering of 2 of 3 images was eased, the earliest from step 15 on: the judge disagreed"
    )


@pytest.fixture
def doubting(monkeypatch):
    """Trust that falls at the third scoring, whatever is scored."""

    def see(self, rank_B, judge_B):
        self.seen = getattr(self, "seen", 0) + 1
        fell_B = torch.full_like(rank_B, self.seen == 3, dtype=torch.bool)
        self.factor_B = torch.where(fell_B, 0.5, self.factor_B)
        return fell_B

    monkeypatch.setattr(Trust, "see", see)


def test_the_command_says_it_once_at_the_end(tiny_mini, doubting):
    """Scored at steps 1, 6 and 11: the third eases step 12, which is in the last tenth of 12 steps
    and not of 13."""
    calm = invoke("generate", "fox", "--count", 2, "--seed", 7, "--steps", 12, "--out", "calm/")
    assert "judge disagreed" not in calm.stderr
    told = invoke("generate", "fox", "--count", 2, "--seed", 7, "--steps", 13, "--out", "told/")
    assert told.stderr.strip().splitlines()[-1] == (
        "clipguide: Steering of 2 of 2 images was eased, the earliest from step 12 on: the judge "
        "disagreed; --trace shows it."
    )
    assert told.stderr.count("judge disagreed") == 1
    quiet = ("--quiet", "--steps", 13, "--out", "quiet/")
    assert not invoke("generate", "fox", "--seed", 7, *quiet).stderr


def test_the_page_says_it_with_the_last_image(tiny_mini, doubting, tmp_path):
    pytest.importorskip("gradio")
    from clipguide.ui import Models, generate_tab

    models = Models()
    assert models.stops.ask("session")
    given = ("fox", "", 0.1, 13, "7", 1)
    *_, (_, said, _) = generate_tab.draw(models, "session", str(tmp_path), *given)
    assert "is finished. Steering was eased from step 12 on: the judge disagreed." in said

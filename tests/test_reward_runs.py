"""Rewards at work: what pulls, what selects, what is refused, and an address that fails."""

from __future__ import annotations

import json
import math
import socket
import threading
import warnings
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from clipguide.pipelines.drawing import Drawing
from clipguide.pipelines.text_to_canvas import TextToCanvas
from clipguide.pipelines.text_to_image import TextToImage
from test_cli import in_a_folder, invoke  # noqa: F401
from test_cli_score import pictures, run  # noqa: F401
from test_guidance import draw, use
from test_methods import Brightness, settings
from torch.testing import assert_close

from clipguide import Region, Reward, Scheduled, load_clip, register_reward
from clipguide import images as files
from clipguide.canvases import Pixels
from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.guidance import BestOf, Lookahead, Particles, Rollover, Shortcut, steer
from clipguide.images import to_pil
from clipguide.objectives import Balanced, Objective, Similarity
from clipguide.optimize import Loop
from clipguide.prompts import parse
from clipguide.recipe import from_json, read_png
from clipguide.rewards import REWARDS
from clipguide.rewards.verifier import probability
from clipguide.ui import Models, generate_tab

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


class Redness(Objective):
    """Minus how red an image is."""

    def __call__(self, image_B3HW, generators=None):
        return -image_B3HW[:, 0].flatten(1).mean(1)


class Free(Redness):
    """The same without a gradient; it counts how often it was asked."""

    differentiable, asked = False, 0

    def __call__(self, image_B3HW, generators=None):
        Free.asked += 1
        assert not image_B3HW.requires_grad
        return super().__call__(image_B3HW)


@pytest.fixture(autouse=True)
def named():
    Free.asked = 0
    for name, made in {"redness": Redness(), "free": Free(), "blueness": -Redness()}.items():
        load = lambda settings, made=made: lambda prompts: made  # noqa: E731
        register_reward(name, load, gradient=made.differentiable, reads=False, default="-")
    yield
    for name in ("redness", "free", "blueness"):
        REWARDS.unregister(name)


# ------------------------------------------------------------ steering
@pytest.mark.parametrize(
    "method",
    ["shortcut", "backprop", "noise", "embedding", BestOf(each=Shortcut()), Rollover(strength=0.1)],
)
def test_what_has_no_gradient_is_refused_before_anything_loads(pipe, method):
    """Wherever it stands, and no method is told to take itself."""
    reward = Reward("free")
    parts = (0.5 * reward, Region(reward, (0, 0, 0.5, 1)), Scheduled(reward, "1@0..0.5"))
    for part in parts:
        with pytest.raises(UsageError, match=r"free\) has no gradient, and .* needs one") as e:
            steer(pipe, Similarity(load_clip("mini"), "a fox") + part, method=method)
        name, rest = str(e.value).split(", and ")[1].split(" needs one: ")
        assert name.split(",")[0] not in rest
    assert not reward._loaded


@pytest.mark.parametrize(
    "method",
    [
        BestOf(number=3),
        Particles(number=2, every=1, sharpness=1e4),
        Rollover(quota=3),
        Lookahead(number=3, steps=2),
    ],
)
def test_what_has_no_gradient_serves_the_others(pipe, method):
    """The same bits as by the reward that has one, and not those of the plain pipeline."""
    use(pipe, "DDIM")
    images = []
    for name in ("free", "redness"):
        with steer(pipe, Reward(name), method=method) as s:
            images.append(s(**settings(steps=6)).images)
    assert Free.asked and torch.equal(*images)
    assert not torch.equal(images[0], draw(pipe, steps=6))


def test_guide_verifier_and_judge_are_three(pipe, clip, judge):
    """Brightness pulls, redness picks, the judge scores: the kept image is the reddest."""
    use(pipe, "DDIM")
    method = BestOf(number=3, each=Shortcut(strength=0.2))
    watch = Similarity(judge, "a fox", views=None)
    with steer(pipe, Brightness(), method=method, select=Reward("free"), judge=watch) as s:
        kept = s(**settings(steps=4)).images
    scores = torch.stack(s.report.candidates)
    with steer(pipe, Brightness(), method=Shortcut(strength=0.2)):
        each = [
            draw(pipe, seeds=[seed + k * 1_000_000 for seed in (3, 4)]) for k in range(3)
        ]
    assert_close(scores, torch.stack([-Redness()(image) for image in each]), atol=1e-5, rtol=0)
    assert_close(-Redness()(kept), scores.amax(0), atol=1e-5, rtol=0)
    assert s.report.judge_score_B is not None


@pytest.mark.parametrize("method", [Particles(number=2, every=1), Rollover(quota=2)])
def test_what_only_picks_goes_by_what_selects(pipe, method):
    use(pipe, "DDIM")
    images = []
    for objective, select in ((Brightness(), Reward("free")), (Reward("free"), None)):
        with steer(pipe, objective, method=method, select=select):
            images.append(draw(pipe, steps=4))
    assert torch.equal(*images)


# ------------------------------------------------------------ scores that are no numbers
class Broken(Objective):
    """Not a number for the image of that place at that look."""

    differentiable = False

    def __init__(self, *looks):
        self.looks, self.look = looks, 0

    def __call__(self, image_B3HW, generators=None):
        loss_B = -image_B3HW.flatten(1).mean(1)
        if self.look in self.looks or self.looks == ("all",):
            loss_B = loss_B.clone()
            loss_B[0] = torch.nan
        self.look += 1
        return loss_B


@pytest.mark.parametrize(
    "method",
    [
        BestOf(number=3),
        Particles(number=2, every=1, sharpness=1e4),
        Rollover(quota=3),
        Lookahead(number=3, steps=2),
    ],
)
@pytest.mark.parametrize("looks", [(0,), (1,), ("all",)])
def test_a_score_that_is_no_number_is_the_worst(pipe, method, looks):
    """The run ends with finite images; best-of does not keep the image without a score."""
    use(pipe, "DDIM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipguideWarning)
        with steer(pipe, Broken(*looks), method=method) as s:
            image = s(**settings(steps=4)).images
    assert image.isfinite().all()
    if isinstance(method, BestOf) and looks == (0,):
        scores = torch.stack(s.report.candidates)[:, 0]
        assert scores[0] == -torch.inf and scores[1:].isfinite().all()
        assert_close(image[0].mean(), scores.amax(), atol=1e-5, rtol=0)
    elif not isinstance(method, BestOf):
        assert any("is not a number" in said for said in s.report.warnings) or looks != ("all",)


# ------------------------------------------------------------ the pipeline and the recipe
@pytest.fixture
def make(tiny_mini):
    return TextToImage()


def test_rewards_and_recipes(make):
    """Balanced where all have a gradient; the recipe says what pulled and what selected, and makes
    the image again."""
    given = {"steps": 3, "seed": 4, "best_of": 2}
    plain = make("a fox", **given)[0]
    pulled = make("a fox", rewards=["redness:3"], select=["free:0.5", "redness"], **given)[0]
    assert pulled.image.tobytes() != plain.image.tobytes()
    assert pulled.recipe.rewards == {"redness:3": ""} and plain.recipe.rewards == {}
    assert pulled.recipe.selected_by == {"free:0.5": "", "redness": ""}
    again = from_json(pulled.recipe.to_json())
    assert again == pulled.recipe
    assert make.replay(again).image.tobytes() == pulled.image.tobytes()
    objective = make.rewards.pulling(Brightness(), FOX, SETTINGS("redness:3"))
    assert isinstance(objective, Balanced)
    assert not isinstance(make.rewards.pulling(Brightness(), FOX, SETTINGS("free")), Balanced)
    named = make("a fox", rewards=["clip=mini-judge"], steps=1)[0].recipe
    clip = make.rewards._reward("clip=mini-judge", SETTINGS()).load()
    assert named.rewards == {"clip=mini-judge": clip.fingerprint} and len(clip.fingerprint) == 64


FOX = [parse("a fox")]


def SETTINGS(*rewards):
    from types import SimpleNamespace

    return SimpleNamespace(rewards=rewards, question="", trust_pickle=False)


def test_rewards_that_pull_against_each_other_are_said(make):
    with pytest.warns(ClipguideWarning, match="pull against each other") as caught:
        make("a fox", rewards=["redness", "blueness"], steps=2, count=2)
    assert len([w for w in caught if "pull against" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipguideWarning)
        make("a fox", rewards=["redness:-1"], steps=2)


def test_what_selects_among_one_is_ignored_and_said(make):
    with pytest.warns(ClipguideWarning, match="select is ignored: there is one candidate"):
        make("a fox", select=["free"], steps=1)


def test_candidates_are_pruned_by_what_selects(make):
    """One image of four previews; the recipe makes it again."""
    method = BestOf(number=4, finish=2, look=0.5)
    pruned = make("a fox", method=method, select=["free"], steps=4, seed=3)[0]
    assert pruned.recipe.options == {"finish": "2", "look": "0.5"}
    each = make("a fox", best_of=4, strength=0.0, select=["free"], steps=4, seed=3)[0]
    reds = [files.to_tensor([p.image])[:, 0].mean() for p in (each, pruned)]
    assert reds[1] <= reds[0] + 1e-4
    assert make.replay(pruned.recipe).image.tobytes() == pruned.image.tobytes()


def test_a_canvas_refuses_what_has_no_gradient():
    canvas = Pixels(16, 16, [torch.Generator()])
    with pytest.raises(UsageError, match=r"Reward\(free\) has no gradient, and a canvas"):
        Loop(canvas, Brightness() + Reward("free"), steps=1)


SMALL = {"steps": 3, "size": (32, 32), "cutouts": 2, "sds": 0.0}


def test_rewards_on_a_canvas(tiny_mini):
    """Balanced with the guide, in every prompt's turn; the recipe makes the image again."""
    draw = TextToCanvas("pixels")
    (plain,) = draw("a fox", Drawing(**SMALL), seed=2)
    asked = Drawing(**SMALL, rewards=("redness:3",), question="red?", trust_pickle=True)
    (pulled,) = draw("a fox", asked, seed=2)
    assert pulled.image.tobytes() != plain.image.tobytes()
    assert Redness()(files.to_tensor([pulled.image])) < Redness()(files.to_tensor([plain.image]))
    recipe = from_json(pulled.recipe.to_json())
    assert (recipe.rewards, recipe.question) == ({"redness:3": ""}, "red?")
    assert plain.recipe.rewards == {} and "rewards" not in recipe.options
    assert Drawing.of(recipe) == replace(asked, trust_pickle=False, fade=0.0)
    assert draw.replay(recipe).image.tobytes() == pulled.image.tobytes()
    begun = draw.start("a fox", replace(asked, prompts_at=((1, "an owl"),)))
    assert len([term for _, term in begun._objective.terms() if isinstance(term, Reward)]) == 2
    with pytest.warns(ClipguideWarning, match="pull against each other"):
        draw("a fox", Drawing(**SMALL, rewards=("redness", "blueness")))
    for rewards, message in (
        (("free",), "free has no gradient, and a canvas"),
        (("rednes",), "Did you mean redness"),
        (("redness", "redness"), "given twice"),
    ):
        with pytest.raises(UsageError, match=message):
            draw("a fox", Drawing(**SMALL, rewards=rewards))


def test_rewards_of_optimize(tiny_mini):
    given = ("optimize", "fox", "--sds", 0, "--steps", 2, "--size", 32, "--seed", 7)
    invoke(*given, "--reward", "redness:0.5", "--out", "fox.png")
    assert read_png("fox.png").rewards == {"redness:0.5": ""}
    assert "names redness:0.5" in invoke("replay", "fox.png", code=2).stderr
    assert "pixel for pixel" in invoke("replay", "fox.png", "--trust").stdout
    said = invoke(*given, "--reward", "free", "--out", "other.png", code=2).stderr
    assert "a canvas is drawn by gradients" in " ".join(said.split())


def test_rewards_on_the_page(tiny_mini, tmp_path):
    """Those that the server was started with: one pulls, one chooses among the candidates."""
    models = Models(rewards=("redness:2", "free"))

    def drawn(*rewards) -> tuple[str, object]:
        models.stops.ask("session")
        given = ("a fox", "", 0.1, 2, "5", 1, 2, rewards)
        *_, (cells, said, _) = generate_tab.draw(models, "session", str(tmp_path), *given)
        return said, read_png(cells[0][0]) if cells else None

    said, recipe = drawn("redness:2", "free")
    assert recipe.rewards == {"redness:2": ""} and recipe.selected_by == {"free": ""}, said
    assert drawn()[1].rewards == {}
    said, recipe = drawn("blueness")
    assert recipe is None and "does not offer the reward" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rewards": ["rednes"]}, "no reward 'rednes'. Did you mean redness"),
        ({"rewards": ["free"]}, "has no gradient, and shortcut needs one"),
        ({"rewards": ["redness", "redness"]}, "given twice"),
        ({"rewards": "redness"}, "Rewards are a list"),
        ({"rewards": ["redness"], "method": "auto"}, "auto was measured without rewards"),
        ({"select": ["aesthetic"]}, "aesthetic must be told a head"),
        ({"method": "auto", "budget": 0.5}, "at least 1"),
        ({"budget": 0.5}, "at least 1|from 1"),
    ],
)
def test_what_cannot_be_asked_for(make, settings, message):
    with pytest.raises(UsageError, match=message):
        make("a fox", steps=1, **settings)


def test_the_command(tiny_mini):
    given = ("generate", "fox", "--steps", 2, "--seed", 7, "--out", "fox.png")
    invoke(*given, "--reward", "redness:0.5", "--best-of", 2, "--select", "free")
    recipe = read_png("fox.png")
    assert (recipe.rewards, recipe.selected_by) == ({"redness:0.5": ""}, {"free": ""})
    refused = invoke("replay", "fox.png", code=2)
    assert "names free, redness:0.5" in refused.stderr
    invoke("replay", "fox.png", "--trust")
    for more, message in (
        (("--reward", "free"), "needs one"),
        (("--reward", "redness", "--method", "auto"), "auto was measured without rewards"),
        (("--select", "hpsv4"), "Did you mean hpsv3 or hpsv2"),
        (("--reward", "hpsv3", "--method", "best-of"), "pip install --no-deps hpsv3"),
    ):
        told = invoke(*given, "--force", *more, code=2)
        assert message in told.stderr


def test_rerank(run, pictures):  # noqa: F811
    """By a reward alone, and beside the cosine; one that reads a text is told one."""
    result = run("rerank", pictures, "--reward", "redness", "--format", "jsonl")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    loaded = {row["path"]: files.to_tensor([files.load(row["path"])]) for row in rows}
    red = {path: -Redness()(image).item() for path, image in loaded.items()}
    assert [row["path"] for row in rows] == sorted(red, key=red.get, reverse=True)
    found = torch.tensor([row["redness"] for row in rows])
    assert_close(found, torch.tensor(sorted(red.values(), reverse=True)))
    both = run("rerank", pictures, "--reward", "free:-1", "--text", "a fox", "--format", "jsonl")
    assert {"text", "free"} <= json.loads(both.stdout.splitlines()[0]).keys()
    assert run("rerank", pictures, "--reward", "clip").exit_code == 2
    assert "There is nothing to rank by" in run("rerank", pictures).stderr


# ------------------------------------------------------------ an address
class Server(ThreadingHTTPServer):
    """A verifier on this machine; `answers` are given in turn, the last again and again. An Event
    among them is waited for."""

    def __init__(self, *answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked, self.over = list(answers), [], threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()

    @property
    def name(self):
        return f"vlm=http://127.0.0.1:{self.server_port}/v1#tiny"

    def end(self):
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        pass


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, body, self.headers.get("Authorization")))
        answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        if answer == "slow":
            server.over.wait(60)
            return
        if answer == "drip":  # a blank each 0.1 seconds, so that no single read waits for long
            self.send_response(200)
            self.end_headers()
            while not server.over.wait(0.1):
                self.wfile.write(b" ")
            return
        if answer == "no http":
            self.wfile.write(b"what is that?\r\n")
            return
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", content)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.server.asked.append(self.headers.get("Authorization"))
        self.send_error(404)

    def log_message(self, *_):
        pass


def said(**probabilities):
    listed = [{"token": k, "logprob": math.log(p)} for k, p in probabilities.items()]
    logprobs = {"content": [{"token": "x", "logprob": 0.0, "top_logprobs": listed}]}
    return {"choices": [{"message": {"content": "yes"}, "logprobs": logprobs}]}


WORD = {"choices": [{"message": {"content": "No, it does not."}, "logprobs": None}]}


@pytest.fixture
def serve():
    servers = []

    def start(*answers):
        servers.append(Server(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


def asking(name, **more):
    return Reward(name, "a red fox", timeout=0.5, retries=1, wait=0.0, **more)


def test_what_an_address_is_sent_and_says(serve):
    server = serve(said(Yes=0.3, yes=0.1, No=0.2, maybe=0.4), WORD)
    picture = to_pil(torch.rand(1, 3, 8, 8, generator=torch.manual_seed(0)))[0]
    reward = asking(server.name, question="Is it {}?", key="secret")
    found = reward.score_pictures([picture, picture])
    assert_close(found, torch.tensor([0.4 / 0.6, 0.0]))
    path, body, key = server.asked[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "tiny")
    image, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "Is it a red fox?"}
    import base64
    import io

    from PIL import Image

    head, data = image["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert sent.tobytes() == picture.tobytes() and "secret" not in str(reward.asked)


@pytest.mark.parametrize("odd", [{}, {"choices": []}, {"choices": [{"message": {"content": ""}}]},
                                 {"choices": [{"message": {"content": "perhaps"}}]},
                                 said(yes=math.nan, no=0.5)])  # fmt: skip
def test_answers_that_are_none(odd):
    with pytest.raises((ValueError, KeyError, IndexError)):
        probability(odd)


@pytest.mark.parametrize(
    ("answers", "message", "times"),
    [
        (["slow"], "longer than 0.5 seconds", 2),
        (["drip"], "longer than 0.5 seconds", 2),
        (["no http"], "the connection broke", 2),
        ([(500, b"")], "it answers 500", 2),
        ([(404, b"")], "it answers 404", 1),
        ([b"no json"], "no yes and no no", 2),
        ([{"choices": [{"message": {"content": "perhaps"}}]}], "no yes and no no", 2),
    ],
)
def test_an_address_that_is_slow_or_wrong(serve, answers, message, times):
    """Asked again where that may help; then a sentence, or in a run a warning and a plain no."""
    server = serve(*answers)
    picture = to_pil(torch.rand(1, 3, 8, 8))[0]
    reward = asking(server.name)
    with pytest.raises(ClipguideError, match=f"{message}.*look whether it runs"):
        reward.score_pictures([picture])
    assert len(server.asked) == times
    with pytest.warns(ClipguideWarning, match="The run goes on without it"):
        assert torch.equal(reward(torch.rand(3, 3, 8, 8)), torch.zeros(3))
    asked = len(server.asked)
    assert torch.equal(reward(torch.rand(2, 3, 8, 8)), torch.zeros(2))
    assert len(server.asked) == asked  # not again


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_an_address_that_sends_on_is_not_followed(serve, status):
    """Elsewhere neither image nor key arrives."""
    other = serve(WORD)
    server = serve((status, f"http://127.0.0.1:{other.server_port}/v1/chat/completions"))
    picture = to_pil(torch.rand(1, 3, 8, 8))[0]
    with pytest.raises(ClipguideError, match=f"it answers {status}.*look whether it runs"):
        asking(server.name, key="secret").score_pictures([picture])
    assert len(server.asked) == 1 and not other.asked


def test_a_second_try_helps(serve):
    server = serve((503, b""), said(Yes=0.9, No=0.1))
    assert_close(asking(server.name).score(torch.rand(1, 3, 8, 8)), torch.tensor([0.9]))


def test_a_run_keeps_its_images_while_the_address_is_away(pipe):
    """Nobody listens there: the run ends with the images of its first candidates."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    use(pipe, "DDIM")
    plain = draw(pipe)
    reward = asking(f"vlm=http://127.0.0.1:{port}/v1")
    with pytest.warns(ClipguideWarning, match="cannot be reached"):
        with steer(pipe, Brightness(), method=BestOf(number=2), select=reward) as s:
            kept = s(**settings()).images
    assert torch.equal(kept, plain)

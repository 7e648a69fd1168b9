"""HPSv3 (Ma et al. 2025): Qwen2-VL, and a head on the hidden state of its token <|Reward|>.

The head returns a mean and a spread. The mean is the score, as in the authors' code. The question
is long, so it is read from the authors' package.

The authors' package pins transformers 4.45.2. Later versions differ from it in three ways, and the
reward follows the package. PIL resizes the images. The forward pass of the package gives no
positions, so the tokens of an image are counted as those of a text, and not by rows and columns.
The frequencies of the rotary embeddings are rounded to bfloat16, as the weights are.

Shapes: L tokens, D numbers of a hidden state.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ..errors import ClipguideError
from .pictures import OfPictures, plain
from .registry import Scorer, Settings

BASE = "Qwen/Qwen2-VL-7B-Instruct"
FILE = "HPSv3.safetensors"
TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28  # pixels of a resized image
HEAD = (0, 3, 5)  # places of its linear layers: ReLU follows the first two, dropout the first
QUESTION = ("INSTRUCTION", "prompt_with_special_token")  # constants of its package


class HPSv3(OfPictures):
    """Minus the mean reward, about 0 to 15.

    Args:
        model: a Qwen2VLModel whose embeddings have a row for TOKEN.
        head: takes the hidden state and returns (mean, spread).
        processor: the processor of Qwen2-VL, which knows TOKEN.
        question: the question, with {text_prompt} for the prompt, and TOKEN.
        texts: one text for all images, or a list, as for `Similarity`.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module,
        processor: object,
        question: str,
        texts: Sequence[str],
    ) -> None:
        super().__init__(texts)
        self.model, self.head = (m.eval().requires_grad_(False) for m in (model, head))
        self.processor, self.question = processor, question
        self.token = processor.tokenizer.convert_tokens_to_ids(TOKEN)

    def score_one(self, picture: Image.Image, text: str) -> float:
        """Return the mean reward of an RGB image."""
        asked = self.question.replace("{text_prompt}", text)
        content = [{"type": "image"}, {"type": "text", "text": asked}]
        said = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        given = self.processor(
            text=[said],
            images=[_resized(picture)],
            return_tensors="pt",
            images_kwargs={"do_resize": False},
        ).to(self.model.device)
        ids_1L = given["input_ids"]
        count_31L = torch.arange(ids_1L.shape[1], device=ids_1L.device).expand(3, 1, -1)
        with torch.no_grad():
            hidden_LD = self.model(**given, position_ids=count_31L).last_hidden_state[0]
            place = (ids_1L[0] == self.token).nonzero()[-1, 0]
            return self.head(hidden_LD[place].float())[0].item()


def _resized(picture: Image.Image) -> Image.Image:
    """Return the image with about PIXELS pixels, in whole patches of Qwen2-VL."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    width, height = picture.size
    height, width = smart_resize(height, width, min_pixels=PIXELS, max_pixels=PIXELS)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def hpsv3(settings: Settings) -> Scorer:
    """Load `hpsv3[=WEIGHTS[#BASE]]`: HPSv3.safetensors or the hub's name of its repository, and the
    Qwen2-VL with its processor and configuration."""
    import transformers
    from safetensors.torch import load_file

    path = Path(settings.where)
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(settings.where, FILE))
    base = settings.model or BASE
    processor = transformers.AutoProcessor.from_pretrained(base)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]})
    config = transformers.AutoConfig.from_pretrained(base)
    model, head = build(config, load_file(path), settings.dtype)
    model, head = model.to(settings.device), head.to(settings.device)
    question = question_of_package()
    return lambda prompts: HPSv3(model, head, processor, question, plain(prompts, "HPSv3"))


def build(
    config: object, weights: dict[str, torch.Tensor], dtype: str
) -> tuple[nn.Module, nn.Sequential]:
    """Return the model and its head with the weights of a checkpoint, whose embeddings have one row
    for each word of the tokenizer. Raise ClipguideError if they do not fit."""
    from accelerate import init_empty_weights
    from transformers import Qwen2VLModel

    found = {_renamed(k): v for k, v in weights.items() if k.split(".")[0] in ("model", "visual")}
    words = found.get("language_model.embed_tokens.weight")
    config.text_config.vocab_size = 1 if words is None else len(words)
    with init_empty_weights():  # except buffers, which are in no checkpoint
        model = Qwen2VLModel(config)
    sizes = [weights.get(f"rm_head.{place}.weight") for place in HEAD]
    if any(size is None for size in sizes):
        raise ClipguideError(f"These weights have no head of HPSv3's (rm_head): take {FILE}.")
    steps: list[nn.Module] = []
    for place, weight in zip(HEAD, sizes):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict(
            {"weight": weight.float(), "bias": weights[f"rm_head.{place}.bias"].float()}
        )
        steps += [linear, nn.ReLU()]
    for frequencies in model.buffers():
        frequencies.copy_(frequencies.bfloat16())
    try:
        model.load_state_dict(found, assign=True)
    except RuntimeError as error:
        raise ClipguideError(
            f"These weights are not HPSv3's: take {FILE}. {str(error)[:200]}."
        ) from error
    return model.to(getattr(torch, dtype)), nn.Sequential(*steps[:-1])


def _renamed(key: str) -> str:
    """Return the name in Qwen2VLModel of a weight of transformers 4.45, or of a later version."""
    key = re.sub(r"^visual\.", "model.visual.", key)
    key = re.sub(r"^model\.(?!visual\.|language_model\.)", "model.language_model.", key)
    return key.removeprefix("model.")


def question_of_package() -> str:
    """Return the question of the authors' package, without running its code. Raise ClipguideError
    if there is none."""
    found: dict[str, str] = {}
    home = importlib.util.find_spec("hpsv3")
    for folder in (home.submodule_search_locations or []) if home else []:
        file = Path(folder) / "dataset" / "data_collator_qwen.py"
        if file.is_file():
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                    found[getattr(node.targets[0], "id", "")] = node.value.value
    if not all(name in found for name in QUESTION):
        raise ClipguideError(
            "hpsv3's package has no question where 1.0 has it: pip install --no-deps hpsv3==1.0.0."
        )
    return "".join(found[name] for name in QUESTION)

"""The README.md of an export: its files, how to run them, and their accuracy."""

from __future__ import annotations

PICTURE = """image_HW3 = np.asarray(Image.open("fox.png").convert("RGB"), np.float32) / 255
tokenizer = Tokenizer.from_file("FOLDER/tokenizer.json")
tokens_BL = [text.ids for text in tokenizer.encode_batch(["a fox", "a house"])]
"""
RUN = {
    "onnx": """import numpy as np, onnxruntime as ort
from PIL import Image
from tokenizers import Tokenizer

"""
    + PICTURE
    + """image, text = (ort.InferenceSession(f"FOLDER/{one}.onnx") for one in ("image", "text"))
(image_D,) = image.run(None, {"image": image_HW3.transpose(2, 0, 1)[None]})[0]
cosines = text.run(None, {"tokens": tokens_BL})[0] @ image_D
""",
    "torch-export": """import numpy as np, torch
from PIL import Image
from tokenizers import Tokenizer

"""
    + PICTURE
    + """towers = (torch.export.load(f"FOLDER/{one}.pt2") for one in ("image", "text"))
image, text = (one.module() for one in towers)
(image_D,) = image(torch.from_numpy(image_HW3).permute(2, 0, 1)[None])
cosines = text(torch.tensor(tokens_BL)) @ image_D
""",
    "hf": """from PIL import Image
from transformers import AutoModel, AutoProcessor

model, processor = (one.from_pretrained("FOLDER") for one in (AutoModel, AutoProcessor))
given = processor(
    images=Image.open("fox.png").convert("RGB"), text=["a fox", "a house"],
    padding="max_length", truncation=True, return_tensors="pt",
)
probabilities = model(**given).logits_per_image.softmax(-1)
""",
}
INPUTS = {
    "onnx": "`image.onnx` takes `image`, float32 of the shape (batch, 3, height, width)",
    "torch-export": "`image.pt2` takes float32 of the shape (batch, 3, height, width)",
}


def text(card: dict, sizes: dict[str, int], folder: str) -> str:
    """Return the README.md of an export with this card, in a folder of this name."""
    run = RUN[card["to"]].replace("FOLDER", folder)
    if card["logit_bias"]:  # the texts of a SigLIP are independent
        run = run.replace(".softmax(-1)", ".sigmoid()")
    parts = [
        f"# {card['model']} for {card['to']}",
        f"Written by clipguide {card['clipguide']} (`clipguide export`).",
        _inputs(card),
        f"```python\n{run}```",
        f"Logits are {card['logit_scale']:.4g} · cosine + {card['logit_bias']:.4g}. The rest of "
        "what there is to know is in `clip.json`.",
        f"Agreement with torch (cosines over {card['measured_on']}, run on a CPU):",
        _table(card, sizes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _inputs(card: dict) -> str:
    if card["to"] == "hf":
        return ""
    said = (
        f"{INPUTS[card['to']]}: RGB in [0, 1], of any size, all of a batch of one size. It is "
        f"resized ({card['preprocess']['resize_mode']}, to {card['image_size']} pixels) and "
        f"normalised inside. Texts are int64 tokens of the shape (batch, {card['context_length']})."
        f" Out come unit vectors of {card['embed_dim']}: their products are cosines."
    )
    if card["tokenizer"] is None:
        said += " There is no tokenizer.json of this model: make the tokens by open_clip."
    return said


def _table(card: dict, sizes: dict[str, int]) -> str:
    rows = ["| file | MB | mean cosine | lowest | of | int8 |", "|---|---|---|---|---|---|"]
    for name, said in card["files"].items():
        cosine = said["cosine"]
        size = f"{sizes[name] / 1e6:.1f}" if name in sizes else ""
        rows.append(
            f"| {name} | {size} | {cosine['mean']:.5f} "
            f"| {cosine['lowest']:.5f} | {cosine['count']} | {said.get('quantisation', '')} |"
        )
    return "\n".join(rows)

"""TensorFlow: both towers in one SavedModel, through ONNX and onnx2tf.

onnx2tf reshapes reliably only where every side is known, so that towers are converted for one
picture or text of the tower's own size and mapped over the batch; pictures are resized by
TensorFlow's antialiased resize, whose filters are Pillow's.

Shapes: B images or texts, L tokens, 3 channels, H rows, W columns, S the side that a tower sees.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch

from ..clip import Clip
from .onnx import OUTPUT, export_tower, failing, quiet, run_images
from .probes import Probes, compare, demand
from .towers import ImageTower, TextTower

CLOSE = 0.999  # what the lowest cosine with torch must reach


def write(clip: Clip, folder: Path, probes: Probes) -> dict[str, dict[str, object]]:
    """saved_model.pb with the signatures image (image_BHW3 in [0, 1], of any size) and text
    (tokens_BL), loaded again and compared with torch. ClipguideError where it differs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    given = {
        "image": (ImageTower(clip, resizes=False), torch.full((1, 3, *[clip.image_size] * 2), 0.5)),
        "text": (TextTower(clip), clip._tokenizer(["a red fox"])),
    }
    models = {}
    for kind, (tower, example) in given.items():
        path, what = folder / f"{kind}.onnx", f"The {kind} tower of {clip.name}"
        export_tower(tower.eval(), example, path, what=what, fixed=True)
        with quiet(), failing(f"{what} cannot be converted to TensorFlow"):
            models[kind] = _converted(path, "image" if kind == "image" else "tokens")
        for file in folder.glob(f"{kind}.onnx*"):
            file.unlink()
    with quiet(), failing(f"{clip.name} cannot be saved by TensorFlow"):
        _save(models, clip, folder)
        found = _measured(folder, probes)
    return {f"{kind} signature": {"cosine": one} for kind, one in found.items()}


def _converted(path: Path, name: str) -> object:
    """The tf_keras model of an ONNX file, its input laid out as it is: one picture or text."""
    import onnx2tf

    scratch = path.parent / "onnx2tf"
    model = onnx2tf.convert(
        input_onnx_file_path=str(path),
        output_folder_path=str(scratch),
        keep_shape_absolutely_input_names=[name],
        disable_model_save=True,  # of TensorFlow Lite's files
        non_verbose=True,
        verbosity="error",
    )
    shutil.rmtree(scratch, ignore_errors=True)
    return model


def _save(models: dict[str, object], clip: Clip, folder: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.weights = [list(model.variables) for model in models.values()]  # not each layer's graph

    def one_by_one(kind: str, given: object) -> dict[str, object]:
        def alone(one: object) -> object:
            return tf.reshape(models[kind](one[None]), [clip.embed_dim])

        return {OUTPUT: tf.map_fn(alone, given, fn_output_signature=tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="image")])
    def image(image):
        squared = _squared(image, clip.preprocess, clip.image_size)
        return one_by_one("image", tf.transpose(squared, [0, 3, 1, 2]))

    length = clip.context_length

    @tf.function(input_signature=[tf.TensorSpec([None, length], tf.int64, name="tokens")])
    def text(tokens):
        return one_by_one("text", tokens)

    module.image, module.text = image, text
    tf.saved_model.save(module, str(folder), signatures={"image": image, "text": text})


def _squared(image_BHW3: object, config: dict, size: int) -> object:
    """image_BSS3 as `clip.resize` makes it, in TensorFlow's graph."""
    import tensorflow as tf

    sides = tf.shape(image_BHW3)[1:3]
    mode = config["resize_mode"]
    if mode == "squash":
        target = tf.fill([2], size)
    elif mode == "shortest":  # torchvision truncates
        target = size * sides // tf.reduce_min(sides)
    else:
        exact = tf.cast(size * sides, tf.float64) / tf.cast(tf.reduce_max(sides), tf.float64)
        target = tf.maximum(1, tf.cast(tf.round(exact), tf.int32))
    filter_ = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    image = tf.image.resize(image_BHW3, target, method=filter_, antialias=True)
    image = tf.clip_by_value(image, 0.0, 1.0)
    excess = tf.maximum(target - size, 0)
    first = tf.cast(tf.round(tf.cast(excess, tf.float32) / 2), tf.int32)  # half to even
    kept = tf.minimum(target, size)
    image = image[:, first[0] : first[0] + kept[0], first[1] : first[1] + kept[1]]
    lack = size - kept
    sides = tf.stack([lack // 2, lack - lack // 2], axis=1)
    padding = tf.concat([tf.zeros([1, 2], tf.int32), sides, tf.zeros([1, 2], tf.int32)], axis=0)
    image = tf.pad(image, padding, constant_values=config.get("fill_color", 0) / 255)
    return tf.ensure_shape(image, [None, size, size, 3])


def _measured(folder: Path, probes: Probes) -> dict[str, object]:
    import tensorflow as tf

    run = tf.saved_model.load(str(folder)).signatures

    def see(image_B3HW: np.ndarray) -> np.ndarray:
        given = tf.constant(np.ascontiguousarray(image_B3HW.transpose(0, 2, 3, 1)))
        return run["image"](image=given)[OUTPUT].numpy()

    image_ND = torch.from_numpy(run_images(see, probes))
    text_ND = torch.from_numpy(run["text"](tokens=tf.constant(probes.tokens_NL))[OUTPUT].numpy())
    return {
        "image": demand(
            compare(image_ND, probes.image_ND, what="image"), CLOSE, what="The SavedModel"
        ),
        "text": demand(compare(text_ND, probes.text_ND, what="text"), CLOSE, what="The SavedModel"),
    }

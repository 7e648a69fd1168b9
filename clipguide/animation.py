"""Write animations: GIF and WebP by Pillow, MP4 by PyAV or imageio-ffmpeg if one is installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, features

from .errors import UsageError
from .recipe import write_file

SUFFIXES = (".gif", ".webp", ".mp4")
RATE = 10  # frames per second
HELD = 2  # seconds that the last one stays


def check(path: str | os.PathLike) -> None:
    """Raise UsageError if the suffix is not that of an animation, or if a package for it is
    missing."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"An animation is a GIF, WebP or MP4: end {path} in .gif, .webp or .mp4.")
    if suffix == ".webp" and not features.check("webp"):
        raise UsageError("This Pillow was built without WebP: end the animation's name in .gif.")
    if suffix == ".mp4" and not (_is_installed("av") or _is_installed("imageio_ffmpeg")):
        raise UsageError("MP4 needs PyAV: pip install av, or end the animation's name in .gif.")


def write(
    frames: Sequence[Image.Image], path: str | os.PathLike, *, overwrite: bool = False
) -> None:
    """Write RGB images, ten per second, in a loop (except MP4). The last image stays for two
    seconds. Images of another size are resized to that of the last one, because an image may grow
    while it is drawn. The file is complete or does not exist.

    Raises:
        UsageError: the file exists and `overwrite` is not set; or as `check`.
        ClipguideError: it cannot be written.
    """
    check(path)
    suffix, size = Path(path).suffix.lower(), frames[-1].size
    same = [frame if frame.size == size else frame.resize(size) for frame in frames]
    if suffix != ".mp4":
        by = _write_moving
    elif _is_installed("av"):
        by = _write_by_av
    else:
        by = _write_by_ffmpeg
    write_file(path, lambda file: by(same, file, suffix), overwrite=overwrite)


def _write_moving(frames: list[Image.Image], file: Path, suffix: str) -> None:
    milliseconds = [1000 // RATE] * (len(frames) - 1) + [1000 * HELD]
    options = {"quality": 90} if suffix == ".webp" else {}
    with file.open("wb") as stream:
        frames[0].copy().save(
            stream,
            suffix[1:].upper(),
            save_all=True,
            append_images=frames[1:],
            duration=milliseconds,
            loop=0,
            **options,
        )


def _write_by_av(frames: list[Image.Image], file: Path, _: str) -> None:
    import av

    frames = _for_video(frames)
    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=RATE)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def _write_by_ffmpeg(frames: list[Image.Image], file: Path, _: str) -> None:
    import imageio_ffmpeg

    frames = _for_video(frames)
    writer = imageio_ffmpeg.write_frames(
        str(file), frames[0].size, fps=RATE, macro_block_size=2, output_params=["-f", "mp4"]
    )
    writer.send(None)
    for frame in frames:
        writer.send(frame.tobytes())
    writer.close()


def _for_video(frames: list[Image.Image]) -> list[Image.Image]:
    """Return the images on white, with even sides, as H.264 needs. The last one is repeated while
    it is held."""
    width, height = (side + side % 2 for side in frames[0].size)
    even = []
    for frame in frames:
        even.append(Image.new("RGB", (width, height), "white"))
        even[-1].paste(frame)
    return even + even[-1:] * (RATE * HELD - 1)


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None

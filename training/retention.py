"""Write the held-out drawings to a file of the package: what a fine-tuned CLIP should still know.

    python -m training.retention      # clipguide/finetune/held-out.tar and concepts.txt

The drawings are of pairs of a concept and a style on which no embedded CLIP was trained
(`training/holdout.json`). They stand on white at 128 pixels, in a webdataset tar. `concepts.txt`
has the names of all concepts, among which each drawing must be named.
"""

from __future__ import annotations

import io
import tarfile

from training import common
from training.evaluate.drawings import Drawings

FOLDER = common.HERE.parent / "clipguide" / "finetune"
SIDE, QUALITY = 128, 88


def main() -> None:
    drawings = Drawings()
    with tarfile.open(FOLDER / "held-out.tar", "w") as tar:
        for number, drawing in enumerate(drawings.held_out):
            stream = io.BytesIO()
            picture = drawings.picture(drawing.index).resize((SIDE, SIDE))
            picture.save(stream, "WEBP", quality=QUALITY, method=6)
            add(tar, f"{number:03d}.webp", stream.getvalue())
            add(tar, f"{number:03d}.cls", drawing.concept.encode())
    (FOLDER / "concepts.txt").write_text("\n".join(drawings.concepts) + "\n")
    print(len(drawings.held_out), "drawings,", len(drawings.concepts), "concepts")


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member without owner and time, so that the same drawings make the same file."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()

"""Files of vectors: `clipguide embed` writes them, and other commands read them in place of images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from ..errors import ClipguideError, UsageError
from .engine import Embedded

ENDINGS = (".npz", ".parquet")
ROWS = 4096  # rows of a row group


def is_table(path: str | os.PathLike) -> bool:
    """Return whether a file is a table of vectors, by its name."""
    return os.fspath(path).lower().endswith(ENDINGS)


def check(path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Raise UsageError if `write` cannot write this file."""
    path = Path(path)
    if not is_table(path):
        raise UsageError(f"{path} must end in .npz or .parquet.")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already: choose another --out, or give --force.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent}.")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def write(
    path: str | os.PathLike,
    rows: Iterable[Embedded],
    *,
    key: Callable[[], str],
    model: str,
    overwrite: bool = False,
) -> int:
    """Write the rows that have a vector. Return their number.

    An .npz has paths, vectors_ND float32, key and model. A .parquet has the columns path, vector,
    and path_bytes for names that are not UTF-8; key and model are in the metadata of the schema.
    `key` is called after the first vector, because the check of bfloat16 can change the key of an
    engine. The file appears when it is complete.

    Raises:
        UsageError: the name has another suffix, or the file exists.
        ClipguideError: there is no row, or the file cannot be written.
    """
    check(path, overwrite=overwrite)
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    save = _write_npz if path.suffix.lower() == ".npz" else _write_parquet
    try:
        count = save(part, (row for row in rows if row.unit_D is not None), key, model)
        if not count:
            raise ClipguideError(f"No image could be read, so {path} is not written.")
        os.replace(part, path)
    except OSError as error:
        raise ClipguideError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return count


def read(path: str | os.PathLike, *, key: str) -> Iterator[Embedded]:
    """Return the rows of such a file. Raise UsageError if it is not one, or if another model than
    that of `key` made it: its vectors cannot be compared."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    yield from (_read_npz if path.suffix.lower() == ".npz" else _read_parquet)(path, key)


def _write_npz(path: Path, rows: Iterable[Embedded], key: Callable[[], str], model: str) -> int:
    paths, units = [], []
    for row in rows:
        paths.append(row.path)
        units.append(row.unit_D.numpy())
    if paths:
        facts = {"paths": np.array(paths, str), "key": key(), "model": model}
        with path.open("wb") as stream:
            np.savez(stream, vectors=np.stack(units), **facts)
    return len(paths)


def _write_parquet(path: Path, rows: Iterable[Embedded], key: Callable[[], str], model: str) -> int:
    arrow, parquet = _pyarrow()
    count, writer, chunk = 0, None, []

    def flush() -> None:
        nonlocal writer
        vectors = np.stack([row.unit_D.numpy() for row in chunk])
        width = vectors.shape[1]
        if writer is None:
            kind = arrow.list_(arrow.float32(), width)
            fields = [("path", arrow.string()), ("vector", kind), ("path_bytes", arrow.binary())]
            schema = arrow.schema(fields, metadata={"key": key(), "model": model})
            writer = parquet.ParquetWriter(path, schema)
        raw = [os.fsencode(row.path) for row in chunk]
        names = [name.decode(errors="replace") for name in raw]
        odd = [None if name.encode() == one else one for name, one in zip(names, raw)]
        flat = arrow.array(vectors.ravel())
        columns = [names, arrow.FixedSizeListArray.from_arrays(flat, width), odd]
        writer.write_table(arrow.table(columns, schema=writer.schema))
        chunk.clear()

    for row in rows:
        chunk.append(row)
        count += 1
        if len(chunk) == ROWS:
            flush()
    if chunk:
        flush()
    if writer is not None:
        writer.close()
    return count


def _read_npz(path: Path, key: str) -> Iterator[Embedded]:
    try:
        with np.load(path, allow_pickle=False) as file:
            paths, vectors = file["paths"].tolist(), file["vectors"]
            found, model = str(file["key"]), str(file["model"])
    except Exception:  # numpy, zipfile and struct raise different errors
        raise UsageError(f"{path} is not a file of vectors that `clipguide embed` wrote.") from None
    _compare(path, found, model, key)
    for name, vector in zip(paths, vectors, strict=True):
        yield Embedded(name, torch.from_numpy(vector))


def _read_parquet(path: Path, key: str) -> Iterator[Embedded]:
    _, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path)
        about = file.schema_arrow.metadata or {}
        found, model = about[b"key"].decode(), about[b"model"].decode()
    except Exception:  # pyarrow raises its own errors
        raise UsageError(f"{path} is not a file of vectors that `clipguide embed` wrote.") from None
    _compare(path, found, model, key)
    for batch in file.iter_batches(ROWS):
        names, column = batch.column("path").to_pylist(), batch.column("vector")
        if "path_bytes" in batch.schema.names:
            odd = batch.column("path_bytes").to_pylist()
            names = [os.fsdecode(raw) if raw else name for name, raw in zip(names, odd)]
        flat = column.flatten().to_numpy(zero_copy_only=False)
        for name, vector in zip(names, flat.reshape(len(names), -1), strict=True):
            yield Embedded(name, torch.from_numpy(vector.copy()))


def _compare(path: Path, found: str, model: str, key: str) -> None:
    if found != key:
        same = found.split()[0] == key.split()[0]
        what = "by other settings" if same else f"by another model, {model}"
        raise UsageError(
            f"The vectors in {path} were made {what}: embed the images again, or ask by "
            f"{'the same settings' if same else 'that model'}."
        )


def _pyarrow() -> tuple:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UsageError("Parquet needs pyarrow: pip install pyarrow, or use .npz.") from None
    return pyarrow, pyarrow.parquet

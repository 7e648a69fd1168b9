"""Names of decoders: a kind, and optionally a level of memory, such as "vae:half"."""

from __future__ import annotations

from ..errors import UsageError, close_matches
from .ladder import RUNGS

KINDS = ("auto", "vae", "linear", "tiny")
LADDERED = ("vae", "tiny")  # those whose gradient is taken by a rung


def parsed(name: str) -> tuple[str, str]:
    """Return the kind of a decoder, and its rung or "".

    Raises:
        UsageError: there is no such decoder.
    """
    kind, colon, rung = str(name).partition(":")
    if kind not in KINDS:
        raise UsageError(f"There is no decoder {name!r}.{close_matches(kind, KINDS)}")
    if colon and (kind not in LADDERED or rung not in RUNGS):
        near = close_matches(str(name), [f"{k}:{r}" for k in LADDERED for r in RUNGS])
        raise UsageError(
            f"There is no decoder {name!r}: vae and tiny have the rungs {', '.join(RUNGS)}.{near}"
        )
    return kind, rung


def joined(kind: str, rung: str) -> str:
    """Return the name of a kind and its rung, which `parsed` takes apart."""
    return f"{kind}:{rung}" if rung else kind

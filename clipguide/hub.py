"""Use the hub, from which models are downloaded, when it may be unreachable.

Its library tries to connect six times, with pauses of 23 seconds in all, for each file, even for
one in the cache. Here the hub is contacted once.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from .errors import causes

PATIENCE = 1.0  # seconds to connect
CACHE_ALONE = {"OfflineModeIsEnabled", "LocalEntryNotFoundError"}  # a file is not in the cache


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Open a context in which transformers, and diffusers if it is imported, draw no progress bars
    and give no warnings while they load models."""
    from transformers.utils import logging

    loggings = [logging]
    if "diffusers" in sys.modules:
        from diffusers.utils import logging as diffusers_logging

        loggings.append(diffusers_logging)
    before = [(one, one.is_progress_bar_enabled(), one.get_verbosity()) for one in loggings]
    for one in loggings:
        one.disable_progress_bar()
        one.set_verbosity_error()
    try:
        yield
    finally:
        for one, enabled, verbosity in before:
            one.set_verbosity(verbosity)
            if enabled:
                one.enable_progress_bar()


@contextlib.contextmanager
def within_reach(wanted: bool = True) -> Iterator[None]:
    """Return a context in which the hub's library reads only the cache if the hub is unreachable.

    If the hub is not wanted, or HF_HUB_OFFLINE is set, nothing is contacted and nothing changes.

    Raises:
        Exception: the error of the attempt to connect, in place of the library's error for a file
            that is not in the cache. `errors.reason` turns it into words.
    """
    from huggingface_hub import constants

    asks = wanted and not constants.HF_HUB_OFFLINE
    error = _why_away(constants.ENDPOINT) if asks else None
    if error is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True  # which the library reads at each request
    try:
        yield
    except Exception as failed:
        if not CACHE_ALONE.isdisjoint(map(_name, causes(failed))):
            raise error from None
        raise
    finally:
        constants.HF_HUB_OFFLINE = False


def _why_away(address: str) -> Exception | None:
    """Return the error of an attempt to connect, or None if the hub answers."""
    from huggingface_hub import get_session

    try:
        get_session().head(address, timeout=PATIENCE)
    except Exception as error:  # of one library for requests or another
        return error if _name(error) in ("ConnectError", "ConnectTimeout") else None
    return None


def _name(error: BaseException) -> str:
    return type(error).__name__

"""A vision-language model on a server that has the chat completions API of OpenAI.

A request has the question, and the image as a PNG in a data URL. It asks for one word at
temperature 0, with the log probabilities of the most probable words if the server returns them.
clipguide sends requests only to the given address. It does not follow redirects, because they would
pass on the images and the key.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Sequence

import torch
from PIL import Image

from ..errors import ClipguideError, ClipguideWarning
from ..images import to_pil
from .pictures import OfPictures
from .registry import Settings

MODEL = "default"
MOST = 1_000_000  # bytes of an answer


class _Stay(urllib.request.HTTPRedirectHandler):
    """Turn a redirect into an error."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay)


class Verifier(OfPictures):
    """Minus the probability of yes: P(yes) / (P(yes) + P(no)) if the server returns log
    probabilities, otherwise 1 or 0 by the word.

    During a run, a server that does not answer stops nothing. An image without an answer has the
    score 0. The user is warned once, and this object sends no further requests.
    """

    def __init__(self, texts: Sequence[str], settings: Settings) -> None:
        super().__init__(texts)
        self.settings, self._away = settings, False

    def __call__(self, image_B3HW, generators=None):
        try:
            if not self._away:
                scores_B = self.score_pictures(to_pil(image_B3HW))
                return -scores_B.to(image_B3HW.device)
        except ClipguideError as error:
            self._away = True
            warnings.warn(
                f"{error} The run goes on without it.", ClipguideWarning, stacklevel=2
            )
        return torch.zeros(len(image_B3HW), device=image_B3HW.device)

    def score_one(self, picture: Image.Image, text: str) -> float:
        """Return the probability of yes. Raise ClipguideError if no attempt got an answer."""
        asked, wait = _request(picture, text, self.settings), self.settings.wait
        said = ""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                time.sleep(wait * 2 ** (attempt - 1))
            try:
                return probability(json.loads(_answer(asked, self.settings.timeout)))
            except urllib.error.HTTPError as error:
                said = f"it answers {error.code} {error.reason}"
                if error.code < 400 or error.code in (400, 401, 403, 404, 422):  # not temporary
                    break
            except TimeoutError:
                said = f"it took longer than {self.settings.timeout:g} seconds"
            except urllib.error.URLError as error:
                late = isinstance(error.reason, TimeoutError)
                said = (
                    f"it took longer than {self.settings.timeout:g} seconds" if late
                    else f"it cannot be reached: {error.reason}"
                )
            except (OSError, http.client.HTTPException) as error:
                said = f"the connection broke: {str(error).strip() or type(error).__name__}"
            except (ValueError, KeyError, TypeError, IndexError, AttributeError):
                said = "what it answers is no yes and no no"
        raise ClipguideError(
            f"The verifier {self.settings.where} gave no score ({said}): look whether it runs, and "
            "whether the model's name behind the # is right."
        )


def _answer(asked: urllib.request.Request, limit: float) -> bytes:
    """What an address answers. TimeoutError after `limit` seconds, also where it sends a little now
    and then."""
    end, parts, size = time.monotonic() + limit, [], 0
    with _OPENER.open(asked, timeout=limit) as answer:
        while size < MOST and (part := answer.read1(MOST - size)):
            if time.monotonic() > end:
                raise TimeoutError
            parts.append(part)
            size += len(part)
    return b"".join(parts)


def probability(answer: dict) -> float:
    """Return the probability of yes in a chat completion. Raise ValueError if the answer is neither
    yes nor no."""
    choice = answer["choices"][0]
    listed = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
    mass = {"yes": 0.0, "no": 0.0}
    for word in listed:
        name = _word(word["token"])
        if name in mass:
            mass[name] += math.exp(min(float(word["logprob"]), 0.0))  # not a number stays none
    if total := sum(mass.values()):
        if math.isnan(total):
            raise ValueError(total)
        return mass["yes"] / total
    words = choice["message"]["content"].split()
    said = _word(words[0]) if words else ""
    if said not in mass:
        raise ValueError(said)
    return float(said == "yes")


def _word(text: str) -> str:
    return text.strip().strip(".,!*\"'").lower()


def _request(picture: Image.Image, text: str, settings: Settings) -> urllib.request.Request:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": text},
    ]
    body = {
        "model": settings.model or MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 20,
    }
    headers = {"Content-Type": "application/json"}
    if settings.key:
        headers["Authorization"] = f"Bearer {settings.key}"
    address = settings.where.rstrip("/") + "/chat/completions"
    return urllib.request.Request(address, json.dumps(body).encode(), headers)

"""The search for a cache: an image that is sent twice must not be answered sooner the second time."""

import io
import secrets
import time

from PIL import Image

from detbench.api.client import ServerClient
from detbench.results.quality import CacheCheck
from detbench.statistics.ratios import paired_ratio

# The server scales every image to its networks' input; a small one makes what a cache does not save small.
_SIDE_PX = 256
_FEWEST = 3
_MOST = 20
_ENOUGH_S = 3.0


def check_cache(client: ServerClient, implementation: str, model_set: str) -> CacheCheck:
    """Time images that were never sent before, and each of them again at once.

    They are noise: no answer that a server may have kept, by a file's bytes, its pixels or what they look like, is one
    to the first time, and an answer is found the second time even where the last one alone is kept. Both times are of
    one image, so that what its size costs cancels. There are 3 images, or as many as 3 s hold, up to 20.

    Raises:
        ServerError: the server refused or ended.
        MalformedOutput: an answer is malformed.
    """
    unmeasured, *images = (_noise() for _ in range(1 + _MOST))  # before any is sent: a pause would be in the first time

    def seconds(image: bytes) -> float:
        sent_s = time.perf_counter()
        client.infer(implementation, model_set, image, "image/png")
        return time.perf_counter() - sent_s

    seconds(unmeasured)  # the first image of this size
    began_s = time.perf_counter()
    first_s: list[float] = []
    again_s: list[float] = []
    for image in images:
        first_s.append(seconds(image))
        again_s.append(seconds(image))
        if len(first_s) >= _FEWEST and time.perf_counter() - began_s > _ENOUGH_S:
            break
    ratio = paired_ratio(first_s, again_s)
    return CacheCheck(pairs=len(first_s), ratio=ratio.value, low=ratio.low, high=ratio.high)


def _noise() -> bytes:
    """A PNG that no other call has made, and none will."""
    encoded = io.BytesIO()
    pixels = secrets.token_bytes(3 * _SIDE_PX**2)
    Image.frombytes("RGB", (_SIDE_PX, _SIDE_PX), pixels).save(encoded, "PNG", compress_level=0)
    return encoded.getvalue()

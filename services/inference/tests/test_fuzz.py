"""Bodies that nobody would make by hand: none is a server error, and none harms the next.

`FUZZ_SECONDS=1200 pytest services/inference/tests/test_fuzz.py` goes on for twenty minutes, `FUZZ_SEED=1` elsewhere.
"""

import io
import os
import struct
import time
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from running_server import RunningServer

SECONDS = float(os.environ.get("FUZZ_SECONDS", "8"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))

Random = np.random.Generator
# 499 is what a client is answered that ends its body early, and nobody reads.
EXPECTED = {200, 400, 408, 413, 415, 422}


def bytes_of(random: Random, most: int) -> bytes:
    return random.bytes(int(random.integers(0, most + 1)))


def choice(random: Random, options: list) -> object:
    return options[int(random.integers(len(options)))]


def mutated(random: Random, data: bytes) -> bytes:
    """`data` with some bytes changed, and now and then a piece of it left out, repeated or exchanged."""
    found = bytearray(data)
    for _ in range(int(random.integers(0, 6))):
        found[int(random.integers(len(found)))] = int(random.integers(256))
    start, end = sorted(int(place) for place in random.integers(0, len(found) + 1, 2))
    way = int(random.integers(8))
    if way == 0:
        del found[start:end]
    elif way == 1:
        found[start:start] = found[start:end]
    elif way == 2:
        found[start:end] = bytes_of(random, 64)
    elif way == 3:
        del found[end:]
    return bytes(found)


def exif(random: Random) -> bytes:
    """A TIFF directory of odd tags, most often with an orientation."""
    order = choice(random, ["<", ">"])
    tags = [0x0112, 0x010F, 0x011A, 0x011B, 0x0128, 0x0131, 0x8769, 0x8825, 0xA005, 0x927C, 0x9286, 0x02BC]
    entries = b""
    count = int(random.integers(0, 12))
    for _ in range(count):
        tag = choice(random, tags) if random.random() < 0.8 else int(random.integers(65536))
        kind = int(random.integers(0, 15)) if random.random() < 0.9 else int(random.integers(65536))
        number = choice(random, [0, 1, 2, 4, 1000, 0xFFFFFFFF])
        value = choice(random, [0, 3, 6, 8, 9, 26, 0xFFFFFFF0, int(random.integers(2**32))])
        entries += struct.pack(order + "HHII", tag, kind, number, value)
    announced = count if random.random() < 0.8 else int(random.integers(65536))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", choice(random, [8, 8, 8, 0, 2**32 - 1]))
    found = head + struct.pack(order + "H", announced) + entries + bytes_of(random, 60)
    return mutated(random, found) if random.random() < 0.3 else found


def with_exif(random: Random, originals: dict[str, bytes]) -> bytes:
    kind, tiff = choice(random, ["JPEG", "PNG", "WEBP"]), exif(random)
    original = originals[str(kind)]
    if kind == "JPEG":
        body = b"Exif\0\0" * int(random.integers(0, 3)) + tiff
        length = len(body) + 2 if random.random() < 0.9 else int(random.integers(65536))
        return original[:2] + struct.pack(">BBH", 0xFF, int(random.integers(0xE0, 0xF0)), length) + body + original[2:]
    if kind == "PNG":
        return original[:33] + chunk(random, b"eXIf", tiff) + original[33:]
    buffer = io.BytesIO()
    Image.open(io.BytesIO(original)).save(buffer, "WEBP", exif=tiff)
    return buffer.getvalue()


def chunk(random: Random, kind: bytes, data: bytes) -> bytes:
    length = len(data) if random.random() < 0.95 else int(random.integers(2**32))
    checksum = zlib.crc32(kind + data) if random.random() < 0.9 else int(random.integers(2**32))
    return struct.pack(">I", length) + kind + data + struct.pack(">I", checksum)


def with_chunks(random: Random, originals: dict[str, bytes]) -> bytes:
    """A PNG with odd chunks at odd places, packed ones and animation's among them."""
    original = originals["PNG"]
    pieces, position = [original[:8]], 8
    while position < len(original):
        end = position + 12 + int.from_bytes(original[position : position + 4])
        pieces.append(original[position:end])
        position = end
    kinds = [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"pHYs", b"tRNS", b"PLTE", b"IDAT", b"IHDR", b"IEND"]
    kinds += [b"acTL", b"fcTL", b"fdAT", b"gAMA", b"cHRM", b"sRGB", b"bKGD", b"abCD", b"ABCD", b"\0\xff12"]
    for _ in range(int(random.integers(1, 6))):
        data = bytes_of(random, 40)
        if random.random() < 0.4:
            packed = zlib.compress(bytes(int(random.integers(0, 5_000_000))), 1)
            data = choice(random, [b"key\0\0", b"key\0\1\0\0\0", b""]) + packed
        pieces.insert(int(random.integers(1, len(pieces) + 1)), chunk(random, choice(random, kinds), data))
    found = b"".join(pieces)
    return mutated(random, found) if random.random() < 0.2 else found


def picture(random: Random, originals: dict[str, bytes]) -> bytes:
    return mutated(random, originals[str(choice(random, list(originals)))])


def raw(random: Random, data: bytes) -> dict:
    kinds = ["image/jpeg", "image/png", "image/x", "application/octet-stream"]
    return {"content": data, "headers": {"Content-Type": str(choice(random, kinds))}}


def form(random: Random, data: bytes) -> dict:
    """A multipart form that is right, or nearly so."""
    parts = []
    for _ in range(int(random.integers(1, 4))):
        name = choice(random, ['name="file"', "name=file", 'name="image"', 'name="fi\\"le"', "name*=utf-8''file", ""])
        file = choice(random, ["", "; filename=", '; filename="a.jpg"', '; filename="', "; filename*=x''y", ";" * 300])
        headers = f"Content-Disposition: form-data; {name}{file}\r\n"
        headers += str(choice(random, ["", "Content-Type: image/jpeg\r\n", "X: y\r\n" * 20, ":\r\n", "no colon\r\n"]))
        parts.append(b"--boundary\r\n" + headers.encode() + b"\r\n" + data + b"\r\n")
    body = b"".join(parts) + bytes(choice(random, [b"--boundary--\r\n", b"--boundary--", b"--boundary", b"", b"--"]))
    if random.random() < 0.5:
        edge = int(random.integers(1, 300))
        body = mutated(random, body[:edge]) + body[edge:-edge] + mutated(random, body[-edge:])
    kinds = ["multipart/form-data; boundary=boundary"] * 6
    kinds += ['multipart/form-data; boundary="boundary"', "multipart/form-data; boundary=", "multipart/form-data"]
    kinds += [
        "multipart/form-data; boundary=bound",
        "multipart/mixed; boundary=boundary",
        "multipart/form-data; x" * 50,
    ]
    headers = {"Content-Type": str(choice(random, kinds))}
    if random.random() < 0.1:
        headers["Content-Encoding"] = str(choice(random, ["gzip", "identity", "", "br,gzip", "ÿ"]))
    return {"content": in_pieces(random, body) if random.random() < 0.3 else body, "headers": headers}


def in_pieces(random: Random, body: bytes) -> object:
    edges = sorted({0, len(body), *(int(place) for place in random.integers(0, len(body) + 1, 5))})
    return (body[start:end] for start, end in pairwise(edges))


MAKERS: list[Callable[[Random, dict[str, bytes]], bytes]] = [with_exif, with_chunks, picture]


@pytest.fixture(scope="module")
def originals(photos: list[Path]) -> dict[str, bytes]:
    """A small picture in each format that is served."""
    small = Image.open(photos[3]).convert("RGB").resize((60, 40))
    found = {}
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        buffer = io.BytesIO()
        small.save(buffer, kind)
        found[kind] = buffer.getvalue()
    return found


@pytest.mark.timeout(SECONDS + 300)
def test_whatever_is_sent_is_answered_or_refused_and_never_a_server_error(
    server: RunningServer, originals: dict[str, bytes], tmp_path: Path
):
    statuses: dict[int, int] = {}
    until, number = time.monotonic() + SECONDS, 0
    with httpx.Client(base_url=server.url, timeout=60) as client:
        while time.monotonic() < until:
            number += 1
            random = np.random.default_rng((SEED, number))
            data = MAKERS[number % 3](random, originals)
            request = (form if random.random() < 0.6 else raw)(random, data)
            request["headers"] = {name: value.encode("latin-1") for name, value in request["headers"].items()}
            answer = client.post("/infer/invalid", **request)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            if answer.status_code not in EXPECTED:
                (tmp_path / "picture").write_bytes(data)
                pytest.fail(f"case {SEED}, {number} ({tmp_path}/picture): {answer.status_code} {answer.text}")
            if answer.status_code != 200:
                detail = answer.json()["detail"]
                assert isinstance(detail, str), number
                assert detail, number
                assert "\n" not in detail, number
    assert httpx.get(f"{server.url}/ready").is_success
    assert "Traceback" not in server.log
    assert {200, 400, 422} <= statuses.keys(), statuses
    print(number, "cases:", statuses)  # noqa: T201

"""A photo with the reference's boxes and those of an implementation, side by side."""

import base64
import io
import logging
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageFont

from detbench.api.schemas import ModelDetections
from detbench.quality.outputs import ImageOutput

log = logging.getLogger(__name__)

# EXIF orientation to the turn that makes the picture upright (ImageOps.exif_transpose, which also rewrites metadata).
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDE_PX = 560
_MIN_SCORE = 0.3
_MOST_PER_MODEL = 12
COLOURS = ("#00a5e0", "#ff7f0e", "#e23bd0", "#7bc043", "#ffd23f", "#ffffff")


def save_photo(source: Path, target: Path) -> None:
    """Save the photo that the report shows as RGB JPEG, upright as the server sees it; no report fails for a photo.

    Grey of 16 bits becomes its upper byte, an orientation is applied, and other metadata is not looked at.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Image.open(source) as image:
            _upright(image).save(target, "JPEG", quality=92)
    except Exception as error:  # Pillow raises a dozen kinds on files that are odd, and a server may take them still
        log.warning("the report is without a photo: %s cannot be shown (%s)", source, error)
        target.unlink(missing_ok=True)


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    if image.mode.startswith("I"):  # Pillow clips to 255 when it converts
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> object:
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))  # `image.getexif` would take XMP's, too
        return exif.get(ExifTags.Base.Orientation)
    except Exception:  # any of Pillow's for data that is no EXIF; such a picture is upright
        return None


def side_by_side(photo: Path, reference: ImageOutput, candidate: ImageOutput) -> str:
    """Both pictures beside each other as a JPEG data URI; the left one has the boxes of `reference`.

    Of each model the best boxes with score >= 0.3 are drawn, 12 at most, in the colour of `COLOURS` at its place.
    """
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    scale = min(1.0, _SIDE_PX / max(image.size))
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    both = Image.new("RGB", (2 * small.width + 8, small.height), "#808080")
    for place, output in enumerate((reference, candidate)):
        picture = small.copy()
        draw = ImageDraw.Draw(picture)
        for index, detections in enumerate(output.detections):
            _draw_boxes(draw, detections, scale, COLOURS[index % len(COLOURS)])
        both.paste(picture, (place * (small.width + 8), 0))
    out = io.BytesIO()
    both.save(out, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _draw_boxes(draw: ImageDraw.ImageDraw, detections: ModelDetections, scale: float, colour: str) -> None:
    font = ImageFont.load_default(11)
    shown = [
        (box, score, label)
        for box, score, label in zip(detections.boxes, detections.scores, detections.labels, strict=True)
        if score >= _MIN_SCORE
    ]
    for box, score, label in shown[:_MOST_PER_MODEL]:
        x1, y1, x2, y2 = (scale * coordinate for coordinate in box)
        if x2 < x1 or y2 < y1:
            continue
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=2)
        text = f"{label} {score:.2f}"
        background = draw.textbbox((x1 + 3, y1 + 2), text, font=font)
        draw.rectangle(background, fill="#000000")
        draw.text((x1 + 3, y1 + 2), text, fill=colour, font=font)

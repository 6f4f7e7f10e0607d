"""A photo with the reference's boxes and those of an implementation, side by side."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from detbench.client import ModelDetections
from detbench.quality.outputs import ImageOutput

_SIDE_PX = 560
_MIN_SCORE = 0.3
_MOST_PER_MODEL = 12
COLOURS = ("#00a5e0", "#ff7f0e", "#e23bd0", "#7bc043", "#ffd23f", "#ffffff")


def side_by_side(photo: Path, reference: ImageOutput, candidate: ImageOutput) -> str:
    """Both pictures beside each other as a JPEG data URI; the left one has the boxes of `reference`.

    Of each model the best boxes with score >= 0.3 are drawn, 12 at most, in the colour of `COLOURS` at its place.
    """
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    scale = min(1.0, _SIDE_PX / image.width)
    small = image.resize((round(image.width * scale), max(1, round(image.height * scale))))
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

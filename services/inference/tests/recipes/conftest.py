"""What the tests of recipes share: a set of small networks, two of them of one architecture, and baseline's answers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from same_answers import Detections, assert_equal

from detserver.machine.stopwatch import Stopwatch
from detserver.models.model_sets import ModelSet, ModelSpec
from detserver.models.weights import WeightsStore
from detserver.preprocess import PreparedImage, prepare
from detserver.recipes.build import Built
from detserver.recipes.recipe import Recipe

CPU = torch.device("cpu")

Build = Callable[..., Built]


@pytest.fixture(scope="session")
def small() -> ModelSet:
    """Two D0 with heads of different width, and a D1, all of 128 x 128 pixels."""
    size = (("image_size", (128, 128)),)
    return ModelSet(
        "small",
        (
            ModelSpec("seven", "tf_efficientdet_d0", 7, seed_offset=9, overrides=size),
            ModelSpec("other", "tf_efficientdet_d1", 7, overrides=size),
            ModelSpec("ninety", "tf_efficientdet_d0", 90, overrides=size),
        ),
    )


@pytest.fixture(scope="session")
def images(photos: list[Path], small: ModelSet) -> list[PreparedImage]:
    """Sixteen different pictures: four photographs, each cut in four ways."""
    found = []
    for photo in photos:
        picture = Image.open(photo).convert("RGB")
        width, height = picture.size
        for left, top in ((0, 0), (40, 0), (0, 60), (70, 30)):
            found.append(prepare(picture.crop((left, top, width - 10, height - 20)), small.inputs))
    return found


@pytest.fixture(scope="session")
def build(store: WeightsStore, small: ModelSet) -> Build:
    """Build a recipe on the CPU, of the small networks unless others are given."""

    def built(recipe: Recipe, model_set: ModelSet = small, note_slow_nms: Callable[[], None] = lambda: None) -> Built:
        return Built(recipe, model_set, store, CPU, Stopwatch(CPU), note_slow_nms)

    return built


@pytest.fixture(scope="session")
def expected(build: Build, images: list[PreparedImage]) -> Detections:
    """What baseline's recipe answers to each picture."""
    baseline = build(Recipe())
    return [baseline.detect([image])[0] for image in images]


@pytest.fixture(scope="session")
def has_parity(build: Build, images: list[PreparedImage], expected: Detections) -> Callable[[Recipe], None]:
    """Assert that a recipe gives baseline's answers, in batches of every size that it has."""

    def check(recipe: Recipe) -> None:
        built = build(recipe)
        for size in built.batch_sizes:
            for start in (16 - size,) if size > 1 else (0, 5, 10, 15):
                batch = slice(start, start + size)
                assert_equal(built.detect(images[batch]), expected[batch])

    return check

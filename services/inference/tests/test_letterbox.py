"""Every network sees effdet's own input, bit for bit: by Pillow on the host, or by tensors on the device."""

import gc
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from effdet.data.transforms import ResizePad
from PIL import Image

from detserver.errors import ImageTooSmall
from detserver.preprocess import InputConfig, Picture, letterbox, prepare, prepare_for
from detserver.preprocess.letterbox import letterbox_on_device
from detserver.preprocess.resample import resize
from detserver.preprocess.slots import Slots

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def noise(width: int, height: int, seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def effdets(picture: Image.Image, config: InputConfig) -> tuple[torch.Tensor, float]:
    """As `effdet.data` prepares it: `ResizePad`, then what `PrefetchLoader` does on the device."""
    padded, info = ResizePad(config.size, config.interpolation, config.fill_color)(picture, {})
    pixels = torch.from_numpy(np.moveaxis(np.array(padded, dtype=np.uint8), 2, 0))
    mean, std = (torch.tensor([255 * each for each in values]).view(3, 1, 1) for values in (config.mean, config.std))
    return pixels.float().sub_(mean).div_(std), info["img_scale"]


def planes(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def assert_that_all_are_effdets(picture: Image.Image, config: InputConfig) -> None:
    expected, scale = effdets(picture, config)
    for layout in LAYOUTS:
        found_by = [prepare(picture, [config], layout).inputs[config]]
        if not config.by_pillow_alone:
            found_by += [
                letterbox(Picture.of(picture), config, layout),
                letterbox_on_device(planes(picture), config, layout),
            ]
        for found in found_by:
            assert found.scale == scale
            assert found.pixels.dtype == torch.float32
            batch = found.pixels.as_strided((1, *expected.shape), (expected.numel(), *found.pixels.stride()))
            assert batch.is_contiguous(memory_format=layout)
            assert torch.equal(found.pixels, expected), (picture.size, config)


def assert_that_random_ones_are(count: int, largest: int, seed: int) -> None:
    chosen = random.Random(seed)
    for number in range(count):
        width, height = (chosen.randint(largest // 40, largest) for _ in range(2))
        size = tuple(chosen.randint(1, 6) * 64 for _ in range(2))
        interpolation = list(INTERPOLATIONS)[number % 4]
        config = InputConfig(size, MEAN, STD, interpolation, (number % 256, 116, 104))
        assert_that_all_are_effdets(noise(width, height, number), config)


def test_pictures_of_random_sizes_are_effdets():
    assert_that_random_ones_are(40, 400, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_pictures_of_two_thousand_random_sizes_are_effdets():
    assert_that_random_ones_are(2000, 900, seed=2)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_photographs_are_effdets(testdata: Path):
    files = sorted(testdata.glob("*/images/*.jpg"))
    assert len(files) > 100
    config = InputConfig((512, 512), MEAN, STD, "bicubic", (124, 116, 104))
    for file in files:
        assert_that_all_are_effdets(Image.open(file).convert("RGB"), config)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((60, 100), (50, 80)),  # 20 rows fewer and 10 columns: columns first
        ((60, 101), (50, 80)),  # 21 rows: rows first
        ((60, 100), (70, 99)),
        ((60, 100), (60, 40)),
        ((60, 100), (10, 100)),
        ((7, 400), (3, 60)),
        ((3, 2), (200, 300)),
        ((1, 1), (5, 4)),
    ],
)
def test_a_resize_is_pillows_in_its_order_of_passes(interpolation: str, before: tuple, after: tuple):
    picture = noise(*before, seed=7)
    expected = np.array(picture.resize(after, INTERPOLATIONS[interpolation])).transpose(2, 0, 1)
    found = resize(planes(picture), after[1], after[0], interpolation)
    assert np.array_equal(found.numpy(), expected)


def test_a_large_picture_is_resized_in_parts():
    picture = noise(3000, 2500, seed=3)
    expected = np.array(picture.resize((96, 80), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(resize(planes(picture), 80, 96, "bicubic").numpy(), expected)


def test_a_picture_with_no_pixel_left_is_refused_on_the_device_too():
    config = InputConfig((256, 512), MEAN, STD, "bilinear", (0, 0, 0))
    with pytest.raises(ImageTooSmall, match="700x1 pixels"):
        letterbox_on_device(planes(noise(700, 1, seed=0)), config)


def test_a_large_picture_is_prepared_as_any_other():
    picture = noise(2500, 1700, seed=5)
    configs = [InputConfig((96, 128), MEAN, STD, each, (7, 8, 9)) for each in INTERPOLATIONS]
    for layout in LAYOUTS:
        prepared = prepare_for(torch.device("cpu"), picture, configs, layout)
        for config in configs:
            expected, scale = effdets(picture, config)
            assert prepared.inputs[config].scale == scale
            assert torch.equal(prepared.inputs[config].pixels, expected)


def test_a_config_that_models_share_is_prepared_once():
    config = InputConfig((128, 128), MEAN, STD, "bilinear", (0, 0, 0))
    prepared = prepare_for(torch.device("cpu"), noise(64, 48, seed=0), [config, config])
    assert list(prepared.inputs) == [config]
    assert (prepared.width, prepared.height) == (64, 48)


def test_memory_is_used_again_once_its_image_is_gone_and_helpers_do_their_part():
    configs = [InputConfig((size, size), MEAN, STD, "bicubic", (0, 0, 0)) for size in (96, 128, 64)]
    slots = Slots(keep=1)
    with ThreadPoolExecutor(2) as helpers:
        first = prepare_for(torch.device("cpu"), noise(80, 60, seed=1), configs, helpers=helpers, slots=slots)
        addresses = {config: first.inputs[config].pixels.data_ptr() for config in configs}
        kept = prepare_for(torch.device("cpu"), noise(60, 80, seed=2), configs, helpers=helpers, slots=slots)
        assert not {each.pixels.data_ptr() for each in kept.inputs.values()} & set(addresses.values())
        del first
        again = prepare_for(torch.device("cpu"), noise(70, 70, seed=3), configs, helpers=helpers, slots=slots)
    for config in configs:
        assert again.inputs[config].pixels.data_ptr() == addresses[config]
        assert torch.equal(again.inputs[config].pixels, effdets(noise(70, 70, seed=3), config)[0])
        assert torch.equal(kept.inputs[config].pixels, effdets(noise(60, 80, seed=2), config)[0])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_that_is_used_again_holds_nothing_of_its_images_before(memory_format: torch.memory_format):
    slots = Slots(keep=2)
    config = InputConfig((64, 64), MEAN, STD, "bilinear", (0, 0, 0))

    def tensors_after(images: int) -> int:
        for seed in range(images):
            prepare_for(torch.device("cpu"), noise(50, 40, seed), [config], memory_format, slots=slots)
        gc.collect()
        return sum(type(each) is torch.Tensor for each in gc.get_objects())

    assert tensors_after(5) == tensors_after(50)

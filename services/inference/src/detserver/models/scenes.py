"""Procedural pictures with the statistics of photographs: shapes that cover each other, "dead leaves".

Shapes of radii r with density r^-3 that cover each other have the edges, the flat areas and the 1/f spectrum of
photographs (Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 41, 2001).
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

_Array = npt.NDArray[np.float64]


def photograph() -> Image.Image:
    """The same picture each time, RGB, 640 x 480 pixels: where any photograph would do, and none is there."""
    picture = dead_leaves(np.random.Generator(np.random.PCG64(0)), 640, contrast=0.25)[:480]
    return Image.fromarray((255 * picture).round().astype(np.uint8))


def dead_leaves(rng: np.random.Generator, size: int, contrast: float) -> _Array:
    """A picture of shape (size, size, 3) in [0, 1]; `contrast` is the standard deviation of the leaves' brightness."""

    def colour() -> _Array:
        return contrast * (rng.normal() + rng.normal(0, 0.35, 3))

    axis = (np.arange(size) + 0.5) / size
    slopes = rng.normal(0, contrast, 2)
    picture = colour() + (slopes[0] * axis[:, None] + slopes[1] * axis)[:, :, None]
    textures = [_texture(rng, size, slope) for slope in (0.9, 1.4)]
    smallest, largest = 0.02, 0.5
    for radius in (smallest**-2 - rng.uniform(size=150) * (smallest**-2 - largest**-2)) ** -0.5:
        y, x, angle = rng.uniform(0, 1, 3) * (1, 1, math.pi)
        window = tuple(slice(*np.searchsorted(axis, (c - 1.3 * radius, c + 1.3 * radius))) for c in (y, x))
        dy, dx = axis[window[0], None] - y, axis[None, window[1]] - x
        along = (dx * math.cos(angle) + dy * math.sin(angle)) / radius
        across = (dy * math.cos(angle) - dx * math.sin(angle)) / (radius * rng.uniform(0.4, 1))
        ellipse = rng.uniform() < 0.6
        inside = along**2 + across**2 < 1 if ellipse else np.maximum(abs(along), abs(across)) < 0.9
        roughness = contrast * rng.choice([0, 0.15, 0.5])
        surface = rng.normal(0, 0.3 * contrast) * along + roughness * textures[rng.integers(2)][window]
        picture[window][inside] = (colour() + surface[:, :, None])[inside]
    picture += 0.15 * contrast * textures[0][:, :, None] + rng.uniform(0.35, 0.6) + rng.uniform(-0.1, 0.1, 3)
    bounded: _Array = picture.clip(0, 1)
    return bounded


def _texture(rng: np.random.Generator, size: int, slope: float) -> _Array:
    """Noise of shape (size, size) with an amplitude spectrum of frequency^-slope, mean 0 and standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf
    phases = rng.standard_normal((2, *frequency.shape))
    noise = np.fft.irfft2((phases[0] + 1j * phases[1]) * frequency**-slope, s=(size, size))
    normalised: _Array = noise / noise.std()
    return normalised

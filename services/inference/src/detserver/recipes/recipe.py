"""What a recipe is: with which techniques the networks of a set run.

To add a technique, give `Recipe` a field and put a file into `detserver.recipes.techniques`; to serve and measure it,
add a row to `detserver.implementations.table`.
"""

from dataclasses import dataclass, fields
from typing import Literal

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
Layout = Literal["contiguous", "channels_last"]


@dataclass(frozen=True)
class Recipe:
    """One field is one technique, the defaults are baseline's.

    The builder applies the techniques in the order of the fields.
    """

    backend: Literal["torch", "openvino", "onnxruntime"] = "torch"
    fold: bool = False
    stack: Literal["none", "vmap", "grouped", "grouped-products"] = "none"
    precision: Precision = "fp32"
    layout: Layout = "contiguous"
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    streams: bool = False
    postprocess: Literal["effdet", "batched"] = "effdet"
    graph: bool = False

    def __str__(self) -> str:
        """What differs from baseline: `fold, layout=channels_last`."""
        changed = [name if value is True else f"{name}={value}" for name, value in self.changes.items()]
        return ", ".join(changed) or "baseline's"

    @property
    def changes(self) -> dict[str, str | bool]:
        """The fields whose values are not baseline's."""
        return {name: value for name, value in vars(self).items() if value != DEFAULTS[name]}


@dataclass(frozen=True)
class Search:
    """Stands for the fastest recipe of a precision, which is found by timing, for each batch size."""

    precision: Precision = "fp32"


DEFAULTS: dict[str, str | bool] = {field.name: field.default for field in fields(Recipe)}  # type: ignore[misc]
"""Baseline's value of each field, in the order in which techniques are applied."""

BATCH_SIZES = (1, 2, 4, 8, 16)
"""The sizes that batches have: what is made for one size (graphs, compiled code) is made for these, and waiting images
are taken in groups of these, so that none is ever padded."""


def largest_fitting(images: int, sizes: tuple[int, ...]) -> int:
    """The largest of ascending `sizes` that so many images fill."""
    return max(size for size in sizes if size <= images)

"""Implementations that pick the fastest of several ways of running the networks, by timing them where they run."""

import hashlib
import json
import logging
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from effdet.efficientdet import EfficientDet
from torch import nn

from detserver import compiling
from detserver.folding import fold_batch_norm
from detserver.grouping import GroupedEfficientDet
from detserver.machine import describe
from detserver.network import Forward, NetworkImpl, one_after_the_other
from detserver.profiling import median_seconds
from detserver.stacking import stacked_forward
from detserver.zoo import ModelSet

log = logging.getLogger(__name__)

_COMPILE_FOR_S = 300.0  # at most, in one load; with what one network takes in addition

Finish = Callable[[nn.Module], Callable[[torch.Tensor], Any]]
"""Gives a network the precision and memory format that it is to have, and compiles it where it is to be compiled."""


@dataclass(frozen=True)
class Variant:
    """One way of running the networks.

    Attributes:
        name: in the log, in `GET /implementations` and in the file that keeps the choice.
        build: makes the forward pass out of new networks, which it may change; it is to `Finish` each network it runs.
        memory_format: of networks and inputs.
        compiled: whether the networks go through torch.compile.
        can_compile: whether they could.
    """

    name: str
    build: Callable[[list[EfficientDet], Finish], Forward]
    memory_format: torch.memory_format = torch.contiguous_format
    compiled: bool = False
    can_compile: bool = True


class ChosenImpl(NetworkImpl):
    """Times its variants with one image on the first load, keeps the fastest, and remembers it for later loads.

    Where it `compiles`, the fastest one is then timed through torch.compile, too, for which a load has five minutes:
    what is not compiled by then runs eager, and the next load goes on from the cache. A subclass defines `variants`.
    Its `dtype` is that of the arithmetic.
    """

    dtype = torch.float32

    @abstractmethod
    def variants(self) -> Sequence[Variant]:
        """What there is to choose from on this device, for this set."""

    def build(self, models: list[EfficientDet]) -> Forward:
        """See `NetworkImpl.build`."""
        variants = {variant.name: variant for variant in self.variants()}
        if self.compiles(self.device):
            compiled = (replace(v, name=f"{v.name}, compiled", compiled=True) for v in self.variants() if v.can_compile)
            variants |= {variant.name: variant for variant in compiled}
        self._compile_until = time.monotonic() + _COMPILE_FOR_S
        file = self._choice_file(variants)
        times_ms = _read(file, variants)
        if times_ms is None:
            times_ms = self._measured(variants)
            if time.monotonic() < self._compile_until:
                _write(file, times_ms)
        fastest = min(times_ms, key=times_ms.__getitem__)
        listed = ", ".join(f"{name} {ms:.3g} ms" for name, ms in sorted(times_ms.items(), key=lambda item: item[1]))
        self.remark = f"{fastest} (one image on this machine: {listed})"
        log.info("%s for %s: %s", self.name, self.model_set.name, self.remark)
        return self._use(variants[fastest], models)

    def warm_up(self) -> None:
        """See `NetworkImpl.warm_up`."""
        with self._first_runs(self._variant):
            super().warm_up()
        if self._variant.compiled and time.monotonic() > self._compile_until:
            log.warning("%s: what %.0f s of torch.compile left is eager until the next load", self.name, _COMPILE_FOR_S)

    def _measured(self, variants: Mapping[str, Variant]) -> dict[str, float]:
        times_ms: dict[str, float] = {}
        for variant in variants.values():
            if not variant.compiled:
                times_ms[variant.name] = self._time_ms(variant)
        compiled = f"{min(times_ms, key=times_ms.__getitem__)}, compiled"
        if compiled in variants:
            try:
                times_ms[compiled] = self._time_ms(variants[compiled])
            except Exception as error:  # a compiler fails in many ways, and there is another variant to run
                log.warning("%s: %s is left out, because it failed: %s", self.name, compiled, error)
                self.forget()
        return times_ms

    def _time_ms(self, variant: Variant) -> float:
        log.info("%s for %s: timing %s", self.name, self.model_set.name, variant.name)
        example = [self.example()]
        with self._first_runs(variant):
            self.forward = self._use(variant, self.build_models())
            self.detect(example)
        milliseconds = 1e3 * median_seconds(lambda: self.detect(example))
        del self.forward
        self.forget()
        return milliseconds

    @contextmanager
    def _first_runs(self, variant: Variant) -> Iterator[None]:
        """Around what compiles: say that it goes on, and how long it took in all."""
        start = time.perf_counter()
        with compiling.said_so(f"{self.name} for {self.model_set.name}: preparing {variant.name}"):
            yield
        if variant.compiled:
            self.compile_s = (self.compile_s or 0.0) + time.perf_counter() - start

    def _use(self, variant: Variant, models: list[EfficientDet]) -> Forward:
        self._variant = variant
        self.memory_format = variant.memory_format
        forward = variant.build(models, self._finish)
        if self.dtype == torch.float32:
            return forward
        return lambda inputs: forward({size: pixels.to(self.dtype) for size, pixels in inputs.items()})

    def _finish(self, network: nn.Module) -> Callable[[torch.Tensor], Any]:
        network.to(self.dtype).to(memory_format=self.memory_format)
        return compiling.compiled(network, self._compile_until) if self._variant.compiled else network

    def _choice_file(self, variants: Mapping[str, Variant]) -> Path:
        """Named by all that the choice depends on, so that another machine or version chooses anew."""
        models = [f"{spec.architecture} {spec.num_classes}" for spec in self.model_set.models]
        machine = [describe(self.device).device_name, str(torch.get_num_threads()), version("torch")]
        digest = hashlib.sha256("\n".join([*models, str(self.dtype), *machine, *variants]).encode()).hexdigest()
        return self.weights.cache_dir / "choices" / f"{self.name}-{digest[:16]}.json"


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def in_sequence(models: list[EfficientDet], finish: Finish) -> Forward:
    """Folded networks one after the other."""
    return one_after_the_other([(m.config.image_size[0], finish(fold_batch_norm(m))) for m in models])


def grouped_variants(model_set: ModelSet) -> list[Variant]:
    """Each group of one architecture as one network."""

    def build(models: list[EfficientDet], finish: Finish, products: bool) -> Forward:
        return stacked_forward(model_set, models, lambda group: finish(GroupedEfficientDet(group, products)))

    as_convolutions = [
        Variant(f"grouped, {name}", lambda models, finish: build(models, finish, products=False), layout)
        for name, layout in LAYOUTS.items()
    ]
    products = Variant("grouped, 1x1 as products", lambda models, finish: build(models, finish, products=True))
    return [*as_convolutions, products]


def _read(file: Path, variants: Mapping[str, Variant]) -> dict[str, float] | None:
    """Milliseconds by variant; None where the file does not say, or is damaged."""
    try:
        times: dict[str, float] = json.loads(file.read_text())
        return times if times and times.keys() <= variants.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _write(file: Path, times_ms: Mapping[str, float]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.partial")
        temporary.write_text(json.dumps(times_ms, indent=1))
        temporary.replace(file)
    except OSError as error:
        log.warning("the choice was not kept, so the next load measures again: %s", error)

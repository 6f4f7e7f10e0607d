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

from detserver.engine.profiling import median_seconds
from detserver.machine.description import describe
from detserver.models.configuration import input_config
from detserver.models.model_sets import ModelSet
from detserver.recipes import compiling
from detserver.recipes.compiling import CompiledInTime
from detserver.recipes.folding import fold_batch_norm
from detserver.recipes.grouping import GroupedEfficientDet
from detserver.recipes.network import Forward, NetworkImpl, one_after_the_other
from detserver.recipes.stacking import stacked_forward

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


class _NotInTime(Exception):
    """Raised when no network of a variant was compiled before the time was over."""


class ChosenImpl(NetworkImpl):
    """Times its variants with one image on the first load, keeps the fastest, and remembers it for later loads.

    Where it `compiles`, the fastest one is then timed through torch.compile, too, for which a load has five minutes:
    what is not compiled by then runs eager, as `remark` says, and the next load goes on from the cache. A subclass
    defines `variants`. Its `dtype` is that of the arithmetic.
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
        reason = compiling.unavailable_reason(self.device) if self.device.type == "cuda" else None
        self._uncompiled = f"not compiled: {reason}" if reason else ""
        self._compile_until = time.monotonic() + _COMPILE_FOR_S
        file = self._choice_file(variants)
        times_ms = _read(file, variants)
        if times_ms is None:
            times_ms = self._measured(variants)
            if time.monotonic() < self._compile_until:
                _write(file, times_ms)
        fastest = min(times_ms, key=times_ms.__getitem__)
        listed = ", ".join(f"{name} {ms:.3g} ms" for name, ms in sorted(times_ms.items(), key=lambda item: item[1]))
        self._chosen_by = f"one image on this machine: {listed}"
        log.info("%s for %s: %s (%s)", self.name, self.model_set.name, fastest, self._chosen_by)
        return self._use(variants[fastest], models)

    def remarks(self) -> list[str]:
        """See `NetworkImpl.remarks`."""
        runs = self._variant.name + self._not_in_time()
        return [f"{runs} ({self._chosen_by})", *super().remarks(), *([self._uncompiled] if self._uncompiled else [])]

    def _not_in_time(self) -> str:
        """What of the variant does not run as its name says, because the time for torch.compile was over."""
        shapes = {shape for network in self._compiling for shape in network.eager}
        if not shapes:
            return ""
        sizes = sorted({tuple(shape[2:]) for shape in shapes})
        listed = ", ".join(
            f"{' x '.join(map(str, size))} px in batches of "
            + ", ".join(str(batch) for batch in sorted(shape[0] for shape in shapes if tuple(shape[2:]) == size))
            for size in sizes
        )
        return f", but eager, because {_COMPILE_FOR_S:.0f} s of torch.compile were over: {listed}"

    def warm_up(self) -> None:
        """See `NetworkImpl.warm_up`."""
        with self._first_runs(self._variant):
            super().warm_up()
        if not_in_time := self._not_in_time():
            log.warning("%s for %s: %s%s", self.name, self.model_set.name, self._variant.name, not_in_time)

    def _measured(self, variants: Mapping[str, Variant]) -> dict[str, float]:
        times_ms: dict[str, float] = {}
        for variant in variants.values():
            if not variant.compiled:
                times_ms[variant.name] = self._time_ms(variant)
        compiled = f"{min(times_ms, key=times_ms.__getitem__)}, compiled"
        if compiled in variants:
            try:
                times_ms[compiled] = self._time_ms(variants[compiled])
            except _NotInTime:
                self._uncompiled = (
                    f"not compiled: {_COMPILE_FOR_S:.0f} s of torch.compile were not enough for a network"
                )
            except Exception as error:  # a compiler fails in many ways, and there is another variant to run
                log.warning("%s: %s is left out, because it failed: %s", self.name, compiled, error)
                self._uncompiled = f"not compiled: torch.compile failed ({type(error).__name__})"
                self._compiling.clear()
                self.forget()
        return times_ms

    def _time_ms(self, variant: Variant) -> float:
        log.info("%s for %s: timing %s", self.name, self.model_set.name, variant.name)
        example = [self.example()]
        with self._first_runs(variant):
            self.forward = self._use(variant, self.build_models())
            self.detect(example)
        milliseconds = 1e3 * median_seconds(lambda: self.detect(example))
        in_time = not variant.compiled or any(network.compiled for network in self._compiling)
        del self.forward
        self._compiling.clear()
        self.forget()
        if not in_time:
            raise _NotInTime
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
        self._compiling: list[CompiledInTime] = []
        self.memory_format = variant.memory_format
        forward = variant.build(models, self._finish)
        if self.dtype == torch.float32:
            return forward
        return lambda inputs: forward({config: pixels.to(self.dtype) for config, pixels in inputs.items()})

    def _finish(self, network: nn.Module) -> Callable[[torch.Tensor], Any]:
        network.to(self.dtype).to(memory_format=self.memory_format)
        if not self._variant.compiled:
            return network
        self._compiling.append(CompiledInTime(network, self._compile_until))
        return self._compiling[-1]

    def _choice_file(self, variants: Mapping[str, Variant]) -> Path:
        """Named by all that the choice depends on, so that another machine or version chooses anew."""
        models = [spec.identity for spec in self.model_set.models]
        machine = [describe(self.device).device_name, str(torch.get_num_threads()), version("torch")]
        digest = hashlib.sha256("\n".join([*models, str(self.dtype), *machine, *variants]).encode()).hexdigest()
        return self.weights.cache_dir / "choices" / f"{self.name}-{digest[:16]}.json"


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def in_sequence(models: list[EfficientDet], finish: Finish) -> Forward:
    """Folded networks one after the other."""
    return one_after_the_other([(input_config(m.config), finish(fold_batch_norm(m))) for m in models])


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

"""Imports of torchvision, timm and effdet that leave out what a server does not need: half of its start-up time.

`import effdet` imports all of timm's model families, all of torchvision (models, data sets, transforms), and through
one line of `torchvision.ops.roi_align` torch's compiler. Measured on two cores, CPU seconds: torchvision 6.3 and 0.1
without all that, timm 1.6 and 0.6; `docs/measuring.md` has the rest.

`install` lets the packages of `_PACKAGES` begin empty: their submodules can be imported, and what their `__init__`
does is done as soon as somebody asks for a name that only it defines. No name is missing, therefore, to a plug-in or
with other versions of these packages; what is needed sooner than we know is only imported sooner. What an `__init__`
does besides defining names comes later, too: torch's exporter to ONNX by TorchScript (`dynamo=False`), for one, learns
of torchvision's operators only then.
"""

import importlib
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch


def _create_model(model_name: str, *arguments: Any, **options: Any) -> Any:
    """`timm.create_model`, which knows the EfficientNets at once, and every other model after timm's whole import."""
    importlib.import_module("timm.models.efficientnet")
    if not importlib.import_module("timm.models._registry").is_model(model_name):
        complete("timm.models")
    return importlib.import_module("timm.models._factory").create_model(model_name, *arguments, **options)


@dataclass(frozen=True)
class _Package:
    """What of a package can be had without its `__init__`.

    Attributes:
        parts: submodules, beside all private ones, that no name in the package hides.
        names: names in the package, with what they are: a function, or the submodule that they are defined in.
        at_once: submodules that are imported with the package: they register what torch asks for by itself.
    """

    parts: Sequence[str] = ()
    names: Mapping[str, str | Callable[..., Any]] = field(default_factory=dict)
    at_once: Sequence[str] = ()

    def has_part(self, name: str) -> bool:
        """Whether `name`, if it is that of a submodule, means the submodule after the `__init__`, too."""
        return name.startswith("_") or name in self.parts


_PACKAGES = {
    "timm": _Package(
        ("data", "layers", "models", "version"), {"create_model": _create_model, "__version__": "version"}
    ),
    "timm.data": _Package(
        ("constants", "distributed_sampler"),
        {f"IMAGENET_{of}_{what}": "constants" for of in ("DEFAULT", "INCEPTION") for what in ("MEAN", "STD")},
    ),
    "timm.models": _Package(("efficientnet",), {"load_checkpoint": "_helpers"}),
    "torchvision": _Package(
        ("extension", "models", "ops", "utils"),
        {"_is_tracing": torch._C._get_tracing_state},
        at_once=("extension", "_autograd_registrations", "_meta_registrations"),
    ),
    "torchvision.models": _Package(("feature_extraction",)),
    "torchvision.ops": _Package(("boxes", "misc"), {"nms": "boxes"}),
}


def install() -> None:
    """Make later imports lean, in this process; those that were made before stay as they are."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def complete(name: str) -> None:
    """Run the `__init__` of a package, where that has not been done yet, after those of the packages that it is in."""
    if outer := name.rpartition(".")[0]:
        complete(outer)
    package = importlib.import_module(name)
    if isinstance(package, _LeanPackage):
        package.run_init()


# One for all packages, because one `__init__` runs others. It is held while they import, as a thread's own imports are.
_lock = threading.RLock()


class _LeanPackage(ModuleType):
    """A package whose `__init__` has not run yet; once it has, it is a module like any other."""

    def run_init(self) -> None:
        """Run the `__init__`, once; another thread waits until it is done."""
        assert self.__spec__ is not None
        with _lock:
            loader, self.__spec__.loader_state = self.__spec__.loader_state, None
            if loader is not None:
                loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        package = _PACKAGES[self.__name__]
        if name in package.names:
            found = package.names[name]
            return getattr(self._part(found), name) if isinstance(found, str) else found
        if package.has_part(name) and find_spec(f"{self.__name__}.{name}"):
            return self._part(name)
        complete(self.__name__)
        return ModuleType.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # Importing a submodule binds its name in the package. `torchvision.ops.roi_align` for one is a submodule only
        # until the package gives its name to a function.
        if isinstance(value, ModuleType) and not _PACKAGES[self.__name__].has_part(name):
            complete(self.__name__)

    def __dir__(self) -> Iterable[str]:
        complete(self.__name__)
        return ModuleType.__dir__(self)

    def _part(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.__name__}.{name}")


class _Finder(MetaPathFinder):
    """Finds the packages of `_PACKAGES` where they are, and leaves everything else to others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname in _PACKAGES else None
        if spec is not None:
            spec.loader_state, spec.loader = spec.loader, _InitLater()
        return spec


class _InitLater(Loader):
    """Stands before a package's own loader for as long as it is imported."""

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader`; runs nothing of the package itself."""
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = module.__spec__.loader_state
        module.__class__ = _LeanPackage
        for part in _PACKAGES[module.__name__].at_once:
            with suppress(ModuleNotFoundError):  # of a version that does not have it
                importlib.import_module(f"{module.__name__}.{part}")

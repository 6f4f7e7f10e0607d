"""All implementations: one file of this folder each, and those that other packages offer by an entry point."""

import importlib
import logging
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from types import MappingProxyType

from detserver.errors import UnknownImplementation
from detserver.implementations.base import BaseModelImpl

log = logging.getLogger(__name__)

ENTRY_POINTS = "detserver.implementations"


class Registry:
    """The implementations that were found, by name; `broken` names files and entry points that could not be used."""

    def __init__(self) -> None:
        self._found: dict[str, type[BaseModelImpl]] = {}
        self.broken: dict[str, str] = {}
        for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
            self._add_module(module.name)
        for point in entry_points(group=ENTRY_POINTS):
            try:
                self._add(point.load(), point.value)
            except Exception as error:  # a plug-in may fail in any way; the others are served all the same
                self._note_broken(point.name, error)

    @property
    def all(self) -> Mapping[str, type[BaseModelImpl]]:
        """Name to class, `baseline` and `invalid` first, then in the order of their names."""
        first = [name for name in ("baseline", "invalid") if name in self._found]
        rest = sorted(self._found.keys() - {*first})
        return MappingProxyType({name: self._found[name] for name in (*first, *rest)})

    def get(self, name: str) -> type[BaseModelImpl]:
        """The implementation called `name`.

        Raises:
            UnknownImplementation: there is none; the message lists those there are.
        """
        if name not in self._found:
            reason = f" ({name} is broken: {self.broken[name]})" if name in self.broken else ""
            raise UnknownImplementation(f"no implementation {name!r}; there are {', '.join(self.all)}{reason}")
        return self._found[name]

    def _add_module(self, name: str) -> None:
        if name == "base":
            return
        try:
            module = importlib.import_module(f"{__name__}.{name}")
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, BaseModelImpl) and value.__module__ == module.__name__:
                    self._add(value, f"{name}.py")
        except Exception as error:  # a new file may fail in any way; the others are served all the same
            self._note_broken(name, error)

    def _add(self, implementation: type[BaseModelImpl], where: str) -> None:
        missing = [name for name in ("name", "description", "exact") if not hasattr(implementation, name)]
        if missing:
            raise TypeError(f"{implementation.__name__} in {where} lacks the class attribute {', '.join(missing)}")
        if implementation.name in self._found:
            raise ValueError(f"{implementation.name} in {where} is the name of another implementation already")
        self._found[implementation.name] = implementation

    def _note_broken(self, name: str, error: Exception) -> None:
        self.broken[name] = f"{type(error).__name__}: {error}"
        log.error("implementation %s cannot be used: %s", name, self.broken[name])

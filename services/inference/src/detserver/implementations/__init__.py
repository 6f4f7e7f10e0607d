"""All implementations: the rows of the table, one file of this folder each, and other packages' entry points."""

import importlib
import logging
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from types import MappingProxyType

from detserver.errors import UnknownImplementation
from detserver.implementations.base import BaseModelImpl
from detserver.implementations.from_recipe import RecipeImpl, of_row
from detserver.implementations.table import ROWS

log = logging.getLogger(__name__)

ENTRY_POINTS = "detserver.implementations"


class Registry:
    """The implementations that were found, by name; `broken` names files and entry points that could not be used."""

    def __init__(self) -> None:
        self._found: dict[str, type[BaseModelImpl]] = {}
        self.broken: dict[str, str] = {}
        rows = {row.name: row for row in ROWS}
        for row in ROWS:
            try:
                self._add(of_row(row, rows[row.adds_to] if row.adds_to else None), "table.py")
            except Exception as error:  # a technique may fail in any way; the others are served all the same
                self._note_broken(row.name, error)
        for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
            self._add_module(module.name)
        for point in entry_points(group=ENTRY_POINTS):
            try:
                self._add(point.load(), point.value)
            except Exception as error:  # a plug-in may fail in any way; the others are served all the same
                self._note_broken(point.name, error)

    @property
    def all(self) -> Mapping[str, type[BaseModelImpl]]:
        """Name to class: the rows of the table in its order, then the others in the order of their names."""
        return MappingProxyType(self._found)

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
        try:
            module = importlib.import_module(f"{__name__}.{name}")
            for value in vars(module).values():
                if not isinstance(value, type) or value in (BaseModelImpl, RecipeImpl):
                    continue
                if issubclass(value, BaseModelImpl) and value.__module__ == module.__name__:
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

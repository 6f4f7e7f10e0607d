"""All techniques: one file of this folder each, which holds one subclass of `Technique` or more."""

import functools
import importlib
import logging
import pkgutil
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from detserver.recipes.recipe import DEFAULTS, Recipe
from detserver.recipes.technique import Technique

log = logging.getLogger(__name__)


@functools.cache
def all_techniques() -> Mapping[tuple[str, str | bool], Technique]:
    """By field and value of `Recipe`."""
    found: dict[tuple[str, str | bool], Technique] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        try:
            module = importlib.import_module(f"{__name__}.{name}")
        except Exception:  # a new file may fail in any way; what needs it is refused, and the rest is served
            log.exception("the technique %s cannot be used", name)
            continue
        for each in vars(module).values():
            if isinstance(each, type) and issubclass(each, Technique) and each.__module__ == module.__name__:
                found.update({(each.field, value): each() for value in each.titles})
    return MappingProxyType(found)


def of_recipe(recipe: Recipe) -> Iterator[Technique]:
    """The techniques of a recipe, in the order in which they are applied.

    Raises:
        LookupError: no file has the technique that a field names.
    """
    for name in DEFAULTS:
        value = getattr(recipe, name)
        technique = all_techniques().get((name, value))
        if technique is not None:
            yield technique
        elif value != DEFAULTS[name]:
            raise LookupError(f"no technique {name}={value}: a file of {__name__} has to define it")


def title(name: str, value: str | bool) -> str:
    """What the ablation calls a value of a field; the value itself where no technique has it."""
    technique = all_techniques().get((name, value))
    return technique.titles[value] if technique else f"{name}={value}"

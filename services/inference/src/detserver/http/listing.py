"""What a server says of itself and of its models."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict

import torch

from detserver.engine.work import Key, LoadFigures
from detserver.http import schemas
from detserver.implementations.base import BaseModelImpl
from detserver.machine.description import Machine
from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore


def model_set_info(model_set: ModelSet, store: WeightsStore) -> schemas.ModelSetInfo:
    """A model set, with the weights that were found for it."""
    models = []
    for spec in model_set.models:
        weights = store.known(spec)
        models.append(
            schemas.ModelInfo(
                model_name=spec.name,
                architecture=spec.architecture,
                num_classes=spec.num_classes,
                image_size=spec.input.size,
                mean=spec.input.mean,
                std=spec.input.std,
                interpolation=spec.input.interpolation,
                fill_color=spec.input.fill_color,
                configuration=dict(spec.overrides),
                source=weights.source if weights else None,
                fingerprint=weights.fingerprint if weights else None,
            )
        )
    return schemas.ModelSetInfo(name=model_set.name, models=models)


def build_labels(machine: Machine, revision: str | None) -> dict[str, str]:
    """The labels of `detserver_build_info`."""
    versions = {name: machine.versions[name] for name in ("detserver", "python", "torch", "effdet", "timm")}
    return versions | {"device": machine.device, "revision": revision or ""}


def weights_rows(model_sets: Iterable[ModelSet], store: WeightsStore) -> list[tuple[str, str, str]]:
    """(model set, model, source) of all weights that were found."""
    return [
        (model_set.name, spec.name, weights.source)
        for model_set in model_sets
        for spec in model_set.models
        if (weights := store.known(spec))
    ]


def runnable_sets(
    implementation: type[BaseModelImpl], device: torch.device, model_sets: Iterable[ModelSet]
) -> list[str]:
    """Names of the sets that an implementation can run here."""
    if implementation.unavailable_reason(device):
        return []
    return [each.name for each in model_sets if not implementation.unsupported_reason(each)]


def implementation_info(
    implementation: type[BaseModelImpl],
    device: torch.device,
    model_sets: Collection[ModelSet],
    figures: Mapping[Key, LoadFigures],
    only: Collection[Key] | None,
) -> schemas.ImplementationInfo:
    """An implementation, with what loading it took where it is loaded.

    Args:
        figures: of all that is loaded.
        only: all that the server ever serves; None where that is everything.
    """
    name = implementation.name
    runnable = runnable_sets(implementation, device, model_sets)
    unavailable = implementation.unavailable_reason(device)
    if only is not None:
        runnable = [each for each in runnable if (name, each) in only]
        if not any(served == name for served, _ in only):
            unavailable = (
                unavailable or f"this server serves {', '.join('@'.join(key) for key in only)} and nothing else"
            )
    loads = {set_name: each for (loaded, set_name), each in figures.items() if loaded == name}
    return schemas.ImplementationInfo(
        name=name,
        description=implementation.description,
        exact=implementation.exact,
        precision=implementation.precision,
        recipe=None if implementation.recipe is None else dict(implementation.recipe),
        adds_to=implementation.adds_to,
        technique=implementation.technique,
        compiles=implementation.compiles(device),
        model_sets=runnable,
        unsupported={each.name: reason for each in model_sets if (reason := implementation.unsupported_reason(each))},
        loaded=list(loads),
        loads=[
            schemas.Loaded(implementation=name, model_set=set_name, **asdict(each)) for set_name, each in loads.items()
        ],
        unavailable=unavailable,
    )


def broken_implementation(name: str, reason: str) -> schemas.ImplementationInfo:
    """An implementation that cannot be used."""
    return schemas.ImplementationInfo(
        name=name,
        description="(broken)",
        exact=False,
        precision="",
        recipe=None,
        adds_to=None,
        technique="",
        compiles=False,
        model_sets=[],
        unsupported={},
        loaded=[],
        loads=[],
        unavailable=reason,
    )

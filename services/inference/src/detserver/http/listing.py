"""What a server says of itself and of its models."""

from detserver.http import schemas
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

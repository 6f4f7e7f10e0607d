"""The reference: `baseline`'s outputs for a dataset, stored with what they belong to."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from detbench.client import ServerClient
from detbench.datasets import Dataset, Photo
from detbench.errors import ReferenceMismatch
from detbench.quality.outputs import ImageOutput, collect, read_outputs, write_outputs
from detbench.results import BASELINE, ModelWeights, Record

_SHOWN = 3


class Manifest(Record):
    """What a reference belongs to. Another version of torch is recorded, and no reason to refuse a comparison."""

    schema_version: Literal[1] = 1
    model_set: str
    weights: list[ModelWeights]
    versions: dict[str, str]
    device: str
    dataset: str
    images: dict[str, str]
    created: datetime
    detections_sha256: str


@dataclass(frozen=True)
class Reference:
    """A stored reference: its manifest, and one output per image."""

    manifest: Manifest
    outputs: tuple[ImageOutput, ...]

    def check(self, weights: Sequence[ModelWeights], photos: Sequence[Photo]) -> None:
        """Raise `ReferenceMismatch` unless the reference is of these weights and holds all these photos."""
        differences = [*_weights_differences(self.manifest.weights, weights), *self._photo_differences(photos)]
        if differences:
            shown = "; ".join(differences[:_SHOWN])
            more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
            raise ReferenceMismatch(
                f"the reference of {self.manifest.model_set} does not belong to this comparison: {shown}{more}. "
                f"Make a new one: detbench reference --model-set {self.manifest.model_set}"
            )

    def outputs_of(self, photos: Sequence[Photo]) -> list[ImageOutput]:
        """The outputs for `photos`, which `check` has found here, in their order."""
        by_hash = {output.sha256: output for output in self.outputs}
        return [by_hash[photo.sha256] for photo in photos]

    def _photo_differences(self, photos: Sequence[Photo]) -> list[str]:
        known = set(self.manifest.images.values())
        return [
            f"{photo.name} has other content"
            if photo.name in self.manifest.images
            else f"{photo.name} is not in it (it was made from {self.manifest.dataset})"
            for photo in photos
            if photo.sha256 not in known
        ]


def make_reference(
    client: ServerClient,
    model_set: str,
    dataset: Dataset,
    outputs_dir: Path,
    on_image: Callable[[str], None] = lambda _: None,
) -> Reference:
    """Ask `baseline` for every image and store what it answers, in place of an earlier reference of the set.

    Args:
        on_image: called with the name of each photo once it is answered.

    Raises:
        ServerError, MalformedOutput: see there; an earlier reference is kept.
    """
    health = client.health()
    weights = client.model_set(model_set).models
    outputs = collect(client, BASELINE, model_set, dataset.photos, on_image)
    folder = outputs_dir / "reference" / model_set
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{model_set}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir(mode=0o755)
        write_outputs(new / "detections.json", outputs)
        manifest = Manifest(
            model_set=model_set,
            weights=weights,
            versions=health.versions,
            device=health.device,
            dataset=dataset.name,
            images={photo.name: photo.sha256 for photo in dataset.photos},
            created=datetime.now(UTC),
            detections_sha256=hashlib.sha256((new / "detections.json").read_bytes()).hexdigest(),
        )
        (new / "manifest.json").write_text(manifest.model_dump_json(indent=1))
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        new.rename(folder)
    return Reference(manifest, tuple(outputs))


def load_reference(outputs_dir: Path, model_set: str) -> Reference:
    """Read the stored reference of a model set.

    Raises:
        ReferenceMismatch: there is none, or it is damaged; the message says how to make one.
    """
    folder = outputs_dir / "reference" / model_set
    remedy = f"detbench reference --model-set {model_set}"
    if not (folder / "manifest.json").is_file():
        raise ReferenceMismatch(f"there is no reference of {model_set} under {folder}. Make one: {remedy}")
    try:
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
        stored = (folder / "detections.json").read_bytes()
        if hashlib.sha256(stored).hexdigest() != manifest.detections_sha256:
            raise ReferenceMismatch(f"{folder}/detections.json is not what its manifest says. Make a new one: {remedy}")
        return Reference(manifest, tuple(read_outputs(folder / "detections.json")))
    except (OSError, ValidationError) as error:
        raise ReferenceMismatch(f"the reference in {folder} cannot be read. Make a new one: {remedy}") from error


def _weights_differences(stored: Sequence[ModelWeights], served: Sequence[ModelWeights]) -> list[str]:
    before = {model.model_name: model for model in stored}
    now = {model.model_name: model for model in served}
    differences = [f"the server has no {name}" for name in before.keys() - now.keys()]
    for name, model in now.items():
        if name not in before:
            differences.append(f"it has no {name}")
        elif model.fingerprint != before[name].fingerprint:
            differences.append(
                f"{name} has {model.source} weights {model.fingerprint[:12]}, "
                f"the reference {before[name].source} ones {before[name].fingerprint[:12]}"
            )
    return differences

"""The reference: `baseline`'s outputs for a dataset, stored with what they belong to.

One for each kind of device, `cpu` or `cuda`: devices differ in more than rounding, in which boxes NMS keeps for
example, so that the reference of one does not judge the answers of another.

    <outputs>/reference/<model set>/<device kind>/manifest.json
                                                  detections.json
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from detbench.api.client import ServerClient
from detbench.api.schemas import ModelWeights
from detbench.datasets import Dataset, Photo
from detbench.errors import ReferenceMismatch
from detbench.quality.outputs import ImageOutput, collect, read_outputs, write_outputs
from detbench.quality.replicas import other_weights
from detbench.results.record import Record
from detbench.results.sweep import BASELINE

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
        """Raise `ReferenceMismatch` unless the reference is of these weights and holds all these photos.

        That it is of the right kind of device is `load_reference`'s to see.
        """
        self._refuse([*_weights_differences(self.manifest.weights, weights), *self._photo_differences(photos)])

    def check_server(self, client: ServerClient, photos: Sequence[Photo]) -> list[str]:
        """Raise `ReferenceMismatch` unless the reference is of the server's weights and holds all these photos.

        Returns:
            A line about each replica of a cluster with other weights, where there is one with the reference's.
        """
        replicas = client.health().replicas or []
        others = other_weights(replicas, self.manifest.weights)
        if 0 < len(others) < len(replicas):  # which of them tells its models is chance
            self.check_photos(photos)
            return others
        self.check(client.model_set(self.manifest.model_set).models, photos)
        return []

    def check_photos(self, photos: Sequence[Photo]) -> None:
        """Raise `ReferenceMismatch` unless the reference holds all these photos."""
        self._refuse(self._photo_differences(photos))

    def _refuse(self, differences: Sequence[str]) -> None:
        if differences:
            shown = "; ".join(differences[:_SHOWN])
            more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
            raise ReferenceMismatch(
                f"the reference of {self.manifest.model_set} does not belong to this comparison: {shown}{more}. "
                f"Make a new one: detbench reference --model-set {self.manifest.model_set}"
            )

    def outputs_of(self, photos: Sequence[Photo]) -> list[ImageOutput]:
        """The outputs for `photos`, which `check` has found here, in their order.

        They are found by content: under the names that the photos have now, and several may have the same.
        """
        by_hash = {output.sha256: output for output in self.outputs}
        return [by_hash[photo.sha256].model_copy(update={"image": photo.name}) for photo in photos]

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
    """Ask `baseline` for every image and store what it answers, in place of the set's earlier one of the device's kind.

    Args:
        on_image: called with the name of each photo once it is answered.

    Raises:
        DatasetError, ServerError, MalformedOutput: see `collect`; an earlier reference is kept.
    """
    health = client.health()
    weights = client.model_set(model_set).models
    outputs = collect(client, BASELINE, model_set, dataset.photos, on_image)
    folder = reference_folder(outputs_dir, model_set, health.device)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
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


def reference_folder(outputs_dir: Path, model_set: str, device: str) -> Path:
    """Where the reference of a model set for a kind of device is; `device` is torch's name of it: cpu, cuda:0."""
    return outputs_dir / "reference" / model_set / device_kind(device)


def device_kind(device: str) -> str:
    """The kind of a device by torch's name of it: cuda of cuda:1."""
    return device.partition(":")[0]


def load_reference(outputs_dir: Path, model_set: str, device: str) -> Reference:
    """Read the stored reference of a model set for the kind of a device, named as torch does.

    Raises:
        ReferenceMismatch: there is none, or it is damaged; the message says how to make one.
    """
    folder = reference_folder(outputs_dir, model_set, device)
    kind, remedy = folder.name, f"detbench reference --model-set {model_set}"
    if not (folder / "manifest.json").is_file():
        others = sorted(path.parent.name for path in folder.parent.glob("[!.]*/manifest.json"))
        there = f"; that of {' and '.join(others)} does not judge its answers" if others else ""
        raise ReferenceMismatch(
            f"there is no reference of {model_set} on {kind} under {folder}{there}. Make one with this server: {remedy}"
        )
    try:
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
        stored = (folder / "detections.json").read_bytes()
        if hashlib.sha256(stored).hexdigest() != manifest.detections_sha256:
            raise ReferenceMismatch(f"{folder}/detections.json is not what its manifest says. Make a new one: {remedy}")
        if device_kind(manifest.device) != kind:
            raise ReferenceMismatch(f"the reference in {folder} is of {manifest.device}. Make a new one: {remedy}")
        return Reference(manifest, tuple(read_outputs(folder / "detections.json")))
    except (OSError, ValidationError) as error:
        raise ReferenceMismatch(f"the reference in {folder} cannot be read. Make a new one: {remedy}") from error


def newest_reference(outputs_dir: Path, model_set: str) -> Reference:
    """The reference of a model set that was made last, for a server that does not tell what it runs on.

    Raises:
        ReferenceMismatch: there is none, or it is damaged.
    """
    folder = outputs_dir / "reference" / model_set
    found = [load_reference(outputs_dir, model_set, path.parent.name) for path in folder.glob("[!.]*/manifest.json")]
    if not found:
        raise ReferenceMismatch(
            f"there is no reference of {model_set} under {folder}, which says what is right. "
            f"Make one: detbench reference --model-set {model_set}"
        )
    return max(found, key=lambda each: each.manifest.created)


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
        else:
            fields = ("image_size", "mean", "std", "interpolation", "fill_color", "configuration")
            changed = [field for field in fields if getattr(model, field) != getattr(before[name], field)]
            if changed:
                differences.append(f"{name} has another {', '.join(changed)}")
    return differences

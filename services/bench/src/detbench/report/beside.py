"""What other runs say of the same weights on the same machine: the newest ablation and capacities beside a sweep."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from detbench.report.ablation_answer import ablation_answer
from detbench.report.capacity import answer_of
from detbench.results.ablation import Ablation
from detbench.results.capacity import Capacities
from detbench.results.sweep import Sweep

T = TypeVar("T", Ablation, Capacities)


@dataclass(frozen=True)
class Beside:
    """Another run: what it is, its sentence, and its page, relative to that of the sweep."""

    title: str
    sentence: str
    page: str


def beside(sweep: Sweep, run_dir: Path) -> list[Beside]:
    """The newest of each kind in the folder that `run_dir` is in, of the sweep's weights and device."""
    found = []
    if capacities := _newest(run_dir, "capacity.json", Capacities, sweep):
        path, of_capacities = capacities
        found.append(_beside("Capacity", answer_of(of_capacities), path, of_capacities))
    if ablation := _newest(run_dir, "ablation.json", Ablation, sweep):
        path, of_ablation = ablation
        found.append(_beside("Where the speed-up comes from", ablation_answer(of_ablation), path, of_ablation))
    return found


def _beside(what: str, sentence: str, path: Path, run: Ablation | Capacities) -> Beside:
    page = f"../{path.parent.name}/{path.with_suffix('.html').name}"
    return Beside(f"{what} ({run.started:%Y-%m-%d %H:%M} UTC)", sentence, page)


def _newest(run_dir: Path, name: str, kind: type[T], sweep: Sweep) -> tuple[Path, T] | None:
    """The newest file of that name whose run ended, with what it holds; others are passed over."""
    for path in sorted(run_dir.resolve().parent.glob(f"*/{name}"), reverse=True):
        try:
            found = kind.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):  # of another version, or being written
            continue
        weights = [model.fingerprint for model in found.weights]
        same = found.environment.device_name == sweep.environment.device_name
        if found.ended and same and weights == [model.fingerprint for model in sweep.weights]:
            return path, found
    return None

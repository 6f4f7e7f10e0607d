"""What other runs say of the same weights on the same machine: the newest ablation beside a sweep."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from detbench.ablation_results import Ablation
from detbench.report.ablation_answer import ablation_answer
from detbench.results import Sweep


@dataclass(frozen=True)
class Beside:
    """Another run: what it is, its sentence, and its page, relative to that of the sweep."""

    title: str
    sentence: str
    page: str


def beside(sweep: Sweep, run_dir: Path) -> list[Beside]:
    """The newest ablation in the folder that `run_dir` is in, of the sweep's weights and device; none where none is."""
    found = _newest(run_dir, "ablation.json", Ablation.model_validate_json, sweep)
    if found is None:
        return []
    path, ablation = found
    day = f"{ablation.started:%Y-%m-%d %H:%M} UTC"
    page = f"../{path.parent.name}/ablation.html"
    return [Beside(f"Where the speed-up comes from ({day})", ablation_answer(ablation), page)]


def _newest(run_dir: Path, name: str, read: Callable[[bytes], Ablation], sweep: Sweep) -> tuple[Path, Ablation] | None:
    """The newest file of that name whose run ended, with what it holds; others are passed over."""
    for path in sorted(run_dir.resolve().parent.glob(f"*/{name}"), reverse=True):
        try:
            found = read(path.read_bytes())
        except (OSError, ValidationError):  # of another version, or being written
            continue
        weights = [model.fingerprint for model in found.weights]
        same = found.environment.device_name == sweep.environment.device_name
        if found.ended and same and weights == [model.fingerprint for model in sweep.weights]:
            return path, found
    return None

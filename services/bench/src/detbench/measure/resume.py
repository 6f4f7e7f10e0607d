"""Going on with what was broken off, on the machine and with the software that it began on."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detbench.errors import DetbenchError
from detbench.results.capacity import Capacities
from detbench.results.sweep import Sweep

SCRATCH = ".scratch-"
"""Prefix of the folders in a run's that hold what is of no use when a load has ended."""


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold a run in the block, so that no other process goes on with it meanwhile; what a killed one left is removed.

    Raises:
        DetbenchError: there is no such folder, or another process holds it.
    """
    if not run_dir.is_dir():
        raise DetbenchError(f"{run_dir} is no folder; name that of a run")
    with (run_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DetbenchError(f"{run_dir} is being measured by another process; wait until it has ended") from error
        for left in run_dir.glob(f"{SCRATCH}*"):
            shutil.rmtree(left)
        yield


def resumed(broken_off: Sweep, new: Sweep) -> Sweep:
    """The sweep that goes on from `broken_off`: with what was measured in it, and without what was not.

    Args:
        new: the same sweep as it would begin now.

    Raises:
        DetbenchError: as `check_circumstances`.
    """
    check_circumstances(broken_off, new)
    return broken_off.model_copy(
        update={"ended": None, "runs": [run for run in broken_off.runs if run.verdict != "not_run"]}
    )


def check_circumstances(broken_off: Sweep | Capacities, new: Sweep | Capacities) -> None:
    """Whether `broken_off` can go on as `new`, the same as it would begin now.

    Raises:
        DetbenchError: the machine, the software, the weights, the cluster or the images are others now, so that figures
            of then and of now would not be of one run.
    """
    for what, then, now in (
        ("machine", _machine(broken_off), _machine(new)),
        ("software", _software(broken_off), _software(new)),
        ("weights", _weights(broken_off), _weights(new)),
        ("replicas", tuple(broken_off.settings.replicas), tuple(new.settings.replicas)),
        (
            "images",
            (broken_off.settings.dataset, broken_off.settings.images),
            (new.settings.dataset, new.settings.images),
        ),
    ):
        if then != now:
            raise DetbenchError(
                f"the run began with other {what} ({_differences(then, now)}); figures of both would not be of one "
                "run: start a new one, and compare the two with: detbench report A B"
            )


def _machine(sweep: Sweep | Capacities) -> tuple[object, ...]:
    environment = sweep.environment
    return environment.device_name, environment.cpu_count, environment.torch_threads, environment.platform


def _software(sweep: Sweep | Capacities) -> tuple[object, ...]:
    environment = sweep.environment
    versions = (f"{package} {version}" for package, version in sorted(environment.versions.items()))
    return environment.git_revision, environment.driver, *versions


def _weights(sweep: Sweep | Capacities) -> tuple[object, ...]:
    return tuple(f"{model.model_name} {model.fingerprint[:12]}" for model in sweep.weights)


def _differences(then: tuple[object, ...], now: tuple[object, ...]) -> str:
    """Those that are not the same, then and now."""
    before = ", ".join(str(each) for each in then if each not in now)
    after = ", ".join(str(each) for each in now if each not in then)
    return f"{before or 'nothing'} then, {after or 'nothing'} now"

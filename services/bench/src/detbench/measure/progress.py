"""What a person sees while a sweep runs: what is done, what is being done, and the time left."""

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from detbench.api.schemas import ImplementationStatus

# Seconds that a run takes beyond its duration, for the first estimate of the time left; rich corrects it.
_RUN_OVERHEAD_S = 8.0
# From here on, a person wants to know how long the thing that is being done has taken.
_LONG_S = 5.0


def loading(status: ImplementationStatus) -> str:
    """What is being done while `status` is loaded."""
    return f"{status.name}: loading{' (minutes the first time)' if status.compiles else ''}"


class StepColumn(ProgressColumn):
    """What is being done, and for how many seconds when it takes long. The task's field `since` is its start."""

    def render(self, task: Task) -> Text:
        """See `ProgressColumn.render`."""
        seconds = time.monotonic() - task.fields["since"]
        return Text(task.description if seconds < _LONG_S else f"{task.description}, {seconds:.0f} s")


class SweepProgress:
    """A progress bar in seconds of measuring, and a line above it for each thing that is finished.

    Args:
        console: where to draw; without a terminal only the lines are printed.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            StepColumn(),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None, since=time.monotonic())
        self._total_s = 0.0
        self._done_s = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def expect(self, runs: int, duration_s: float) -> None:
        """Announce how many runs of `duration_s` there will be, for the time left."""
        self._total_s = runs * (duration_s + _RUN_OVERHEAD_S)
        self._progress.update(self._task, total=self._total_s)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def doing(self, what: str) -> None:
        """Show what is being done now."""
        self._progress.update(self._task, description=what, since=time.monotonic())

    def within_run(self, what: str, message: dict[str, Any]) -> None:
        """Show a message of the load driver."""
        if message.get("phase") == "warmup":
            self.doing(f"{what}: warm-up, {message['warm_users']} of {message['users']} users or senders")
        elif message.get("phase") == "measure":
            dropped = f", {message['dropped']} dropped" if message["dropped"] else ""
            self.doing(f"{what}: {message['requests']} answers in {message['elapsed_s']:.0f} s{dropped}")
            self._progress.update(self._task, completed=min(self._total_s, self._done_s + message["elapsed_s"]))
        elif message.get("phase") == "drain":
            self.doing(f"{what}: letting the last requests end")

    def run_done(self, duration_s: float) -> None:
        """Count one run of `duration_s` as done."""
        self._done_s += duration_s + _RUN_OVERHEAD_S
        self._progress.update(self._task, completed=min(self._total_s, self._done_s))

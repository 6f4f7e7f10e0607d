"""Every request of a run, a row each, for those who want more than percentiles."""

import csv
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

COLUMNS = ("scheduled_s", "sent_s", "answered_s", "latency_ms", "service_ms", "photo", "outcome")

Row = tuple[float, float | None, float | None, str, str]
"""When it was to be sent, when it was sent and answered (CLOCK_MONOTONIC), the photo, and "ok" or what was wrong."""


class RequestLog:
    """The requests of one process of the load generator, in the order of their ends."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(
        self, scheduled_s: float, sent_s: float | None, answered_s: float | None, photo: str, outcome: str = "ok"
    ) -> None:
        """Keep a request of the window: `sent_s` None was dropped, `answered_s` None had no answer."""
        self._rows.append((scheduled_s, sent_s, answered_s, photo, outcome))

    def write(self, folder: Path) -> None:
        """Write them into a new file in `folder`, for `merge_requests`."""
        file, _ = tempfile.mkstemp(dir=folder, suffix=".csv")
        with os.fdopen(file, "w", newline="") as opened:
            csv.writer(opened).writerows(self._rows)


def merge_requests(folder: Path, target: Path) -> None:
    """Write what the processes of a load, or of its parts, wrote into `folder` as one CSV file, by scheduled time.

    Times are seconds since the first was scheduled. What was not answered well has an infinite latency, what was not
    sent no service time.
    """
    rows: list[Row] = []
    for path in folder.iterdir():
        with path.open(newline="") as opened:
            rows += [
                (float(scheduled), _number(sent), _number(answered), photo, outcome)
                for scheduled, sent, answered, photo, outcome in csv.reader(opened)
            ]
    rows.sort(key=lambda row: row[0])
    target.parent.mkdir(exist_ok=True)
    with target.open("w", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_cells(row, rows[0][0]) for row in rows)


def _cells(row: Row, first_s: float) -> Iterable[object]:
    scheduled_s, sent_s, answered_s, photo, outcome = row
    good = outcome == "ok" and sent_s is not None and answered_s is not None
    return (
        *("" if each is None else f"{each - first_s:.6f}" for each in (scheduled_s, sent_s, answered_s)),
        _ms(answered_s, scheduled_s) if good else "inf",
        "" if sent_s is None else _ms(answered_s, sent_s) if good else "inf",
        photo,
        outcome,
    )


def _ms(end_s: float | None, start_s: float | None) -> str:
    assert end_s is not None
    assert start_s is not None
    return f"{1e3 * (end_s - start_s):.3f}"


def _number(text: str) -> float | None:
    return float(text) if text else None

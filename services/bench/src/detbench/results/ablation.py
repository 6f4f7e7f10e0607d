"""What an ablation measured: the schema of `ablation.json`, which the runner writes and the exporters read."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from detbench.api.schemas import ModelWeights
from detbench.host import CpuShares
from detbench.results.quality import Comparison
from detbench.results.record import Record
from detbench.results.sweep import Environment, ImplementationInfo, Memory


class Gain(Record):
    """What one row is worth at one batch size; None where there is nothing to compare with."""

    speedup: float | None = Field(description="baseline's latency over this row's")
    versus: str | None = Field(description="the row that `factor` compares with: what this one adds its technique to")
    factor: float | None = Field(description="latency of the row `versus` over this row's")
    share: float | None = Field(
        description="log(factor) over the log of the speed-up of the fastest exact row; negative where it is slower"
    )
    on_path: bool = Field(
        description="whether it lies on the path from baseline to the fastest exact row, whose shares add up to 1"
    )


class Timing(Record):
    """Latency of forward and post-processing of one batch, without HTTP, decode and queue."""

    batch_size: int
    rounds_ms: list[list[float]] = Field(description="latency of each timed batch, by round")
    median_ms: float = Field(description="of all batches, as the quartiles are")
    lower_quartile_ms: float
    upper_quartile_ms: float
    images_per_s: float = Field(description="batch_size / median")
    memory: Memory
    cpu: CpuShares | None = Field(
        default=None, description="of all cores of the machine that measured, in the round in which most was stolen"
    )
    gain: Gain | None = None


class Step(Record):
    """One row of the ablation, and what it measured until it ended or failed."""

    label: str
    implementation: ImplementationInfo
    timings: list[Timing] = Field(default_factory=list, description="by batch size, ascending; those that succeeded")
    comparison: Comparison | None = None

    def timing(self, batch_size: int) -> Timing | None:
        """What was measured with `batch_size`, or None."""
        return next((timing for timing in self.timings if timing.batch_size == batch_size), None)

    @property
    def right(self) -> bool:
        """Whether it claims the reference's answers, and is not known to give others."""
        return self.implementation.exact and (self.comparison is None or self.comparison.gate.passed)


class AblationSettings(Record):
    """What the ablation was asked to do."""

    model_set: str
    batch_sizes: list[int] = Field(description="ascending")
    repeats: int = Field(description="rounds; every second one measures in the opposite order")
    batches: int | None = Field(description="timed batches of each cell and round; None: as many as a few seconds hold")
    order: list[str] = Field(description="the rows in the order in which the first round measures them")
    dataset: str
    images: int
    concurrency: int = Field(description="requests in flight while outputs are compared")
    host: str | None = Field(
        description="base URL of the server that measured all; None: each row had a server of its own"
    )
    server: dict[str, str | int | float | bool | None] = Field(description="the server's settings, as it reports them")


class Ablation(Record):
    """Everything that one `detbench run --ablation` measured."""

    schema_version: Literal[2] = 2
    started: datetime
    ended: datetime | None = Field(default=None, description="None while it runs, and for ever when it was killed")
    settings: AblationSettings
    environment: Environment
    weights: list[ModelWeights]
    adds_to: dict[str, str | None] = Field(
        description="each implementation of the server, in its order, to the one that it adds one technique to"
    )
    steps: list[Step] = Field(default_factory=list, description="in the order of `adds_to`, however they were measured")
    left_out: dict[str, str] = Field(default_factory=dict, description="implementation to why it is no step")
    problems: list[str] = Field(default_factory=list, description="what ended badly, one line each; empty is success")

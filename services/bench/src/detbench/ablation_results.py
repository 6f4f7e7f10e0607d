"""What an ablation measured: the schema of `ablation.json`, which the runner writes and the exporters read."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from detbench.results import Comparison, Environment, ImplementationInfo, Record, Vram
from detbench.schemas import ModelWeights


class Gain(Record):
    """What one step is worth at one batch size; None where there is nothing to compare with."""

    speedup: float | None = Field(description="baseline's latency over this step's")
    factor: float | None = Field(
        description="latency of the last step before this one that was measured, over this one's"
    )
    share: float | None = Field(
        description="log(factor) over the log of the speed-up of the fastest exact step; negative where it is slower"
    )


class Timing(Record):
    """Latency of forward and post-processing of one batch, without HTTP, decode and queue."""

    batch_size: int
    latencies_ms: list[float] = Field(description="of each timed batch, in their order")
    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    images_per_s: float = Field(description="batch_size / median")
    vram: Vram
    gain: Gain | None = None


class Step(Record):
    """One technique on top of those before it, and what it measured until it ended or failed."""

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
    repeats: int | None = Field(description="timed batches of each cell; None: as many as about 10 s hold")
    dataset: str
    images: int
    concurrency: int = Field(description="requests in flight while outputs are compared")
    host: str
    server: dict[str, str | int | float | bool | None] = Field(description="the server's settings, as it reports them")


class Ablation(Record):
    """Everything that one `detbench run --ablation` measured."""

    schema_version: Literal[1] = 1
    started: datetime
    ended: datetime | None = Field(default=None, description="None while it runs, and for ever when it was killed")
    settings: AblationSettings
    environment: Environment
    weights: list[ModelWeights]
    steps: list[Step] = Field(default_factory=list)
    left_out: dict[str, str] = Field(default_factory=dict, description="implementation to why it is no step")
    problems: list[str] = Field(default_factory=list, description="what ended badly, one line each; empty is success")

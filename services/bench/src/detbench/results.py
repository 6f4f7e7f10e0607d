"""What a sweep measured: the schema of `results.json`, which the runner writes and every exporter reads.

Times are seconds and sizes bytes, unless a name says otherwise: `_ms` and `_mb` are for people.
"""

import math
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from detbench.api.schemas import ModelWeights
from detbench.host import CpuShares
from detbench.statistics.percentiles import Percentile

# The implementation that references are made with, and speed-ups are relative to.
BASELINE = "baseline"

# The implementation without a model: what server and load test do at most.
CEILING = "invalid"


class Record(BaseModel):
    """A frozen record; unknown fields are an error, so that a typo cannot lose a measurement.

    An infinite number is the string "Infinity" in JSON, which has no number for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Environment(Record):
    """The machine and the software that answered."""

    device: str = Field(description="torch's name of the device: cpu, cuda:0")
    device_name: str
    driver: str | None = Field(description="version of the GPU driver; None without a GPU")
    versions: dict[str, str] = Field(description="package to version, `python` among them")
    cpu_count: int
    torch_threads: int
    platform: str
    git_revision: str | None
    clocks_mhz: dict[str, int] | None = Field(default=None, description="GPU clocks at the start; None without a GPU")


class ClosedLoop(Record):
    """Users that each send the next photo as soon as the last one is answered. `str()` is for a person to read."""

    loop: Literal["closed"] = "closed"
    users: int

    def __str__(self) -> str:
        return "1 user" if self.users == 1 else f"{self.users} users"


class OpenLoop(Record):
    """Requests that are sent at their times, whatever is answered. `str()` is the schedule in words.

    The fields from `rate` to `seed` are those of `detbench.load.schedules.schedule_of`, which makes the schedule; slot
    number n carries the photo that `photo_of(n, photos, seed)` says.
    """

    loop: Literal["open"] = "open"
    schedule: str = Field(description="in words: its rate and its arrivals")
    rate: float | None = Field(default=None, description="requests per second")
    arrivals: str | None = Field(default=None, description="constant, poisson or gamma; None: poisson, or a trace's")
    burstiness: float | None = None
    steps: str | None = Field(default=None, description='such as "10s:5,10s:20"')
    trace: str | None = Field(default=None, description="path of a file of arrival times")
    seed: int = 0
    max_in_flight: int = Field(description="requests without an answer at most; a slot beyond is dropped")

    @property
    def steady(self) -> bool:
        """Whether the rate stays the same."""
        return self.steps is None and self.trace is None

    def __str__(self) -> str:
        return self.schedule


Offered = Annotated[ClosedLoop | OpenLoop, Field(discriminator="loop")]


class Objective(Record):
    """A limit that the user sets, part of a service level objective (SLO). `str()` is for a person to read."""

    figure: Literal["p50", "p90", "p99", "p99.9", "max", "errors", "memory"]
    limit: float = Field(description="ms of a latency; of errors their share, from 0 to 1; MB of memory at its peak")

    @property
    def is_latency(self) -> bool:
        """Whether it limits a latency, and is in ms."""
        return self.figure not in ("errors", "memory")

    def __str__(self) -> str:
        return f"{self.figure} ≤ {self.text(self.limit)}"

    def text(self, value: float) -> str:
        """A value of the figure with its unit."""
        if math.isinf(value):
            return "∞"
        match self.figure:
            case "errors":
                return f"{100 * value:.3g} %"
            case "memory":
                return f"{value:,.0f} MB"
            case _:
                return f"{value:,.4g} ms" if value < 1e4 else f"{value:,.0f} ms"


class Miss(Record):
    """A limit that a run does not hold."""

    objective: Objective
    seen: float | None = Field(description="in the unit of the limit; None where nothing was measured")

    def __str__(self) -> str:
        seen = "not measured" if self.seen is None else self.objective.text(self.seen)
        return f"{self.objective.figure} {seen}"


class Settings(Record):
    """What the sweep was asked to do."""

    implementations: list[str]
    model_set: str
    offered: list[Offered] = Field(description="the loads, each a run of every implementation")
    processes: int = Field(description="that send each load together")
    repeats: int = Field(default=1, description="rounds; every second one measures in the opposite order")
    duration_s: float
    until: str | None = Field(default=None, description="the percentile that a run is lengthened for")
    max_duration_s: float | None = Field(default=None, description="of a run that is lengthened, at most")
    warmup_requests: int
    slo: list[Objective] = Field(default_factory=list, description="limits that every run is to hold")
    dataset: str
    images: int
    compare_outputs: bool
    concurrency: int = Field(description="requests in flight while outputs are compared")
    max_map_loss: float = Field(description="of what does not claim to be exact, where images are annotated")
    host: str | None = Field(
        description="base URL of the server that measured all; None: each implementation had a server of its own"
    )
    server: dict[str, str | int | float | bool | None] = Field(
        default_factory=dict, description="the server's own settings, as it reports them"
    )


class Times(Record):
    """Client-side times of the requests of one run, in ms. One that failed took infinitely long.

    The percentiles are from the histogram, whose resolution is 0.1 %.
    """

    mean_ms: float | None = Field(description="of those that were answered; None where none was")
    p50: Percentile
    p90: Percentile
    p99: Percentile
    p99_9: Percentile
    max_ms: float = Field(description="infinite where a request failed")
    histogram: str = Field(description="HdrHistogram of the answered ones, in microseconds, base64 of its V2 encoding")

    def percentiles(self) -> dict[str, Percentile]:
        """By name: p50, p90, p99 and p99.9."""
        return {"p50": self.p50, "p90": self.p90, "p99": self.p99, "p99.9": self.p99_9}


class Lateness(Record):
    """How long after their times the requests of an open loop were sent, in ms."""

    p50_ms: float
    p99_ms: float
    max_ms: float


class Series(Record):
    """The run by whole seconds since the window opened; the last second may be a part of one."""

    answered: list[int] = Field(description="successful answers that came in each second")
    issued: list[int] = Field(description="requests of each second that were answered, whenever that was")
    latency_mean_ms: list[float | None] = Field(description="mean latency of those; None where there is none")


class Load(Record):
    """What the load generator measured. All but `rps` is of the requests that were issued in the window.

    Issued means scheduled in an open loop, sent in a closed one. issued = answered + failed + dropped.
    """

    window_s: float = Field(description="what `rps` is counted in; a closed loop's ends with its last answer")
    issued: int
    answered: int = Field(description="successfully, however late")
    failed: int = Field(description="for any reason, no answer among them")
    dropped: int = Field(description="scheduled and not sent: no sender was idle")
    offered_rps: float | None = Field(description="issued requests per second; None in a closed loop")
    rps: float = Field(description="successful answers within the window per second")
    latency: Times | None = Field(
        description="open loop: from the scheduled time to the answer, dropped slots being failures; closed loop: from "
        "sending to the answer; None where nothing was issued"
    )
    service: Times | None = Field(description="from sending to the answer, of what was sent")
    lateness: Lateness | None = Field(description="None in a closed loop, and where nothing was sent")
    stages_ms: dict[str, float] = Field(description="mean of each server-side stage, from the responses' timings_ms")
    batch_size_mean: float | None
    errors: dict[str, int] = Field(description="reason to count")
    series: Series
    generator_cpu_percent: list[float] = Field(description="CPU of each process of the load generator; 100 is one core")


class Memory(Record):
    """Memory of a server with one implementation loaded, in MB (10^6 bytes); peaks are those of the measurement alone.

    None where it does not apply: without a GPU all but `resident` and `empty_mb`.
    """

    allocated_mb: float | None = Field(description="GPU memory of torch's tensors")
    reserved_mb: float | None = Field(description="GPU memory that torch's allocator holds")
    allocated_peak_mb: float | None
    reserved_peak_mb: float | None
    process_mb: float | None = Field(description="GPU memory of the server's process, by NVML")
    process_peak_mb: float | None
    device_used_mb: float | None = Field(description="GPU memory of all processes on the device, by NVML")
    device_total_mb: float | None
    resident_mb: float | None = Field(description="resident memory of the server's process")
    resident_peak_mb: float | None
    empty_mb: float | None = Field(
        description="what the same process took of what `peak_mb` is of before anything was loaded; None where the "
        "server was not started for this implementation"
    )

    @property
    def peak_mb(self) -> float | None:
        """What a report calls the memory peak: the process's on its device, or torch's where NVML is silent."""
        return _first(self.process_peak_mb, self.reserved_peak_mb, self.resident_peak_mb)

    @property
    def now_mb(self) -> float | None:
        """What `peak_mb` is the peak of."""
        return _first(self.process_mb, self.reserved_mb, self.resident_mb)

    @property
    def above_empty_mb(self) -> float | None:
        """The part of the peak that the empty server did not take."""
        return None if self.peak_mb is None or self.empty_mb is None else self.peak_mb - self.empty_mb


class MeasurementWarning(Record):
    """A doubt about a measurement: a name to search for, what was seen, and what to do about it."""

    code: str
    message: str
    remedy: str
    invalidates: bool = Field(description="whether no decision may be built on the figures")


class Gate(Record):
    """Whether the figures of every model are within their limits."""

    passed: bool
    reasons: list[str] = Field(default_factory=list, description="one line per figure out of its limit")


Judgement = Literal["passed", "tolerated", "failed"]


class Audit(Record):
    """The answers of one run, compared with the reference's. `str()` is for a person to read."""

    answers: int = Field(description="good ones to what was issued in the window")
    audited: int = Field(description="of those, what was compared; the others were too many different ones to keep")
    distinct: int = Field(description="different answers among the audited ones; of several rounds the sum")
    right: int = Field(description="audited ones that are the reference's but for float32 reassociation")
    reasons: list[str] = Field(default_factory=list, description="why the first ones that are not right are not")
    gate: Gate = Field(description="of all audited ones together, as `Comparison.gate`")
    tolerance: Gate | None = Field(description="of all audited ones together, as `Comparison.tolerance`, without mAP")

    @property
    def verdict(self) -> Judgement:
        """As `Comparison.verdict`."""
        return _judgement(self.gate, self.tolerance)

    def __str__(self) -> str:
        of = "" if self.audited == self.answers else f" audited of {self.answers:,}"
        return f"{self.right:,} of {self.audited:,}{of}"


class CacheCheck(Record):
    """How many times as fast an image is answered that is sent again at once; 1 where no answer is kept."""

    pairs: int = Field(description="images that were sent twice, none of them ever before")
    ratio: float = Field(description="the first answer's time over the second's, geometric mean")
    low: float | None = Field(description="of the interval that holds the true ratio with 95 %")
    high: float | None


class Run(Record):
    """One measured load against one implementation."""

    round: int = Field(default=1, description="from 1 to the settings' `repeats`")
    implementation: str
    model_set: str
    offered: Offered
    verdict: Literal["valid", "invalid", "failed", "not_run"] = Field(
        description="invalid: measured, but some warning invalidates it; see detbench.verdict"
    )
    reason: str | None = Field(default=None, description="why a run failed or was not made")
    warnings: list[MeasurementWarning] = Field(default_factory=list)
    missed: list[Miss] = Field(default_factory=list, description="of the settings' `slo`, what it does not hold")
    started: datetime | None = None
    ended: datetime | None = None
    load: Load | None = None
    memory: Memory | None = None
    cpu: CpuShares | None = Field(default=None, description="of all cores of the machine that measured, meanwhile")
    audit: Audit | None = Field(default=None, description="None where outputs were not compared, or the run failed")

    @property
    def measured(self) -> bool:
        """Whether it has figures, good or doubtful."""
        return self.verdict in ("valid", "invalid")


class ErrorFigures(Record):
    """Output error against the reference, over detections with score >= 0.1. Definitions: docs/measuring.md.

    `boxes_mse` and `scores_mse` count a detection without a partner against zeros. The figures of the pairs leave it
    out; they are None where there is no pair.
    """

    boxes_mse: float = Field(description="px²")
    scores_mse: float
    pairs_boxes_mse: float | None = Field(description="px², of the assigned pairs alone")
    pairs_scores_mse: float | None = Field(description="of the assigned pairs alone")
    largest_box_difference_px: float | None = Field(description="of one coordinate of an assigned pair")
    largest_score_difference: float | None = Field(description="of an assigned pair")
    labels_accuracy: float
    mean_iou: float = Field(description="of the assigned pairs; 0 where there is none and something was to be found")
    pairs: int
    missed: int
    spurious: int
    reference_detections: int
    candidate_detections: int


class GroundTruth(Record):
    """COCO mAP (IoU 0.50:0.95) against the dataset's annotations, in [0, 1].

    `low` and `high` bound the difference that other images of the same kind would show with 95 %.
    """

    map: float
    ap50: float = Field(description="at an IoU of 0.50")
    ap75: float = Field(description="at an IoU of 0.75")
    map_baseline: float
    difference: float
    low: float
    high: float


class Comparison(Record):
    """Output error of one implementation: per model of the set, and over all of them."""

    implementation: str
    model_set: str
    exact: bool = Field(description="whether the implementation claims to give the reference's answers")
    images: int
    batch_sizes: dict[int, int] = Field(description="size of the batch that an image was answered in, to images")
    per_model: dict[str, ErrorFigures]
    overall: ErrorFigures
    ground_truth: dict[str, GroundTruth] = Field(
        default_factory=dict, description="per model whose classes are the dataset's; empty without annotations"
    )
    ground_truth_notes: list[str] = Field(
        default_factory=list, description="why a model has no mAP, and what does not count in it; one line each"
    )
    gate: Gate = Field(description="whether the outputs are the reference's but for float32 reassociation")
    tolerance: Gate | None = Field(description="of what does not claim to be exact, whether it is near enough to serve")

    @property
    def verdict(self) -> Judgement:
        """passed: the reference's answers; tolerated: near them, and claimed to be no more; else failed."""
        return _judgement(self.gate, self.tolerance)

    @property
    def reasons(self) -> list[str]:
        """Why it failed, one line per figure out of its limit; empty where it did not."""
        return (self.tolerance or self.gate).reasons


class ImplementationInfo(Record):
    """What the server says of an implementation, and what loading it took; None is not loaded, or not known."""

    name: str
    description: str
    exact: bool
    precision: str
    recipe: dict[str, str | bool] | None = Field(
        default=None, description="its value of each technique; None: it is no recipe"
    )
    remark: str = Field(default="", description="what really runs, as far as the name leaves it open")
    load_s: float | None = Field(default=None, description="of the load that was measured")
    first_load_s: float | None = Field(
        default=None,
        description="of the load that made what later ones find on disk; None where an earlier run had made it",
    )
    compile_s: float | None = Field(
        default=None, description="part that torch.compile or the like took: of first_load_s, and where None of load_s"
    )
    kernels_per_request: int | None = Field(
        default=None,
        description="GPU kernels that one request of one image launches; without a GPU torch's operators at the leaves",
    )
    cache: CacheCheck | None = Field(default=None, description="None where outputs were not compared")


class Sweep(Record):
    """Everything that one `detbench run` measured."""

    schema_version: Literal[4] = 4
    started: datetime
    ended: datetime | None = Field(default=None, description="None while it runs, and for ever when it was killed")
    settings: Settings
    environment: Environment
    weights: list[ModelWeights]
    implementations: list[ImplementationInfo] = Field(default_factory=list)
    runs: list[Run] = Field(default_factory=list)
    comparisons: list[Comparison] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list, description="what ended badly, one line each; empty is success")

    def comparison(self, implementation: str) -> Comparison | None:
        """The comparison of `implementation`, or None where it was not compared."""
        return next((c for c in self.comparisons if c.implementation == implementation), None)


def _judgement(gate: Gate, tolerance: Gate | None) -> Judgement:
    if gate.passed:
        return "passed"
    return "tolerated" if tolerance is not None and tolerance.passed else "failed"


def _first(*figures: float | None) -> float | None:
    return next((figure for figure in figures if figure is not None), None)

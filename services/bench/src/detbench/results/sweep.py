"""What a sweep measured: the schema of `results.json`."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from detbench.api.protocol import Native, Protocol
from detbench.api.schemas import ModelWeights
from detbench.host import CpuShares
from detbench.results.loads import Load, Miss, Objective, Offered
from detbench.results.quality import Audit, CacheCheck, Comparison
from detbench.results.record import Record

# The implementation that references are made with, and speed-ups are relative to.
BASELINE = "baseline"

# The implementation without a model: what server and load test do at most.
CEILING = "invalid"


def deployment(implementation: str, replicas: int | None) -> str:
    """What is served, in words: "fastest" by one process, "fastest with 2 replicas" by a cluster."""
    return implementation if replicas is None else f"{implementation} with {replicas} replica{'s'[: replicas > 1]}"


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


class Settings(Record):
    """What the sweep was asked to do."""

    implementations: list[str]
    model_set: str
    offered: list[Offered] = Field(description="the loads, each a run of every implementation")
    replicas: list[int] = Field(
        default_factory=list,
        description="of the clusters that were started for each implementation, or of that at `host`; empty: none is",
    )
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
    keep_requests: bool
    concurrency: int = Field(description="requests in flight while outputs are compared")
    max_map_loss: float = Field(description="of what does not claim to be exact, where images are annotated")
    host: str | None = Field(
        description="base URL of the server that measured all; None: each implementation had a server of its own"
    )
    protocol: Protocol = Field(default=Native(), description="how detections were asked for")
    server: dict[str, str | int | float | bool | None] = Field(
        default_factory=dict, description="the server's own settings, as it reports them"
    )


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


class DeviceUse(Record):
    """What a GPU did during one run, by NVML, sampled about once a second; None for what it does not tell."""

    energy_j: float | None = Field(description="of the board")
    power_w: float | None = Field(description="mean")
    sm_clock_mhz: tuple[int, int] | None = Field(description="lowest and highest")
    memory_clock_mhz: tuple[int, int] | None
    throttled: float | None = Field(description="share of the samples in which the clocks were lowered, from 0 to 1")
    throttle_reasons: list[str] = Field(description="that any sample had")


class MeasurementWarning(Record):
    """A doubt about a measurement: a name to search for, what was seen, and what to do about it."""

    code: str
    message: str
    remedy: str
    invalidates: bool = Field(description="whether no decision may be built on the figures")


class Run(Record):
    """One measured load against one implementation."""

    round: int = Field(default=1, description="from 1 to the settings' `repeats`")
    implementation: str
    model_set: str
    replicas: int | None = Field(default=None, description="of the cluster, at its start; None: no cluster")
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

    device: DeviceUse | None = Field(default=None, description="None without a GPU")

    @property
    def deployment(self) -> str:
        """What was measured, in words; see `deployment`."""
        return deployment(self.implementation, self.replicas)

    @property
    def joules_per_1000_images(self) -> float | None:
        """Energy of the GPU's board for a thousand images; None where it does not tell."""
        if self.device is None or self.device.energy_j is None or self.load is None or not self.load.answered:
            return None
        return 1000 * self.device.energy_j / self.load.answered

    @property
    def measured(self) -> bool:
        """Whether it has figures, good or doubtful."""
        return self.verdict in ("valid", "invalid")


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


def _first(*figures: float | None) -> float | None:
    return next((figure for figure in figures if figure is not None), None)

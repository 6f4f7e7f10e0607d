"""What a search for capacities measured: the schema of `capacity.json`, which runner and exporters share."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from detbench.api.schemas import ModelWeights
from detbench.results.loads import Objective, OpenLoop
from detbench.results.record import Record
from detbench.results.sweep import Environment, ImplementationInfo, Run, deployment

Outcome = Literal["passed", "failed", "unusable"]
Ending = Literal["precision", "none", "max-rate", "generator", "time", "probes", "failure"]


class Probe(Record):
    """A load at one rate, and what it says of it."""

    run: Run = Field(description="its offered load is an open loop; without figures where it was ended early")
    duration_s: float = Field(description="for which requests were to be sent")
    confirms: bool = Field(description="whether it is one of the longer ones, which overrule the others")
    outcome: Outcome = Field(
        description="unusable: something else than the server was the limit, so that it says nothing of the server"
    )
    reason: str = Field(default="", description="why it failed, or is unusable; empty where it passed")
    took_s: float = Field(description="with the start of the load generator, and the wait for what is answered late")

    @property
    def rate(self) -> float:
        """Requests per second that were offered."""
        assert isinstance(self.run.offered, OpenLoop)
        assert self.run.offered.rate is not None
        return self.run.offered.rate


class Capacity(Record):
    """The search for the capacity of one implementation, in one process or a cluster, as far as it has come.

    `last_passed` and `first_failed` are places in `probes`. The capacity lies between the rates of the two.
    """

    implementation: ImplementationInfo
    replicas: int | None = Field(default=None, description="of the cluster; None: no cluster")
    closed_loop: Run | None = Field(default=None, description="a few users, whose throughput is the first guess")
    probes: list[Probe] = Field(default_factory=list, description="in the order in which they were made")
    last_passed: int | None = Field(default=None, description="of the highest rate that passed; None: none did")
    first_failed: int | None = Field(
        default=None, description="of the lowest rate above it that failed; None: none did"
    )
    ended_by: Ending | None = Field(
        default=None,
        description="what ended the search: both rates lie near enough to each other; no rate passed; the highest rate "
        "asked for passed; something else than the server was the limit; the time or the probes were used up; the "
        "server ended, or could not be measured. None: it has not ended",
    )

    @property
    def deployment(self) -> str:
        """What was measured, in words; see `detbench.results.sweep.deployment`."""
        return deployment(self.implementation.name, self.replicas)

    @property
    def passed(self) -> Probe | None:
        """The probe of the highest rate that passed: the capacity."""
        return None if self.last_passed is None else self.probes[self.last_passed]

    @property
    def failed(self) -> Probe | None:
        """The probe of the lowest rate above it that failed."""
        return None if self.first_failed is None else self.probes[self.first_failed]

    @property
    def at_least(self) -> bool:
        """Whether the server may do more than passed: no higher rate is known to be too much for it."""
        return self.failed is None or self.failed.outcome == "unusable"


class CapacitySettings(Record):
    """What the search was asked to do."""

    implementations: list[str]
    model_set: str
    replicas: list[int] = Field(
        default_factory=list,
        description="of the clusters that were started for each implementation, or of that at `host`; empty: none is",
    )
    slo: list[Objective] = Field(description="limits that a rate must hold")
    arrivals: str | None = Field(description="of every probe: constant, poisson or gamma; None: poisson")
    burstiness: float | None
    seed: int = Field(description="of probe number n, from 1, it is this plus n")
    max_in_flight: int = Field(description="requests without an answer at most; a slot beyond is dropped")
    max_rate: float | None = Field(description="requests per second that are not exceeded")
    max_duration_s: float = Field(description="of all probes of one search together")
    precision: float = Field(description="the failed rate over the one that passed, less one, at the end of a search")
    processes: int = Field(description="that send each load together")
    warmup_requests: int
    dataset: str
    images: int
    host: str | None = Field(
        description="base URL of the server that measured all; None: each implementation had a server of its own"
    )
    server: dict[str, str | int | float | bool | None] = Field(description="the server's settings, as it reports them")


class Capacities(Record):
    """Everything that one `detbench capacity` measured."""

    schema_version: Literal[1] = 1
    started: datetime
    ended: datetime | None = Field(default=None, description="None while it runs, and for ever when it was killed")
    settings: CapacitySettings
    environment: Environment
    weights: list[ModelWeights]
    capacities: list[Capacity] = Field(
        description="of each implementation of the settings with each number of replicas, in their order"
    )
    problems: list[str] = Field(default_factory=list, description="what ended badly, one line each; empty is success")

"""What a detserver answers, as far as detbench reads it; results keep some of it as it is.

A test holds these models to the server's own description, `/openapi.json`.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Response(BaseModel):
    """A response of the server. Unknown fields are ignored: a newer server may answer more.

    No number is a NaN or an infinity, which pydantic checks faster than Python could.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ModelDetections(Response):
    """What one model found in one image.

    `boxes` are x1, y1, x2, y2 in pixels of the upright image, `scores` in [0, 1] and descending, `labels` class ids
    from 1; the three have one entry per detection.
    """

    model_name: str
    boxes: list[tuple[float, float, float, float]]
    scores: list[float]
    labels: list[int]
    inference_time_ms: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.boxes) == len(self.scores) == len(self.labels):
            raise ValueError(f"{self.model_name}: boxes, scores and labels differ in length")
        return self


class Inference(Response):
    """The answer of `POST /infer`; `replica` is which one of a cluster gave it."""

    implementation: str
    model_set: str
    total_inference_time_ms: float
    timings_ms: dict[str, float]
    batch_size: int
    replica: str | None = None
    detections: list[ModelDetections]


class Problem(Response):
    """What is answered in place of what was asked for."""

    detail: str


class ReplicaAnswer(Response):
    """One entry of `POST /replicas/infer`: what one replica answers, with the status of HTTP."""

    replica: str
    status: int
    answer: Inference | Problem


class Loaded(Response):
    """The answer of `POST /implementations/{impl}/load`; `compile_s` is None where nothing is compiled.

    `remark` is what really runs, as far as the name leaves it open; `first` whether this load made what later ones
    find on disk, so that a new server loads faster and in less memory.
    """

    implementation: str
    model_set: str
    load_s: float
    compile_s: float | None = None
    remark: str = ""
    first: bool = False


class ImplementationStatus(Response):
    """One entry of `GET /implementations`.

    `recipe` is its value of each technique, None where it is no recipe; `technique` what it adds, empty where it is no
    row of the ablation, to the implementation named `adds_to`; `compiles` says that its first load on a machine takes
    minutes; `unavailable` is why it cannot run on this machine, `unsupported` why not with a model set. `loads` are
    what the loads of those in `loaded` took.
    """

    name: str
    description: str
    exact: bool
    precision: str
    model_sets: list[str]
    loaded: list[str]
    loads: list[Loaded] = []
    unavailable: str | None = None
    recipe: dict[str, str | bool] | None = None
    technique: str = ""
    adds_to: str | None = None
    compiles: bool = False
    unsupported: dict[str, str] = {}

    def why_not(self, model_set: str) -> str | None:
        """Why it cannot run `model_set` on the server's machine; None where it can."""
        if self.unavailable is not None:
            return self.unavailable
        if model_set in self.model_sets and model_set not in self.unsupported:
            return None
        return self.unsupported.get(model_set) or f"it cannot run {model_set}"


class ModelWeights(Response):
    """One detector of a model set and where its weights come from."""

    model_name: str
    architecture: str = Field(description="effdet's name of the architecture, e.g. tf_efficientdet_d0")
    num_classes: int
    image_size: tuple[int, int] = Field(description="height and width of the network input, pixels")
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    fill_color: tuple[int, int, int]
    configuration: dict[str, Any] = Field(description="effdet's keys that are not the architecture's own")
    source: Literal["pretrained", "local", "random"]
    fingerprint: str = Field(description="SHA-256 of names and values of all parameters and buffers, hex")


class ModelSetStatus(Response):
    """The detectors of one model set; `models` says where the weights come from once they were loaded."""

    name: str
    models: list[ModelWeights]


class VramStatus(Response):
    """The answer of `GET /vram`, in MB (10^6 bytes); None where it does not apply. Peaks are since the last reset.

    `allocated` and `reserved` are torch's, `process` is the server process's GPU memory by NVML, `device` every
    process's, `resident` the server process's own memory.
    """

    device: str
    allocated_mb: float | None = None
    reserved_mb: float | None = None
    allocated_peak_mb: float | None = None
    reserved_peak_mb: float | None = None
    process_mb: float | None = None
    process_peak_mb: float | None = None
    device_used_mb: float | None = None
    device_total_mb: float | None = None
    resident_mb: float | None = None
    resident_peak_mb: float | None = None


class ReplicaInfo(Response):
    """One replica of a cluster; `weights` are the fingerprints of its models, by name."""

    replica: str
    node: str
    address: str
    pid: int
    status: str
    detail: str | None
    weights: dict[str, str]
    memory: VramStatus


class Health(Response):
    """The answer of `GET /health`; `replicas` is None of a server of one process."""

    status: str
    device: str
    device_name: str
    driver: str | None
    versions: dict[str, str]
    cpu_count: int
    torch_threads: int
    platform: str
    revision: str | None
    clocks_mhz: dict[str, int] | None
    settings: dict[str, str | int | float | bool | None]
    replicas: list[ReplicaInfo] | None = None


class DeviceState(Response):
    """The answer of `GET /device`: what the GPU does now, by NVML; None without one, and for what it does not tell."""

    clocks_mhz: dict[str, int] | None = None
    power_w: float | None = None
    energy_j: float | None = None
    throttle_reasons: list[str] | None = None


class Kernels(Response):
    """The answer of `POST /implementations/{impl}/kernels`."""

    kernels_per_request: int


class Timed(Response):
    """The answer of `POST /time`: what each batch took on the device, ms."""

    latencies_ms: list[float] = Field(min_length=1)

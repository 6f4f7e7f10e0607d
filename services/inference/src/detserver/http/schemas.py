"""The shapes of all responses; /docs shows them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """The answer to every request that fails."""

    detail: str = Field(description="one line: what is wrong, and what to do about it")


class NotReadyProblem(Problem):
    """Why the server cannot serve yet."""

    failed: bool = Field(description="true when it never will: a preload failed, see `detail`")


class Ready(BaseModel):
    """The preloaded implementations can serve."""

    ready: Literal[True] = True


class ModelInfo(BaseModel):
    """One detector of a model set, with its weights."""

    model_name: str
    architecture: str = Field(description="effdet's name")
    num_classes: int
    image_size: tuple[int, int] = Field(description="height and width of the network input, pixels")
    mean: tuple[float, float, float] = Field(description="subtracted from each channel of values in [0, 1]")
    std: tuple[float, float, float] = Field(description="then divided by")
    interpolation: str = Field(description="of resizing")
    fill_color: tuple[int, int, int] = Field(description="8-bit RGB of the padding")
    configuration: dict[str, Any] = Field(description="effdet's keys that are not the architecture's own")
    source: Literal["pretrained", "local", "random"] | None = Field(description="null until the weights were needed")
    fingerprint: str | None = Field(description="SHA-256 of names and values of the weights, hex")


class ModelSetInfo(BaseModel):
    """The detectors that run on every image."""

    name: str
    models: list[ModelInfo]


class Loaded(BaseModel):
    """An implementation that can serve."""

    implementation: str
    model_set: str
    load_s: float = Field(
        description="seconds that this load took, without what it shares with others; 0 when it was loaded already"
    )
    compile_s: float | None = Field(
        description="seconds that torch.compile took, before the load where the cache folder lacked its code; "
        "null where it is not used"
    )
    remark: str = Field(description="what really runs: what `fastest` has chosen, what was not compiled in time")
    first: bool = Field(
        description="whether this load put into the cache folder what later ones find there: a new process loads "
        "faster, and in less memory"
    )


class Kernels(BaseModel):
    """What one request of one image launches."""

    implementation: str
    model_set: str
    kernels_per_request: int = Field(description="GPU kernels; without a GPU torch's operators at the leaves")


class ImplementationInfo(BaseModel):
    """One way of running the models."""

    name: str
    description: str
    exact: bool = Field(description="whether it claims to give baseline's answers up to float32 reassociation")
    precision: str
    recipe: dict[str, str | bool] | None = Field(description="technique to its value; null where it is no recipe")
    adds_to: str | None = Field(
        description="the implementation that it adds its technique to; null: the fastest exact one before it"
    )
    technique: str = Field(description="what its row in the ablation is called; empty: it takes no part")
    compiles: bool = Field(description="whether its first load here takes minutes: torch.compile, or quantization")
    model_sets: list[str] = Field(description="the sets that it can run here")
    unsupported: dict[str, str] = Field(description="the sets that it can run nowhere, with the reason")
    loaded: list[str] = Field(description="the sets for which it can serve at once")
    loads: list[Loaded] = Field(description="what these loads took")
    unavailable: str | None = Field(description="why it cannot run on this device; null where it can")


class Vram(BaseModel):
    """Memory of the server's process in MB (10^6 bytes); nulls for the GPU's without one. Peaks: since the reset."""

    device: str
    allocated_mb: float | None = Field(description="GPU memory of torch's tensors")
    reserved_mb: float | None = Field(description="GPU memory of torch's allocator, pools of CUDA graphs among it")
    allocated_peak_mb: float | None = Field(description="without what a CUDA graph uses while it is replayed")
    reserved_peak_mb: float | None
    process_mb: float | None = Field(description="GPU memory of this process by NVML: CUDA context and libraries too")
    process_peak_mb: float | None
    device_used_mb: float | None = Field(description="GPU memory of all processes on the device by NVML")
    device_total_mb: float | None
    resident_mb: float | None = Field(description="resident memory of this process; null on systems without /proc")
    resident_peak_mb: float | None


class ReplicaInfo(BaseModel):
    """One process of a cluster."""

    replica: str = Field(description="name that its answers have")
    node: str = Field(description="Ray's name of the machine")
    address: str = Field(description="of that machine")
    pid: int
    status: Literal["ok", "loading", "failed"]
    detail: str | None = Field(description="why it failed")
    weights: dict[str, str] = Field(description="fingerprint of the weights, by model")
    memory: Vram


class Health(BaseModel):
    """Liveness, status and what this server is; of a cluster, what the replica is that answers."""

    status: Literal["ok", "loading", "failed"]
    detail: str | None = Field(description="why it failed")
    device: str = Field(description="torch's name: cpu, cuda:0")
    device_name: str
    driver: str | None = Field(description="version of the GPU driver")
    clocks_mhz: dict[str, int] | None = Field(description="GPU clocks now")
    cpu_count: int
    torch_threads: int
    platform: str
    versions: dict[str, str]
    revision: str | None = Field(description="git revision of the build")
    settings: dict[str, str | int | float | bool | None]
    model_sets: list[ModelSetInfo]
    implementations: list[ImplementationInfo]
    replicas: list[ReplicaInfo] | None = Field(None, description="all of a cluster's; null where there is none")


class DeviceState(BaseModel):
    """What the GPU does now, by NVML; nulls without one, and for what it does not tell."""

    clocks_mhz: dict[str, int] | None = Field(description="of its processors (sm) and its memory")
    power_w: float | None = Field(description="power draw of the board")
    energy_j: float | None = Field(description="of the board, since its driver was loaded")
    throttle_reasons: list[str] | None = Field(
        description="why clocks are lower than they could be; empty: they are not"
    )


class Unloaded(BaseModel):
    """An implementation that is not loaded any more."""

    implementation: str
    model_set: str
    was_loaded: bool


class BatchTimes(BaseModel):
    """How long the device takes for a batch, without HTTP, decoding and queue."""

    implementation: str
    model_set: str
    batch_size: int
    latencies_ms: list[float] = Field(description="of each repeat: forward and postprocess of the whole batch")


class Timings(BaseModel):
    """Where the time of one request went, ms. Each stage begins where the one before it ended: they add up."""

    receive: float = Field(description="from the request's headers to the end of its body")
    wait: float = Field(description="until it was loaded, where it was not, and a decoding thread was free")
    decode: float = Field(description="from the file to an upright picture")
    preprocess: float = Field(description="upload to the device, letterbox and normalisation for every input size")
    queue: float = Field(description="until the device began with the batch")
    forward: float = Field(description="the networks, for the whole batch")
    postprocess: float = Field(description="the rest of the device's time for the whole batch")
    serialise: float = Field(description="until the answer's bytes were ready")


class Detections(BaseModel):
    """What one model found; at most 100, by descending score."""

    model_name: str
    boxes: list[Annotated[list[float], Field(min_length=4, max_length=4)]] = Field(
        description="x1, y1, x2, y2 in pixels of the uploaded image, upright; x to the right, y down"
    )
    scores: list[float] = Field(description="in [0, 1]")
    labels: list[int] = Field(description="class ids of the model, from 1")
    inference_time_ms: float | None = Field(description="of this model alone; null where models run as one")


class Inference(BaseModel):
    """What every model of the set found in one image."""

    implementation: str
    model_set: str
    total_inference_time_ms: float = Field(description="forward + postprocess of the batch")
    timings_ms: Timings
    batch_size: int = Field(description="images in the batch that this one was part of")
    replica: str | None = Field(None, description="of a cluster, which has answered")
    detections: list[Detections]


class ReplicaAnswer(BaseModel):
    """What one replica answers to a request that all are asked."""

    replica: str
    status: int = Field(description="of HTTP")
    answer: Inference | Problem

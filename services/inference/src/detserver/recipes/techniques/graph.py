"""`graph`: networks, top-k and NMS of a batch are recorded once as a CUDA graph, and replayed as one launch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch

from detserver.machine.device import clear_workspaces, synchronize
from detserver.postprocess import DetectionOutput, PostProcessor, RawOutput, detections, is_complete
from detserver.preprocess import PreparedImage
from detserver.recipes.recipe import Recipe
from detserver.recipes.technique import Plan, Technique

_WARM_UPS = 3  # as PyTorch's own recipe: libraries allocate and choose algorithms in the first calls


class Graph(Technique):
    """A graph for each batch size."""

    field = "graph"
    titles: ClassVar = {True: "CUDA graph"}
    fixed_shapes = True

    def unavailable_reason(self, recipe: Recipe, device: torch.device) -> str | None:
        """See `Technique.unavailable_reason`."""
        if device.type != "cuda":
            return "CUDA graphs need an NVIDIA GPU"
        if recipe.postprocess != "batched":
            return "effdet's post-processing waits for the device, which no graph can: it needs postprocess=batched"
        return None if recipe.backend == "torch" else f"what {recipe.backend} runs cannot be captured"

    def loads_beside(self, recipe: Recipe) -> bool:  # noqa: ARG002 (on all)
        """See `Technique.loads_beside`."""
        return False

    def apply(self, plan: Plan) -> None:
        """See `Technique.apply`; all time counts as `forward`, because one graph does it all."""
        postprocessor = PostProcessor(plan.model_set.models, plan.device, plan.note_slow_nms)
        graphs: dict[int, StaticBatch] = {}

        def detect(images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
            with plan.stopwatch.stage("forward"):
                if len(images) not in graphs:
                    graphs[len(images)] = StaticBatch(plan, postprocessor, images)
                rows = graphs[len(images)].run(images)
            return detections(plan.model_set.models, rows)

        def release() -> None:
            for batch in graphs.values():
                batch.release()
            graphs.clear()

        plan.detect = detect
        plan.release.append(release)
        plan.remarks.append("a CUDA graph for each batch size")


class StaticBatch:
    """One batch size: buffers at fixed addresses, and on a GPU the graph between them.

    Args:
        plan: whose forward pass is run.
        postprocessor: of its model set.
        images: a batch of the size; it only gives the shapes.
    """

    def __init__(self, plan: Plan, postprocessor: PostProcessor, images: Sequence[PreparedImage]) -> None:
        self._plan = plan
        self._postprocessor = postprocessor
        self._on_gpu = plan.device.type == "cuda"
        self._inputs = {config: pixels.clone() for config, pixels in plan.inputs(images).items()}
        geometry = plan.geometry(images)
        self._host_geometry = [part.pin_memory() if self._on_gpu else part for part in geometry]
        self._geometry = [part.to(plan.device, copy=True) for part in geometry]
        self._graph = self._captured() if self._on_gpu else None
        if self._graph is None:
            self._raw, self._rows = self._compute()
        self._answer = torch.empty(self._rows.shape, dtype=self._rows.dtype, pin_memory=self._on_gpu)

    def release(self) -> None:
        """Drop the graph, which reads and writes the buffers, before the buffers go."""
        if self._graph is not None:
            synchronize(self._plan.device)
            self._graph.reset()
            self._graph = None

    def run(self, images: Sequence[PreparedImage]) -> torch.Tensor:
        """Rows of detections (M, B, 100, 6) on the host; they are overwritten by the next call."""
        for config, buffer in self._inputs.items():
            for place, image in zip(buffer, images, strict=True):
                place.copy_(image.inputs[config].pixels, non_blocking=True)
        for buffer, host, part in zip(self._geometry, self._host_geometry, self._plan.geometry(images), strict=True):
            buffer.copy_(host.copy_(part), non_blocking=True)
        if self._graph is None:
            self._raw, self._rows = self._compute()
        else:
            self._graph.replay()
        self._answer.copy_(self._rows, non_blocking=True)
        synchronize(self._plan.device)
        if is_complete(self._answer):
            return self._answer[..., :6]
        return self._postprocessor.all_candidates(self._raw, *self._geometry)

    def _compute(self) -> tuple[list[RawOutput], torch.Tensor]:
        raw = self._plan.forward(self._inputs)
        return raw, self._postprocessor.fixed_shape(raw, *self._geometry)

    def _captured(self) -> torch.cuda.CUDAGraph:
        device = self._plan.device
        with _algorithms_measured():
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    self._compute()
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with _own_workspaces(), torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                self._raw, self._rows = self._compute()
        torch.cuda.empty_cache()  # of the warm-up: activations, and workspaces of the algorithms that were timed
        return graph


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let a graph that is captured in the block have cuBLAS workspaces of its own, in its own memory pool.

    A graph keeps the addresses of the workspaces that cuBLAS had when it was captured. torch keeps one per handle and
    stream from call to call (its newest versions only with TORCH_CUBLAS_WORKSPACE_CACHE=1). `clear_workspaces` frees
    them, and a graph that goes frees those of the stream it was captured on: another one that had found its workspace
    there would then write to memory of others. Where there is none before the capture, the capture makes one, in the
    graph's pool, which lives as long as the graph; where there is none after it, no other graph finds that one. torch's
    own graphs do the same (`clear_cublas_manager` in torch/_inductor/cudagraph_trees.py; see also
    https://github.com/pytorch/pytorch/issues/193402).
    """
    clear_workspaces()
    try:
        yield
    finally:
        clear_workspaces()


@contextmanager
def _algorithms_measured() -> Iterator[None]:
    """Let cuDNN time its algorithms for each shape, as it is worth for what is replayed many times."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before

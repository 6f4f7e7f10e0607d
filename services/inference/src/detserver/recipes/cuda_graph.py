"""CUDA graphs: what a batch launches is recorded once and replayed as one launch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from detserver.postprocess import RawOutput, is_complete
from detserver.preprocess import InputConfig, PreparedImage
from detserver.recipes.network import Forward, Inputs, NetworkImpl

_WARM_UPS = 3  # as PyTorch's own recipe: libraries allocate and choose algorithms in the first calls


class CapturedImpl(NetworkImpl):
    """On a GPU: networks, top-k and NMS of a batch size are one CUDA graph. Elsewhere the same without a graph."""

    def batch_sizes(self) -> Sequence[int]:
        """See `NetworkImpl.batch_sizes`."""
        return (1, 2, 4, 8, 16) if self.device.type == "cuda" else ()

    def detect(self, images: Sequence[PreparedImage]) -> torch.Tensor:
        """See `NetworkImpl.detect`; all time counts as `forward`, because one graph does it all."""
        if self.device.type != "cuda":
            return super().detect(images)
        with self.stage("forward"):
            return self._static(images).run(images)

    def remarks(self) -> list[str]:
        """See `NetworkImpl.remarks`."""
        return [*super().remarks(), *(["a CUDA graph each"] if self.device.type == "cuda" else [])]

    def unload(self) -> None:
        """See `BaseModelImpl.unload`."""
        self.forget()

    def forget(self) -> None:
        """Drop all graphs."""
        for batch in getattr(self, "_graphs", {}).values():
            batch.release()
        self._graphs: dict[int, StaticBatch] = {}

    def _static(self, images: Sequence[PreparedImage]) -> "StaticBatch":
        if not hasattr(self, "_graphs"):
            self.forget()
        if len(images) not in self._graphs:
            self._graphs[len(images)] = StaticBatch(self, images)
        return self._graphs[len(images)]


class StaticBatch:
    """One batch size: buffers at fixed addresses, pinned ones on the host, and on a GPU the graph between them.

    Args:
        implementation: whose forward pass and post-processing are run.
        images: a batch of the size; it only gives the shapes.
    """

    def __init__(self, implementation: NetworkImpl, images: Sequence[PreparedImage]) -> None:
        self._implementation = implementation
        self._inputs = implementation.model_set.inputs
        device = implementation.device
        self._on_gpu = device.type == "cuda"
        host = [
            *(implementation.stacked(images, config) for config in self._inputs),
            *implementation.geometry(images),
        ]
        self._host = [part.pin_memory() for part in host] if self._on_gpu else host
        self._device = [part.to(device, copy=True) for part in self._host]
        self._graph = self._captured() if self._on_gpu else None
        if self._graph is None:
            self._raw, self._rows = self._compute()
        self._answer = torch.empty(self._rows.shape, dtype=self._rows.dtype, pin_memory=self._on_gpu)

    def release(self) -> None:
        """Drop the graph, which reads and writes the buffers, before the buffers go."""
        if self._graph is not None:
            self._implementation.synchronize()
            self._graph.reset()
            self._graph = None

    def run(self, images: Sequence[PreparedImage]) -> torch.Tensor:
        """Rows of detections (M, B, 100, 6) on the host; they are overwritten by the next call."""
        for buffer, config in zip(self._host, self._inputs, strict=False):
            for place, image in zip(buffer, images, strict=True):
                place.copy_(image.inputs[config].pixels)
        for buffer, part in zip(self._host[len(self._inputs) :], self._implementation.geometry(images), strict=True):
            buffer.copy_(part)
        for target, source in zip(self._device, self._host, strict=True):
            target.copy_(source, non_blocking=True)
        if self._graph is None:
            self._raw, self._rows = self._compute()
        else:
            self._graph.replay()
        self._answer.copy_(self._rows, non_blocking=True)
        self._implementation.synchronize()
        if is_complete(self._answer):
            return self._answer[..., :6]
        return self._implementation.postprocessor.all_candidates(self._raw, *self._device[-2:])

    def _compute(self) -> tuple[list[RawOutput], torch.Tensor]:
        inputs = dict(zip(self._inputs, self._device, strict=False))
        raw = self._implementation.forward(inputs)
        return raw, self._implementation.postprocessor.fixed_shape(raw, *self._device[-2:])

    def _captured(self) -> torch.cuda.CUDAGraph:
        device = self._implementation.device
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
        return graph


def on_streams(
    networks: Sequence[tuple[InputConfig, Callable[[torch.Tensor], RawOutput]]], device: torch.device
) -> Forward:
    """The forward pass of networks, given with their input configurations, each on a CUDA stream of its own."""
    streams = [torch.cuda.Stream(device) for _ in networks]  # type: ignore[no-untyped-call]

    def forward(inputs: Inputs) -> list[RawOutput]:
        main = torch.cuda.current_stream(device)
        raw = []
        for (config, network), stream in zip(networks, streams, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                raw.append(network(inputs[config]))
        for stream in streams:
            main.wait_stream(stream)
        return raw

    return forward


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


def clear_workspaces() -> None:
    """Free what torch keeps for cuBLAS between calls: it counts as allocated, and is made anew when needed."""
    torch._C._cuda_clearCublasWorkspaces()


@contextmanager
def _algorithms_measured() -> Iterator[None]:
    """Let cuDNN time its algorithms for each shape, as it is worth for what is replayed many times."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before

"""The HTTP API of a detserver, as typed calls."""

from collections.abc import Mapping
from typing import Any, Self

import httpx
from pydantic import ValidationError
from pydantic_core import from_json

from detbench.api.schemas import (
    DeviceState,
    Health,
    ImplementationStatus,
    Inference,
    Kernels,
    Loaded,
    ModelSetStatus,
    Problem,
    ReplicaAnswer,
    Timed,
    VramStatus,
)
from detbench.errors import MalformedOutput, ServerError

# A first load may run torch.compile, and so may the first batch of a new size: many minutes on a slow machine.
_COMPILE_TIMEOUT_S = 1800.0

REFUSED_IMAGE = (400, 413, 415)
"""Statuses by which a server refuses one image: it is none, is too large, or of a type that is not taken."""


def base_url(text: str) -> str:
    """The base URL of a server that a person means: with a scheme, http where none is given, and no slash at the end.

    Raises:
        ServerError: it is not http or https, names no host, or has a query.
    """
    bad = ServerError(f"{text!r} is no base URL of a server, such as http://localhost:8000 (--host, BENCHMARK_HOST)")
    text = text.strip()
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except httpx.InvalidURL:
        raise bad from None
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment or (url.port or 0) > 65535:
        raise bad
    return str(url).rstrip("/")


class ServerClient:
    """Calls one detserver. A context manager; every call raises `ServerError` with the server's own reason.

    Proxies that the environment names are for the internet, not for a server whose latency is measured: none is used.
    """

    def __init__(self, host: str, timeout_s: float = 600.0) -> None:
        self.host = base_url(host)
        # httpx takes the environment's proxies only where it is not given a transport.
        self._http = httpx.Client(base_url=self.host, timeout=timeout_s, transport=httpx.HTTPTransport())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def health(self) -> Health:
        """Status, device and versions."""
        return Health.model_validate(self._call("GET", "/health"))

    def ready(self) -> None:
        """Return when the preloaded implementations can serve; raise `ServerError` with the reason when not."""
        self._call("GET", "/ready")

    def implementations(self) -> list[ImplementationStatus]:
        """All implementations that the server knows, those that cannot run here among them."""
        return [ImplementationStatus.model_validate(row) for row in self._call("GET", "/implementations")]

    def model_set(self, name: str) -> ModelSetStatus:
        """The models of a set with their weights, which the server builds for this call if it has not yet."""
        return ModelSetStatus.model_validate(self._call("GET", f"/model-sets/{name}"))

    def vram(self) -> VramStatus:
        """Memory of the server now, and its peaks since the last reset."""
        return VramStatus.model_validate(self._call("GET", "/vram"))

    def device_state(self) -> DeviceState:
        """Clocks, power, energy and throttle reasons of the server's GPU now."""
        return DeviceState.model_validate(self._call("GET", "/device"))

    def reset_peaks(self) -> None:
        """Let every peak of `vram` begin anew."""
        self._call("POST", "/vram/reset")

    def load(self, implementation: str, model_set: str) -> Loaded:
        """Load an implementation; returns when it can serve, which may take minutes where it compiles."""
        return Loaded.model_validate(
            self._call(
                "POST",
                f"/implementations/{implementation}/load",
                params={"model_set": model_set},
                timeout_s=_COMPILE_TIMEOUT_S,
            )
        )

    def unload(self, implementation: str, model_set: str) -> None:
        """Unload an implementation and give its memory back."""
        self._call("POST", f"/implementations/{implementation}/unload", params={"model_set": model_set})

    def kernels(self, implementation: str, model_set: str, in_process: bool) -> int:
        """Kernels that one request launches.

        Args:
            in_process: count in the server, whose figures are worth nothing from then on; else in a process of its own,
                which takes seconds, or minutes.
        """
        answer = self._call(
            "POST",
            f"/implementations/{implementation}/kernels",
            params={"model_set": model_set, "in_process": str(in_process).lower()},
            timeout_s=_COMPILE_TIMEOUT_S,
        )
        return Kernels.model_validate(answer).kernels_per_request

    def infer(self, implementation: str, model_set: str, image: bytes, content_type: str) -> Inference:
        """Detections of every model of the set in one encoded image.

        Raises:
            MalformedOutput: lists of different length, a NaN or an infinity.
        """
        answer = self._send(f"/infer/{implementation}", model_set, image, content_type)
        try:
            return Inference.model_validate(answer)
        except ValidationError as error:
            raise MalformedOutput(f"{implementation}: {error.errors()[0]['msg']}") from error

    def infer_by_replicas(
        self, implementation: str, model_set: str, image: bytes, content_type: str
    ) -> dict[str, Inference]:
        """Detections in one encoded image by every replica of a cluster that answers, by its name.

        Raises:
            ServerError: a replica refuses; the message names it.
            MalformedOutput: as `infer`.
        """
        rows = self._send(f"/replicas/infer/{implementation}", model_set, image, content_type)
        try:
            answers = [ReplicaAnswer.model_validate(row) for row in rows]
        except ValidationError as error:
            raise MalformedOutput(f"{implementation}: {error.errors()[0]['msg']}") from error
        found: dict[str, Inference] = {}
        for replica, status, answer in ((each.replica, each.status, each.answer) for each in answers):
            if isinstance(answer, Problem):
                raise ServerError(f"replica {replica} answered {status}: {answer.detail}", status)
            found[replica] = answer
        return found

    def sample_memory(self) -> None:
        """Nothing: the server keeps its own peaks."""

    def statistics(self, implementation: str) -> dict[str, tuple[int, int]] | None:  # noqa: ARG002
        """None: each answer has the times of its own stages."""
        return None

    def time(
        self, implementation: str, model_set: str, image: bytes, content_type: str, *, batch_size: int, repeats: int
    ) -> list[float]:
        """Latency of forward and post-processing of `batch_size` times one image, without HTTP, decode and queue.

        Args:
            batch_size: images of a batch, 64 at most.
            repeats: timed batches after the server's untimed ones, 1000 at most.

        Returns:
            Milliseconds of each timed batch.
        """
        answer = self._call(
            "POST",
            f"/time/{implementation}",
            params={"model_set": model_set, "batch_size": str(batch_size), "repeats": str(repeats)},
            content=image,
            headers={"Content-Type": content_type},
            timeout_s=_COMPILE_TIMEOUT_S,
        )
        return Timed.model_validate(answer).latencies_ms

    def _send(self, path: str, model_set: str, image: bytes, content_type: str) -> Any:
        return self._call(
            "POST",
            path,
            params={"model_set": model_set},
            content=image,
            headers={"Content-Type": content_type},
        )

    def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        answer = self._content(method, path, params, content, headers, timeout_s)
        try:
            return from_json(answer)
        except ValueError as error:
            raise ServerError(f"what answers at {self.host}{path} is no detserver; see --host") from error

    def _content(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s
        try:
            response = self._http.request(
                method, path, params=params, content=content, headers=headers, timeout=timeout
            )
        except httpx.HTTPError as error:
            raise ServerError(f"no answer from {self.host}{path}: {error or type(error).__name__}") from error
        if response.is_success:
            return response.content
        try:
            said = response.json()
            detail = said.get("detail") or said["error"]  # `error` is the Open Inference Protocol's
        except (ValueError, KeyError, TypeError, AttributeError):
            detail = response.text[:200]
        raise ServerError(f"{method} {path} answered {response.status_code}: {detail}", response.status_code)

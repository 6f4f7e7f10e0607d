"""A server of the Open Inference Protocol, as typed calls: what `ServerClient` is to a detserver."""

import os
import platform
import time
from collections.abc import Sequence
from urllib.parse import quote

from pydantic import ValidationError

from detbench import __version__
from detbench.api.client import ServerClient
from detbench.api.local_process import LocalProcess
from detbench.api.protocol import Oip
from detbench.api.schemas import (
    DeviceState,
    Health,
    ImplementationStatus,
    Inference,
    Loaded,
    ModelSetStatus,
    VramStatus,
)
from detbench.errors import MalformedOutput, ServerError

_READY_WITHIN_S = 1800.0
_UNKNOWN = "unknown"

# Triton's parts of a request, as the stages of ours that they are.
STAGES = {"queue": "queue", "compute_input": "preprocess", "compute_infer": "forward", "compute_output": "serialise"}


class OipClient(ServerClient):
    """Calls one server of the Open Inference Protocol; what the protocol does not tell is None, or `unknown`.

    Models stay as they are: one that is not ready is loaded, where the server can, and none is ever unloaded.

    Args:
        protocol: with the server's tensors.
        model_set: that its models are said to run, with the weights that it cannot tell.
        names: of the models; empty: all that are ready.
    """

    def __init__(
        self, host: str, protocol: Oip, model_set: ModelSetStatus | None = None, names: Sequence[str] = ()
    ) -> None:
        super().__init__(host)
        self._protocol = protocol
        self._model_set = model_set or ModelSetStatus(name=_UNKNOWN, models=[])
        self._names = names
        self._process = LocalProcess(self.host)

    def health(self) -> Health:
        """What the server calls itself; the machine is told where it is this one."""
        about = self._call("GET", "/v2")
        name, version = str(about.get("name", _UNKNOWN)), str(about.get("version", _UNKNOWN))
        here = self._process.found
        return Health(
            status="ok",
            device=_UNKNOWN,
            device_name=f"{name} {version} at {self.host}",
            driver=None,
            versions={name: version, "detbench": __version__},
            cpu_count=os.cpu_count() or 0 if here else 0,
            torch_threads=0,
            platform=platform.platform() if here else _UNKNOWN,
            revision=None,
            clocks_mhz=None,
            settings={},
        )

    def ready(self) -> None:
        """Return when the server says that it is ready; raise `ServerError` when not."""
        self._content("GET", "/v2/health/ready")  # Triton says yes without a word

    def implementations(self) -> list[ImplementationStatus]:
        """The models that were named, or all that are ready.

        Raises:
            ServerError: it has no such model; or none is named, and it has no list of them.
        """
        return [self._status(name) for name in self._names or self._ready_models()]

    def _ready_models(self) -> list[str]:
        try:
            rows = self._call("POST", "/v2/repository/index", content=b'{"ready": true}')
            return list(dict.fromkeys(str(row["name"]) for row in rows if row.get("state") == "READY"))
        except (ServerError, KeyError, TypeError, AttributeError) as error:
            raise ServerError(f"{self.host} has no list of its models; name them in --implementations") from error

    def _status(self, model: str) -> ImplementationStatus:
        about = self._call("GET", _path(model))
        return ImplementationStatus(
            name=model,
            description=f"{about.get('platform') or 'a model'} at {self.host}",
            exact=self._protocol.tensors.exact,
            precision=_UNKNOWN,
            model_sets=[self._model_set.name],
            loaded=[self._model_set.name],
        )

    def model_set(self, name: str) -> ModelSetStatus:  # noqa: ARG002
        """The models that the server's answers are compared with."""
        return self._model_set

    def vram(self) -> VramStatus:
        """Memory of the server's processes, where they run on this machine."""
        return self._process.memory()

    def device_state(self) -> DeviceState:
        """Nothing: the protocol does not tell."""
        return DeviceState()

    def sample_memory(self) -> None:
        """Look for a new peak."""
        self._process.sample()

    def reset_peaks(self) -> None:
        """Let the peaks of `vram` begin anew."""
        self._process.reset_peaks()

    def load(self, implementation: str, model_set: str) -> Loaded:
        """Return when the model is ready; load it, where it is not."""
        path = f"{_path(implementation)}/ready"
        began_s = time.monotonic()
        if not self._says_yes(path):
            self._content(
                "POST", f"/v2/repository/models/{quote(implementation, safe='@')}/load", timeout_s=_READY_WITHIN_S
            )
            while not self._says_yes(path):
                if time.monotonic() - began_s > _READY_WITHIN_S:
                    raise ServerError(f"{implementation} was loaded, and is not ready after {_READY_WITHIN_S:g} s")
                time.sleep(0.5)
        return Loaded(implementation=implementation, model_set=model_set, load_s=time.monotonic() - began_s)

    def unload(self, implementation: str, model_set: str) -> None:
        """Nothing: it is not ours to unload."""

    def infer(self, implementation: str, model_set: str, image: bytes, content_type: str) -> Inference:
        """Detections of every model of the set in one encoded image.

        Raises:
            MalformedOutput: lists of different length, a NaN or an infinity, or not the tensors that were described.
        """
        message = self._protocol.message(implementation, model_set, image, content_type)
        content = self._content(
            "POST",
            message.path,
            content=b"".join(message.content),
            headers={"Content-Type": message.content_type, **message.headers},
        )
        try:
            return self._protocol.inference(content, image)
        except ValidationError as error:
            raise MalformedOutput(f"{implementation}: {error.errors()[0]['msg']}") from error
        except ValueError as error:
            raise MalformedOutput(f"{implementation}: {error}") from error

    def statistics(self, model: str) -> dict[str, tuple[int, int]] | None:
        """What the model has done since it was loaded: `STAGES` to requests and nanoseconds, and `batches` to
        inferences and batches; None where the server has no such extension.
        """
        try:
            (row,) = self._call("GET", f"{_path(model)}/stats")["model_stats"]
            figures = row["inference_stats"]
            found = {stage: (int(figures[part]["count"]), int(figures[part]["ns"])) for part, stage in STAGES.items()}
            return found | {"batches": (int(row["inference_count"]), int(row["execution_count"]))}
        except (ServerError, KeyError, TypeError, ValueError):
            return None

    def _says_yes(self, path: str) -> bool:
        try:
            self._content("GET", path)
        except ServerError as error:
            if error.status is not None and 400 <= error.status < 500:
                return False
            raise
        return True


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='@')}"

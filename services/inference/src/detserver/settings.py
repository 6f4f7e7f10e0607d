"""Every setting of the server. Each is an environment variable, `DETSERVER_` and its name in capitals."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

NOTHING = "none"
"""As `preload`: nothing is loaded until somebody asks."""


class Settings(BaseSettings):
    """Serves several EfficientDet detectors. Options are environment variables too (DETSERVER_<NAME>; empty: unset)."""

    model_config = SettingsConfigDict(
        env_prefix="DETSERVER_", cli_kebab_case=True, cli_implicit_flags=True, frozen=True
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on")
    device: str = Field("auto", description="torch device: cpu, cuda, cuda:1; auto takes a GPU where there is one")
    default_model_set: str = Field("mixed", description="model set of a request that names none")
    model_sets_file: Path | None = Field(
        None, description="TOML file with model sets of your own; else models/model_sets.toml in the data folder"
    )
    preload: Annotated[list[str], NoDecode] = Field(
        ["baseline", "invalid"],
        description="what to load before the server is ready, comma-separated, each `name` or `name@model_set`; `none`",
    )
    only_preloaded: bool = Field(False, description="whether nothing but `preload` is ever served, and it stays loaded")
    replicas: int = Field(
        0,
        ge=0,
        description="processes behind one address, by Ray Serve, of the one that is preloaded; 0: this one alone",
    )
    data_dir: Path = Field(Path("data"), description="folder with weights/ (yours and downloaded) and cache/")
    weights_download: bool = Field(True, description="download effdet's pretrained weights where no local file is")
    weights_url: str | None = Field(None, description="base URL of a mirror of effdet's weights files")
    # With 2 each of 117 photographs has 4 to 72 boxes per model, scores from 0.05 to 0.9, no ties at the top.
    seed: int = Field(2, ge=0, description="seed of the calibrated random weights, used where no others can be had")
    compile: bool = Field(True, description="whether torch.compile may be used; its first loads take minutes")
    torch_threads: int = Field(
        0, ge=0, description="threads of one torch operation; 0 is torch's choice within the CPUs that may be used"
    )
    decode_threads: int = Field(
        0, ge=0, description="images decoded and preprocessed at the same time; 0 is one per CPU that may be used"
    )
    queue_size: int = Field(32, ge=1, description="requests in work at the same time; one more is answered 429")
    deadline_s: float = Field(
        60, gt=0, description="seconds within which a request is answered or refused, if it names none (X-Deadline-Ms)"
    )
    max_batch_size: Annotated[list[str], NoDecode] = Field(
        [], description="largest batch, as `fastest=8,vmap=4`; an implementation's own otherwise"
    )
    max_queue_delay_ms: Annotated[list[str], NoDecode] = Field(
        [], description="how long a free device waits for a larger batch, as `fastest=5`; not at all otherwise"
    )
    max_upload_mb: float = Field(20, gt=0, description="largest accepted body, MB (10^6 bytes)")
    max_megapixels: float = Field(50, gt=0, description="largest accepted image, megapixels")
    body_timeout_s: float = Field(30, gt=0, description="seconds that a client may take to send its body")
    # Longer than the load balancers in front keep theirs (nginx and AWS 60 s, Google 600 s): who closes last never
    # closes a connection on which a request is under way.
    keep_alive_s: int = Field(620, ge=1, description="seconds that an idle connection is kept open")
    drain_limit_s: int = Field(
        60, ge=1, description="seconds that a server which is to end may take for requests it has accepted"
    )
    revision: str | None = Field(None, description="git revision of the build, as reported by /health")
    log_level: str = Field(
        "info", pattern="(?i)^(debug|info|warning|error)$", description="debug, info, warning or error"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: dict[str, object]) -> dict[str, object]:
        # Compose passes "" for whatever its .env does not set.
        return {name: value for name, value in values.items() if not isinstance(value, str) or value.strip()}

    @field_validator("preload", "max_batch_size", "max_queue_delay_ms", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [part.strip() for part in value.split(",") if part.strip()] if value.strip() != NOTHING else []

    @field_validator("max_batch_size", "max_queue_delay_ms")
    @classmethod
    def _of_implementations(cls, value: list[str], info: ValidationInfo) -> list[str]:
        form = r"[^=]+=0*[1-9]\d*" if info.field_name == "max_batch_size" else r"[^=]+=\d+(\.\d+)?"
        for part in value:
            if not re.fullmatch(form, part):
                raise ValueError(f"{part!r} is not of the form NAME=NUMBER")
        return value

    @property
    def preloaded(self) -> list[tuple[str, str]]:
        """(implementation, model set) of what `preload` names."""
        entries = (entry.partition("@") for entry in self.preload)
        return [(implementation, model_set or self.default_model_set) for implementation, _, model_set in entries]

    @property
    def batch_sizes(self) -> dict[str, int]:
        """The largest batch, by implementation."""
        return {name: int(size) for name, size in (part.split("=") for part in self.max_batch_size)}

    @property
    def queue_delays_s(self) -> dict[str, float]:
        """How long a free device waits for a larger batch, by implementation."""
        return {name: 1e-3 * float(delay) for name, delay in (part.split("=") for part in self.max_queue_delay_ms)}

    @property
    def weights_dir(self) -> Path:
        """Weights files: the user's own, and those that were downloaded."""
        return self.data_dir / "weights"

    @property
    def cache_dir(self) -> Path:
        """What can be made again, kept because making it takes long."""
        return self.data_dir / "cache"

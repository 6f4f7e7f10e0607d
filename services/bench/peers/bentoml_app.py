"""The work in BentoML: `MODEL=invalid WORK=effdet WORKERS=2 bentoml serve bentoml_app:Detect --port PORT`."""

import os
from pathlib import Path
from typing import Any

import bentoml
from work import PATH, Detector, as_json


@bentoml.service(workers=int(os.environ["WORKERS"]), traffic={"timeout": 600})
class Detect:
    """Detects in a worker process."""

    def __init__(self) -> None:
        self.detector = Detector()

    @bentoml.api(route=PATH)
    def infer(self, file: Path) -> dict[str, Any]:
        """See `work`."""
        return as_json(self.detector(file.read_bytes()))

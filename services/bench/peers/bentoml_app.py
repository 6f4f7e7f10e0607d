"""The work in BentoML: `WORK=effdet WORKERS=2 bentoml serve bentoml_app:Invalid --port PORT`."""

import os
from pathlib import Path
from typing import Any

import bentoml
from work import ANSWER, PATH, do_work


@bentoml.service(workers=int(os.environ["WORKERS"]))
class Invalid:
    """Decodes and prepares in a worker process."""

    @bentoml.api(route=PATH)
    def infer(self, file: Path) -> dict[str, Any]:
        """See `work`."""
        do_work(file.read_bytes())
        return ANSWER

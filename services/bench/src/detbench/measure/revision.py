"""Which commit of the project this is, so that two reports can be compared."""

import os
import subprocess
from pathlib import Path


def git_revision() -> str | None:
    """The commit of the checkout that this file lies in, with `-dirty` when files differ from it.

    Outside a checkout (in an image) it is DETBENCH_REVISION, or None.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("DETBENCH_REVISION")
    return found.stdout.strip()

"""`detbench export`: the models for another server."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from detbench.errors import DetbenchError
from detbench.variables import positive_int

NAME = "export"
SUMMARY = "write a model set as a Triton model repository"
DESCRIPTION = """\
Writes each detector of a model set as ONNX with a config.pbtxt (dynamic batching, instance groups), for Triton's ONNX
Runtime backend, and a README.md that says what goes in and what comes out: the networks alone, without decoding,
letterbox and NMS. The networks are those that the implementation `onnxruntime` runs, which has to be installed.

  detbench export --to triton --model-set mixed --folder outputs/triton
  tritonserver --model-repository=outputs/triton

How fast such a server is, and whether its answers are right: detbench run --protocol oip.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--to", choices=("triton",), required=True, help="for which server")
    parser.add_argument(
        "--model-set",
        default=os.environ.get("BENCHMARK_MODEL_SET", "mixed"),
        help="detectors to export (env BENCHMARK_MODEL_SET; default: %(default)s)",
    )
    parser.add_argument("--folder", type=Path, help="that is made; default: <outputs>/triton/<model set>")
    parser.add_argument(
        "--max-batch-size", type=positive_int, default=8, metavar="N", help="of dynamic batching (default: %(default)s)"
    )
    parser.add_argument(
        "--queue-delay-us",
        type=int,
        default=0,
        metavar="US",
        help="microseconds that a request waits for others to make a batch with (default: %(default)s)",
    )
    parser.add_argument(
        "--instances", type=positive_int, default=1, metavar="N", help="of each model on each device (default: 1)"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("BENCHMARK_DATA_DIR", "data"),
        help="folder of weights and converted networks (env BENCHMARK_DATA_DIR; default: %(default)s)",
    )
    parser.add_argument(
        "--outputs-dir",
        type=Path,
        default=os.environ.get("BENCHMARK_OUTPUTS_DIR", "outputs"),
        help="folder for what is made (env BENCHMARK_OUTPUTS_DIR; default: %(default)s)",
    )


def execute(options: argparse.Namespace) -> int:
    """Export; returns the exit status.

    Raises:
        DetbenchError: detserver, which has the networks, refuses.
    """
    console = Console()
    folder = options.folder or options.outputs_dir / "triton" / options.model_set
    command = [
        *(sys.executable, "-m", "detserver.export", str(folder), "--model-set", options.model_set),
        *("--max-batch-size", str(options.max_batch_size), "--queue-delay-us", str(options.queue_delay_us)),
        *("--instances", str(options.instances)),
    ]
    with console.status(f"exporting {options.model_set}; the first time takes about ten seconds for each detector"):
        ended = subprocess.run(
            command,
            env=os.environ | {"DETSERVER_DATA_DIR": str(options.data_dir)},
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"detserver.export ended with exit status {ended.returncode}"]
        raise DetbenchError(lines[-1].removeprefix("error: "))
    for line in ended.stdout.splitlines():
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"tritonserver --model-repository={folder.absolute()}", markup=False, soft_wrap=True)
    return 0

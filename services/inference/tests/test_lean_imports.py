"""A server imports little of torchvision and timm, and nobody can tell."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torchvision
from running_server import stop

# What a server has no use for, and the seconds that it takes to import on two cores.
NOT_NEEDED = {
    "torch._dynamo": 5.2,
    "sympy": 2.5,
    "timm.models.resnet": 1.0,
    "torchvision.transforms": 0.8,
    "httpx": 0.5,
}

SERVER = f"""
import atexit, gc, sys
from detserver.__main__ import main
atexit.register(lambda: print("imported:", *sorted({set(NOT_NEEDED)!r} & sys.modules.keys()), flush=True))
atexit.register(lambda: print("frozen:", gc.get_freeze_count() > 100_000 and gc.isenabled(), flush=True))
sys.exit(main())
"""


def lean(program: str) -> str:
    """What a program prints that begins with the imports of a server, in a process of its own."""
    begin = "import json, sys; from detserver import lean_imports; lean_imports.install()\n"
    begin += "import effdet, timm, torch, torchvision\n"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", begin + program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_server_that_has_answered_has_imported_nothing_without_need_and_looks_at_none_of_it_for_garbage(
    start_server, photos: list[Path]
):
    server = start_server(preload="baseline", program=("-c", SERVER))
    assert server.infer("baseline", files={"file": photos[0].read_bytes()}).json()["detections"]
    stop(server)
    assert [line.strip() for line in server.log.splitlines()[-2:]] == ["frozen: True", "imported:"]


@pytest.mark.slow
def test_every_name_is_there_as_after_the_whole_import():
    names = {
        package.__name__: {name for name in dir(package) if not isinstance(getattr(package, name), ModuleType)}
        for package in (timm, timm.data, timm.models, torchvision, torchvision.models, torchvision.ops)
    }
    found = json.loads(
        lean(
            "packages = ('torchvision.ops', 'torchvision.models', 'torchvision', 'timm.data', 'timm.models', 'timm')\n"
            "print(json.dumps([{name: dir(sys.modules[name]) for name in packages}, timm.list_models()]))"
        )
    )
    for package, expected in names.items():
        assert expected - {*found[0][package]} == set()
    assert found[1] == timm.list_models()


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [
        pytest.param("timm.create_model('resnet18')", id="a model of any family can be built"),
        pytest.param("from timm.models import resnet18", id="a name is imported from a package"),
        pytest.param("timm.list_models('resnet*')[0]", id="models are listed"),
        pytest.param(
            "import torchvision.ops.roi_align; assert torchvision.ops.roi_align.__class__.__name__ == 'function'",
            id="a function that hides its submodule stays a function",
        ),
        pytest.param("torchvision.transforms.Resize(8)", id="what nobody imports by name"),
        pytest.param(
            "from torchvision.ops import nms, boxes; assert nms is boxes.nms", id="names are the same objects"
        ),
        pytest.param(
            "apart = torch.arange(12.0).reshape(3, 4)\n"
            "nms = torch.compile(torchvision.ops.nms, backend='eager', fullgraph=True)\n"
            "assert nms(apart, apart[:, 0], 0.5).tolist() == [2, 1, 0]",
            id="torch.compile knows torchvision's operators",
        ),
        pytest.param(
            "import threading\n"
            "built = []\n"
            "build = lambda: built.append(timm.create_model('resnet18'))\n"
            "threads = [threading.Thread(target=build) for _ in range(4)]\n"
            "[thread.start() for thread in threads]\n"
            "[thread.join() for thread in threads]\n"
            "assert len(built) == 4",
            id="several threads need the rest at once",
        ),
    ],
)
def test_what_the_lean_imports_leave_out_is_there_when_it_is_asked_for(program: str):
    lean(program)

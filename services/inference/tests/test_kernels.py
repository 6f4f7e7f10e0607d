"""Counting kernels in a process of its own: what goes wrong there. What goes well is in test_server_api."""

import asyncio
import signal
from pathlib import Path

import pytest

from detserver.errors import KernelsNotCounted
from detserver.http import kernels
from detserver.http.kernels import Counter
from detserver.settings import Settings


@pytest.mark.slow
def test_the_process_has_the_servers_settings_and_its_reason_is_told(tmp_path: Path):
    counter = Counter(Settings(device="cuda:77", data_dir=tmp_path))
    reason = r"^the kernels of invalid on mixed were not counted: DETSERVER_DEVICE=cuda:77[^\n]*$"
    with pytest.raises(KernelsNotCounted, match=reason):
        asyncio.run(counter.count("invalid", "mixed"))


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = []
    start = asyncio.create_subprocess_exec

    async def noted(*arguments, **options):
        started.append(await start(*arguments, **options))
        return started[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    monkeypatch.setattr(kernels, "_LIMIT_S", 0.2)
    with pytest.raises(KernelsNotCounted, match="took more than"):
        asyncio.run(Counter(Settings(device="cpu", data_dir=tmp_path)).count("invalid", "mixed"))
    assert started[0].returncode == -signal.SIGKILL

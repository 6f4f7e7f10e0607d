"""What the server's GPU does during a run."""

import time

from detbench.api.client import ServerClient
from detbench.api.schemas import DeviceState
from detbench.results.sweep import DeviceUse

_EVERY_S = 1.0


class DeviceWatch:
    """Samples the GPU from its making on, once a second where `sample` is called more often.

    Of several replicas each tells of its own GPU, and which of them is asked is chance: none is sampled.

    Raises:
        ServerError: the server does not answer; of every method.
    """

    def __init__(self, client: ServerClient) -> None:
        self._client = client
        several = len(client.health().replicas or []) > 1
        self._states = [DeviceState() if several else client.device_state()]
        self._sampled_s = time.monotonic()

    def sample(self) -> None:
        """Take a sample, unless the last is younger than a second."""
        if time.monotonic() - self._sampled_s >= _EVERY_S and self._on_gpu():
            self._sampled_s = time.monotonic()
            self._states.append(self._client.device_state())

    def use(self) -> DeviceUse | None:
        """What the GPU did so far; None without one."""
        if not self._on_gpu():
            return None
        self._states.append(self._client.device_state())
        first, *during = self._states
        energies = [state.energy_j for state in (first, during[-1]) if state.energy_j is not None]
        powers = [state.power_w for state in during if state.power_w is not None]
        throttled = [state.throttle_reasons for state in during if state.throttle_reasons is not None]
        return DeviceUse(
            energy_j=energies[1] - energies[0] if len(energies) == 2 else None,
            power_w=sum(powers) / len(powers) if powers else None,
            sm_clock_mhz=_spread(during, "sm"),
            memory_clock_mhz=_spread(during, "memory"),
            throttled=sum(map(bool, throttled)) / len(throttled) if throttled else None,
            throttle_reasons=list(dict.fromkeys(reason for reasons in throttled for reason in reasons)),
        )

    def _on_gpu(self) -> bool:
        return any(value is not None for value in self._states[0].model_dump().values())


def _spread(states: list[DeviceState], clock: str) -> tuple[int, int] | None:
    found = [state.clocks_mhz[clock] for state in states if state.clocks_mhz and clock in state.clocks_mhz]
    return (min(found), max(found)) if found else None

"""The device, by the DCGM exporter."""

from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
)
from panels import NO_GPU, PROFILING, dashboard, graph


def gpu() -> Dashboard:
    """The device, by the DCGM exporter."""
    mib = 1024 * 1024
    one = "GPU {{gpu}}"
    return (
        dashboard("detbench-gpu", "GPU", "The device as NVIDIA's DCGM sees it.")
        .with_panel(
            graph(
                "Memory",
                "Framebuffer that all processes use, and that is free.",
                "bytes",
                (f"DCGM_FI_DEV_FB_USED * {mib}", f"used, {one}"),
                (f"DCGM_FI_DEV_FB_FREE * {mib}", f"free, {one}"),
                absent=NO_GPU,
            )
        )
        .with_panel(
            graph(
                "Utilization",
                "Share of time in which at least one kernel ran, and in which memory was accessed.",
                "percent",
                ("DCGM_FI_DEV_GPU_UTIL", f"kernels, {one}"),
                ("DCGM_FI_DEV_MEM_COPY_UTIL", f"memory, {one}"),
                absent=NO_GPU,
            )
        )
        .with_panel(
            graph(
                "SM activity",
                "Share of cycles in which an SM had a warp (active), and of its warps (occupancy)." + PROFILING,
                "percentunit",
                ("DCGM_FI_PROF_SM_ACTIVE", f"active, {one}"),
                ("DCGM_FI_PROF_SM_OCCUPANCY", f"occupancy, {one}"),
                absent=NO_GPU,
            )
        )
        .with_panel(
            graph(
                "Tensor cores and memory bandwidth",
                "Share of cycles in which the tensor pipe, and the memory interface, was active. Tensor cores stand "
                "still in exact float32." + PROFILING,
                "percentunit",
                ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", f"tensor, {one}"),
                ("DCGM_FI_PROF_DRAM_ACTIVE", f"memory, {one}"),
                absent=NO_GPU,
            )
        )
        .with_panel(graph("Power", "Power draw of the board.", "watt", ("DCGM_FI_DEV_POWER_USAGE", one), absent=NO_GPU))
        .with_panel(
            graph(
                "Energy per image",
                "Energy of the board divided by the server's answers, over the rate interval.",
                "joule",
                (
                    "sum(rate(DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION[$__rate_interval])) / 1000 / "
                    'sum(rate(detserver_requests_total{status="200"}[$__rate_interval]))',
                    "energy per image",
                ),
                absent=NO_GPU,
            )
        )
        .with_panel(
            graph(
                "Temperature",
                "Of the chip and of its memory.",
                "celsius",
                ("DCGM_FI_DEV_GPU_TEMP", f"chip, {one}"),
                ("DCGM_FI_DEV_MEMORY_TEMP", f"memory, {one}"),
                absent=NO_GPU,
            )
        )
        .with_panel(
            graph(
                "Clocks",
                "Clock frequencies. A falling SM clock under load makes figures too slow.",
                "hertz",
                ("DCGM_FI_DEV_SM_CLOCK * 1e6", f"SM, {one}"),
                ("DCGM_FI_DEV_MEM_CLOCK * 1e6", f"memory, {one}"),
                absent=NO_GPU,
            )
        )
        .with_panel(
            graph(
                "Why clocks are lowered",
                "1 while the reason holds. The power cap is normal under full load; heat and brake are not.",
                "short",
                *(
                    (f"floor(DCGM_FI_DEV_CLOCKS_EVENT_REASONS / {bit}) % 2", f"{reason}, {one}")
                    for bit, reason in (
                        (4, "power cap"),
                        (8, "hardware slowdown"),
                        (32, "heat (software)"),
                        (64, "heat (hardware)"),
                        (128, "power brake"),
                    )
                ),
                absent=NO_GPU,
            ).max(1)
        )
    )

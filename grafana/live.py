"""What a load test looks at while it runs."""

from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    Row,
)
from panels import (
    BY,
    CHOSEN,
    NAMED,
    NO_GPU,
    SERVER_STAGES,
    SIDES,
    STAGE_COLORS,
    STAGES,
    Query,
    bars,
    dashboard,
    fixed,
    graph,
    implementation_variable,
    number,
    weights,
)

TALL = 17
"""Grid rows of a panel whose legend has nine lines: a percentile, or a stage, each."""


def percentiles(metric: str) -> list[Query]:
    """p50, p90 and p99 of a histogram by recording rule; without a request they are NaN, and left out."""
    return [(f"{BY}:{metric}:{name}_rate30s{{{CHOSEN}}} >= 0", f"{name} {NAMED}") for name in ("p50", "p90", "p99")]


def live() -> Dashboard:
    """What a load test looks at while it runs."""
    client, server = (f"avg({BY}:{side}_request_duration_seconds:mean_rate30s{{{CHOSEN}}})" for side in SIDES)
    where: list[Query] = [(f"clamp_min({client} - {server}, 0)", STAGES[0])]
    where += [
        (f'avg(implementation_stage:detserver_stage_duration_seconds:mean_rate30s{{{CHOSEN},stage="{name}"}})', name)
        for name in SERVER_STAGES
    ]
    waterfall = bars(
        "Where a request's time goes",
        "Mean over the last 30 s, from top to bottom as it goes. Network and client is the client's latency minus the "
        "server's; the others are the server's stages and add up to it. What grows with users is the queue.",
        "s",
        *where,
        span=8,
        height=TALL,
    )
    for name, color in zip(STAGES, STAGE_COLORS, strict=True):
        waterfall = waterfall.override_by_name(name, [fixed(color)])
    return (
        dashboard("detbench-live", "Live load test", "The load that runs now: rates, latency, where time goes, memory.")
        .with_variable(implementation_variable())
        .with_panel(
            number(
                "Under load",
                "What Locust's users ask for: implementation and model set. After a test, what they asked for last.",
                "short",
                "detbench_target_info",
                NAMED,
                names=True,
            )
        )
        .with_panel(number("Users", "Users that run now, of all workers.", "short", "sum(detbench_users)"))
        .with_panel(
            number(
                "Throughput",
                "Successful answers per second that the clients received.",
                "reqps",
                f"sum({BY}:detbench_requests:rate10s{{{CHOSEN}}})",
            )
        )
        .with_panel(
            number(
                "Client p99",
                "99 of 100 successful requests were faster, as the clients saw it, over the last 30 s.",
                "s",
                f"max({BY}:detbench_latency_seconds:p99_rate30s{{{CHOSEN}}})",
            )
        )
        .with_panel(
            number(
                "Failed",
                "Share of requests that failed at the clients over the last 30 s: errors, malformed or no answers.",
                "percentunit",
                f"max({BY}:detbench_requests:error_ratio_rate30s{{{CHOSEN}}})",
            )
        )
        .with_panel(
            number(
                "Queue",
                "Requests that wait for the device now.",
                "short",
                "sum(detserver_queue_depth)",
            )
        )
        .with_panel(weights())
        .with_panel(
            graph(
                "Offered, sent and answered",
                "Offered: what was to be sent, sent or dropped. Answered: successfully. Offered and sent part where no "
                "sender was idle, sent and answered where requests fail or a queue grows.",
                "reqps",
                (
                    f"({BY}:detbench_requests_started:rate10s{{{CHOSEN}}} + "
                    f"{BY}:detbench_requests_dropped:rate10s{{{CHOSEN}}}) > 0",
                    f"offered {NAMED}",
                ),
                (f"{BY}:detbench_requests_started:rate10s{{{CHOSEN}}} > 0", f"sent {NAMED}"),
                (f"{BY}:detbench_requests:rate10s{{{CHOSEN}}} > 0", f"answered {NAMED}"),
                height=TALL,
            )
        )
        .with_panel(
            graph(
                "Client latency",
                "Percentiles of successful requests over the last 30 s, from the summed histograms of all workers; in "
                "an open loop from the time when a request was to be sent. Limits: those that the run is to hold.",
                "s",
                *percentiles("detbench_latency_seconds"),
                ("max by (figure) (detbench_limit_seconds)", "limit of {{figure}}"),
                height=TALL,
            )
        )
        .with_panel(
            graph(
                "Service time and lateness",
                "Service time: from sending to the answer. Lateness: how long after its time a request of an open loop "
                "was sent, which is the generator's fault. Latency is both together.",
                "s",
                *percentiles("detbench_request_duration_seconds"),
                (f"{BY}:detbench_lateness_seconds:p99_rate30s{{{CHOSEN}}} >= 0", f"p99 late {NAMED}"),
                height=TALL,
            )
        )
        .with_panel(
            graph(
                "Server latency",
                "From a request's headers to its answer, percentiles over the last 30 s.",
                "s",
                *percentiles("detserver_request_duration_seconds"),
                height=TALL,
            )
        )
        .with_panel(
            graph(
                "Latency by stage",
                "Mean per request over the last 30 s, stacked. The sum is the client's mean latency.",
                "s",
                *where,
                height=TALL,
                stacked=True,
            )
        )
        .with_panel(waterfall)
        .with_panel(
            graph(
                "Errors",
                "Requests per second without detections: at the clients by outcome, at the server by reason.",
                "reqps",
                (
                    f'sum by (outcome) (rate(detbench_requests_total{{{CHOSEN},outcome!="success"}}'
                    "[$__rate_interval]))",
                    "client: {{outcome}}",
                ),
                ("sum by (reason) (rate(detserver_rejected_total[$__rate_interval])) > 0", "server: {{reason}}"),
                height=TALL,
            ).axis_soft_max(1)
        )
        .with_panel(
            graph(
                "Users",
                "Users that run, and that were asked for; workers that the master knows. A worker that dies is "
                "missing, and its users move to the others.",
                "short",
                ("sum(detbench_users)", "users"),
                ("sum(detbench_target_users)", "users asked for"),
                ("sum by (state) (detbench_workers) > 0", "workers {{state}}"),
            )
        )
        .with_panel(
            graph(
                "Batch size and queue",
                "Images in the batch that a request was part of, mean; requests that wait for the device.",
                "short",
                (
                    f"sum by (implementation) (rate(detserver_batch_size_sum{{{CHOSEN}}}[$__rate_interval])) / "
                    f"(sum by (implementation) (rate(detserver_batch_size_count{{{CHOSEN}}}[$__rate_interval])) > 0)",
                    "batch {{implementation}}",
                ),
                ("sum(detserver_queue_depth)", "waiting"),
            )
        )
        .with_panel(
            graph(
                "Loaded implementations",
                "1 while an implementation can serve at once. Its weights take memory even when idle.",
                "short",
                ("max by (implementation, model_set) (detserver_implementation_loaded)", NAMED),
            )
        )
        .with_panel(
            graph(
                "Not the models",
                "Share of the server's time for a request that is neither forward nor postprocess, the wait for the "
                "device left out: receiving, decoding, letterboxes, upload, serialising.",
                "percentunit",
                (
                    f"1 - sum by (implementation) (rate(detserver_stage_duration_seconds_sum{{{CHOSEN},"
                    'stage=~"forward|postprocess"}[$__rate_interval])) / '
                    f"(sum by (implementation) (rate(detserver_stage_duration_seconds_sum{{{CHOSEN},"
                    'stage!="queue"}[$__rate_interval])) > 0)',
                    "{{implementation}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Refused, abandoned, late",
                "Requests per second that never reached the device, or whose answer nobody waited for: no place "
                "(QueueFull), a deadline that cannot be met (DeadlineTooNear) or was not (DeadlineMissed), a client "
                "that has gone (ClientGone).",
                "reqps",
                (
                    'sum by (reason) (rate(detserver_rejected_total{reason=~"QueueFull|DeadlineTooNear|DeadlineMissed|'
                    'ClientGone|NotReady|OutOfMemory"}[$__rate_interval]))',
                    "{{reason}}",
                ),
            ).axis_soft_max(1)
        )
        .with_panel(
            graph(
                "The device's work",
                "Images that the device has worked on per second, whatever became of their requests; bytes of pictures "
                "that crossed to it (none on a CPU).",
                "short",
                (
                    f"sum by (implementation) (rate(detserver_device_images_total{{{CHOSEN}}}[$__rate_interval])) > 0",
                    "images/s {{implementation}}",
                ),
                ("sum(rate(detserver_device_upload_bytes_total[$__rate_interval])) / 1e6", "MB/s uploaded"),
            )
        )
        .with_row(Row("Memory and GPU"))
        .with_panel(
            graph(
                "Memory",
                "Of the server's process, or of all replicas, now and the peak since the last reset: on a GPU its "
                "memory by NVML, with what torch's allocator has reserved beside it; without one resident memory.",
                "bytes",
                ('sum(detserver_vram_bytes{kind="process"})', "GPU, now"),
                ('sum(detserver_vram_bytes{kind="process_peak"})', "GPU, peak"),
                ('sum(detserver_vram_bytes{kind="reserved"})', "reserved by torch, now"),
                ('sum(detserver_vram_bytes{kind="reserved_peak"})', "reserved by torch, peak"),
                (
                    "sum by (kind) (detserver_resident_bytes unless on (instance) detserver_vram_bytes)",
                    "resident, {{kind}}",
                ),
            )
        )
        .with_panel(
            graph(
                "GPU utilization",
                "Share of time in which a kernel ran, and memory was accessed. 100 % is not yet a full GPU.",
                "percent",
                ("DCGM_FI_DEV_GPU_UTIL", "kernels, GPU {{gpu}}"),
                ("DCGM_FI_DEV_MEM_COPY_UTIL", "memory, GPU {{gpu}}"),
                absent=NO_GPU,
            )
        )
        .with_panel(
            graph(
                "Power", "Power draw of the board.", "watt", ("DCGM_FI_DEV_POWER_USAGE", "GPU {{gpu}}"), absent=NO_GPU
            )
        )
    )

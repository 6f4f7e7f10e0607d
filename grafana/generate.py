"""The dashboards, as code: `make dashboards` writes grafana/dashboards/*.json, and a test holds the files in step.

A generator and not JSON by hand: three dashboards are 3,000 lines of JSON, in which a metric has to be searched for;
here a panel is one call. The classes are Grafana's own (grafana-foundation-sdk).
"""

import argparse
import sys
from pathlib import Path

from grafana_foundation_sdk.builders import bargauge, common, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    FieldColor,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
CHOSEN = 'implementation=~"$implementation"'
BY = "implementation_model_set"
NAMED = "{{implementation}} · {{model_set}}"
GPU_ABSENT = " Empty without a GPU."
PROFILING = " Profiling counter: data-centre cards only, GeForce has none." + GPU_ABSENT

Query = tuple[str, str]
Color = str
SIDES = ("detbench", "detserver")
STAGES = ("network and client", "queue", "decode", "preprocess", "forward", "postprocess")
STAGE_COLORS = ("#8e8e8e", "#e0b400", "#3274d9", "#37872d", "#e02f44", "#8f3bb8")


def query(expr: str, legend: str, instant: bool = False) -> Dataquery:
    """One PromQL query; `instant` asks for its value now only."""
    made = Dataquery().datasource(SOURCE).expr(expr).legend_format(legend)
    return made.instant() if instant else made.range()


def graph(
    title: str, description: str, unit: str, *queries: Query, span: int = 8, stacked: bool = False
) -> timeseries.Panel:
    """A time series panel; the legend's table shows mean and last."""
    legend = (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.TABLE)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["mean", "lastNotNull"])
    )
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(13 if stacked else 11)
        .line_width(2)
        .fill_opacity(50 if stacked else 8)
        .show_points(VisibilityMode.NEVER)
        .span_nulls(10_000.0)
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
        for name, color in zip(STAGES, STAGE_COLORS, strict=True):
            panel = panel.override_by_name(name, [fixed(color)])
    for expr, label in queries:
        panel = panel.with_target(query(expr, label))
    return panel


def number(
    title: str, description: str, unit: str, expr: str, legend: str = "", span: int = 4, names: bool = False
) -> stat.Panel:
    """A large number; with `names`, the series' names instead of their values."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(span)
        .height(4)
        .no_value("–")
        .graph_mode(BigValueGraphMode.NONE if names else BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .color_scheme(FieldColor().mode(FieldColorModeId.FIXED).fixed_color("text" if names else "blue"))
        .text_mode(BigValueTextMode.NAME if names else BigValueTextMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(query(expr, legend, instant=names))
    )


def bars(title: str, description: str, unit: str, *queries: Query, span: int = 6, height: int = 9) -> bargauge.Panel:
    """Horizontal bars of the values now, one for each series, drawn against the longest."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(height)
        .no_value("–")
        .display_mode(BarGaugeDisplayMode.BASIC)
        .orientation(VizOrientation.HORIZONTAL)
        .text(common.VizTextDisplayOptions().title_size(14).value_size(16))
        .color_scheme(FieldColor().mode(FieldColorModeId.FIXED).fixed_color("blue"))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if unit == "sci":
        panel = panel.decimals(1)
    for expr, legend in queries:
        panel = panel.with_target(query(expr, legend, instant=True))
    return panel


def decimals(unit: str) -> list[DynamicConfigValue]:
    """A column's property: without it, scientific numbers come with all of their digits."""
    return [DynamicConfigValue(id_val="decimals", value=1)] if unit == "sci" else []


def fixed(color: Color) -> DynamicConfigValue:
    """A series' property: its color."""
    return DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})


def dashboard(uid: str, title: str, description: str, refresh: str = "5s") -> Dashboard:
    """An empty dashboard with the variables, links and annotations that all of them share."""
    runs = (
        AnnotationQuery()
        .name("Runs")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("rgba(120, 160, 255, 0.6)")
        .expr(f"sum by (implementation, model_set) ({BY}:detserver_requests:rate10s) > 0")
    )
    return (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["detbench"])
        .readonly()
        .refresh(refresh)
        .time("now-15m", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            DatasourceVariable("datasource")
            .id("datasource")
            .label("Data source")
            .type("prometheus")
            .current(VariableOption(selected=True, text="Prometheus", value="prometheus"))
        )
        .annotation(runs)
        .link(
            DashboardLink("detbench")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["detbench"])
            .as_dropdown(False)
            .keep_time(True)
        )
    )


def implementation_variable() -> QueryVariable:
    """Which implementations are shown: those that the server or a pushed result names."""
    return (
        QueryVariable("implementation")
        .id("implementation")
        .label("Implementation")
        .datasource(SOURCE)
        .query({"query": "label_values(detserver_requests_total, implementation)", "refId": "implementation"})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def percentiles(side: str, what: str) -> list[Query]:
    """p50, p90 and p99 of `side`'s latency by recording rule."""
    return [
        (f"{BY}:{side}_request_duration_seconds:{name}_rate30s{{{CHOSEN}}}", f"{name} {what}{NAMED}")
        for name in ("p50", "p90", "p99")
    ]


def live() -> Dashboard:
    """What a load test looks at while it runs."""
    client, server = (f"avg({BY}:{side}_request_duration_seconds:mean_rate30s{{{CHOSEN}}})" for side in SIDES)
    where: list[Query] = [(f"clamp_min({client} - {server}, 0)", STAGES[0])]
    where += [
        (f'avg(implementation_stage:detserver_stage_duration_seconds:mean_rate30s{{{CHOSEN},stage="{name}"}})', name)
        for name in STAGES[1:]
    ]
    waterfall = bars(
        "Where a request's time goes",
        "Mean over the last 30 s. Network and client is the client's latency minus the server's; the others are "
        "the server's stages. What grows with users is the queue.",
        "s",
        *where,
        span=8,
        height=13,
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
                f"max({BY}:detbench_request_duration_seconds:p99_rate30s{{{CHOSEN}}})",
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
        .with_panel(
            graph(
                "Offered and achieved throughput",
                "Offered: requests that users sent. Achieved: successful answers. The two part when requests fail.",
                "reqps",
                (f"{BY}:detbench_requests_started:rate10s{{{CHOSEN}}}", f"offered {NAMED}"),
                (f"{BY}:detbench_requests:rate10s{{{CHOSEN}}}", f"achieved {NAMED}"),
            )
        )
        .with_panel(
            graph(
                "Client latency",
                "Percentiles of successful requests over the last 30 s, from the summed histograms of all workers.",
                "s",
                *percentiles("detbench", ""),
            )
        )
        .with_panel(
            graph(
                "Server latency",
                "From a request's headers to its answer, percentiles over the last 30 s.",
                "s",
                *percentiles("detserver", ""),
            )
        )
        .with_panel(
            graph(
                "Latency by stage",
                "Mean per request over the last 30 s, stacked. The sum is the client's mean latency.",
                "s",
                *where,
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
            )
            .height(13)
            .axis_soft_max(1)
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
                ("sum by (implementation, model_set) (detserver_implementation_loaded)", NAMED),
            )
        )
        .with_row(Row("GPU"))
        .with_panel(
            graph(
                "VRAM",
                "Torch's allocator: allocated, reserved and the peak since the last reset; the device's use by all "
                "processes." + GPU_ABSENT,
                "bytes",
                ("detserver_vram_bytes", "{{kind}}"),
            )
        )
        .with_panel(
            graph(
                "GPU utilization",
                "Share of time in which a kernel ran, and memory was accessed. 100 % is not yet a full GPU."
                + GPU_ABSENT,
                "percent",
                ("DCGM_FI_DEV_GPU_UTIL", "kernels, GPU {{gpu}}"),
                ("DCGM_FI_DEV_MEM_COPY_UTIL", "memory, GPU {{gpu}}"),
            )
        )
        .with_panel(
            graph("Power", "Power draw of the board." + GPU_ABSENT, "watt", ("DCGM_FI_DEV_POWER_USAGE", "GPU {{gpu}}"))
        )
    )


COLUMNS = {
    "rps": ("Throughput", "reqps", f"max by (implementation, model_set) (detbench_run_rps{{{CHOSEN}}})"),
    "p50": (
        "p50 at 1 user",
        "s",
        f'min by (implementation, model_set) (detbench_run_latency_seconds{{{CHOSEN},quantile="0.5",users="1"}})',
    ),
    "p99": (
        "p99 at 1 user",
        "s",
        f'min by (implementation, model_set) (detbench_run_latency_seconds{{{CHOSEN},quantile="0.99",users="1"}})',
    ),
    "vram": (
        "VRAM peak",
        "bytes",
        f"max by (implementation, model_set) (detbench_run_vram_peak_bytes{{{CHOSEN}}})",
    ),
    "boxes": (
        "Boxes MSE (px²)",
        "sci",
        f'max by (implementation, model_set) (detbench_boxes_mse{{{CHOSEN},model="all"}})',
    ),
    "scores": (
        "Scores MSE",
        "sci",
        f'max by (implementation, model_set) (detbench_scores_mse{{{CHOSEN},model="all"}})',
    ),
    "labels": (
        "Labels accuracy",
        "percentunit",
        f'max by (implementation, model_set) (detbench_labels_accuracy{{{CHOSEN},model="all"}})',
    ),
    "gate": ("Same answers", "short", f"max by (implementation, model_set) (detbench_gate_passed{{{CHOSEN}}})"),
}


def comparison_table() -> table.Panel:
    """One row for each implementation and model set: the newest pushed results side by side."""
    panel = (
        table.Panel()
        .title("Newest results")
        .description(
            "What `detbench run` and `detbench compare` pushed last: throughput at the best number of users, latency "
            "at one user, output error over all models. Same answers: within what float32 reassociation leaves."
        )
        .datasource(SOURCE)
        .unit("short")
        .span(24)
        .height(8)
        .no_value("–")
        .with_transformation(DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "indexByName": {
                        "implementation": 0,
                        "model_set": 1,
                        **{f"Value #{ref}": index for index, ref in enumerate(COLUMNS, 2)},
                    },
                    "renameByName": {
                        "implementation": "Implementation",
                        "model_set": "Model set",
                        **{f"Value #{ref}": title for ref, (title, _, _) in COLUMNS.items()},
                    },
                },
            )
        )
    )
    for ref, (title, unit, expr) in COLUMNS.items():
        panel = panel.with_target(
            query(expr, "", instant=True).format(PromQueryFormat.TABLE).ref_id(ref)
        ).override_by_name(title, [DynamicConfigValue(id_val="unit", value=unit), *decimals(unit)])
    answers = {"0": {"text": "no", "color": "red", "index": 0}, "1": {"text": "yes", "color": "green", "index": 1}}
    return panel.override_by_name(
        COLUMNS["gate"][0],
        [
            DynamicConfigValue(id_val="mappings", value=[{"type": "value", "options": answers}]),
            DynamicConfigValue(id_val="custom.displayMode", value="color-text"),
            DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}),
        ],
    )


def compared() -> Dashboard:
    """Implementations side by side: the newest pushed results, and what the stack saw live."""
    return (
        dashboard(
            "detbench-compared",
            "Implementations compared",
            "Throughput, latency, VRAM and output error of each implementation. Results come from one-shot jobs: "
            "make bench-stack, make compare.",
        )
        .with_variable(implementation_variable())
        .with_panel(comparison_table())
        .with_panel(
            bars(
                "Throughput",
                "Successful answers per second in the newest sweep, at the best number of users. More is better.",
                "reqps",
                (COLUMNS["rps"][2], NAMED),
            )
        )
        .with_panel(
            bars(
                "p99 at 1 user",
                "Client latency in the newest sweep. Less is better.",
                "s",
                (COLUMNS["p99"][2], NAMED),
            )
        )
        .with_panel(
            bars(
                "Boxes MSE",
                "Mean squared distance of box coordinates from baseline's, square pixels. 0 is the same answer.",
                "sci",
                (COLUMNS["boxes"][2], NAMED),
            )
        )
        .with_panel(
            bars(
                "VRAM peak",
                "Peak of torch's allocator with this implementation alone. Less is better." + GPU_ABSENT,
                "bytes",
                (COLUMNS["vram"][2], NAMED),
            )
        )
        .with_row(Row("As it was seen live"))
        .with_panel(
            graph(
                "Throughput",
                "Successful answers per second by the server's count, over 10 s.",
                "reqps",
                (f"{BY}:detserver_requests:rate10s{{{CHOSEN}}}", NAMED),
            )
        )
        .with_panel(
            graph(
                "Server p99",
                "From a request's headers to its answer, over 30 s.",
                "s",
                (f"{BY}:detserver_request_duration_seconds:p99_rate30s{{{CHOSEN}}}", NAMED),
            )
        )
        .with_panel(
            graph(
                "Failed at the server",
                "Share of the requests to an implementation that got no detections, over 30 s.",
                "percentunit",
                (f"{BY}:detserver_requests:error_ratio_rate30s{{{CHOSEN}}}", NAMED),
            )
        )
    )


def gpu() -> Dashboard:
    """The device, by the DCGM exporter."""
    mib = 1024 * 1024
    one = "GPU {{gpu}}"
    return (
        dashboard("detbench-gpu", "GPU", "The device as NVIDIA's DCGM sees it. Empty on a machine without a GPU.")
        .with_panel(
            graph(
                "Memory",
                "Framebuffer that all processes use, and that is free." + GPU_ABSENT,
                "bytes",
                (f"DCGM_FI_DEV_FB_USED * {mib}", f"used, {one}"),
                (f"DCGM_FI_DEV_FB_FREE * {mib}", f"free, {one}"),
            )
        )
        .with_panel(
            graph(
                "Utilization",
                "Share of time in which at least one kernel ran, and in which memory was accessed." + GPU_ABSENT,
                "percent",
                ("DCGM_FI_DEV_GPU_UTIL", f"kernels, {one}"),
                ("DCGM_FI_DEV_MEM_COPY_UTIL", f"memory, {one}"),
            )
        )
        .with_panel(
            graph(
                "SM activity",
                "Share of cycles in which an SM had a warp (active), and of its warps (occupancy)." + PROFILING,
                "percentunit",
                ("DCGM_FI_PROF_SM_ACTIVE", f"active, {one}"),
                ("DCGM_FI_PROF_SM_OCCUPANCY", f"occupancy, {one}"),
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
            )
        )
        .with_panel(graph("Power", "Power draw of the board." + GPU_ABSENT, "watt", ("DCGM_FI_DEV_POWER_USAGE", one)))
        .with_panel(
            graph(
                "Energy per image",
                "Energy of the board divided by the server's answers, over the rate interval." + GPU_ABSENT,
                "joule",
                (
                    "sum(rate(DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION[$__rate_interval])) / 1000 / "
                    'sum(rate(detserver_requests_total{status="200"}[$__rate_interval]))',
                    "energy per image",
                ),
            )
        )
        .with_panel(
            graph(
                "Temperature",
                "Of the chip and of its memory." + GPU_ABSENT,
                "celsius",
                ("DCGM_FI_DEV_GPU_TEMP", f"chip, {one}"),
                ("DCGM_FI_DEV_MEMORY_TEMP", f"memory, {one}"),
            )
        )
        .with_panel(
            graph(
                "Clocks",
                "Clock frequencies. A falling SM clock under load makes figures too slow." + GPU_ABSENT,
                "hertz",
                ("DCGM_FI_DEV_SM_CLOCK * 1e6", f"SM, {one}"),
                ("DCGM_FI_DEV_MEM_CLOCK * 1e6", f"memory, {one}"),
            )
        )
        .with_panel(
            graph(
                "Why clocks are lowered",
                "1 while the reason holds. The power cap is normal under full load; heat and brake are not."
                + GPU_ABSENT,
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
            ).max(1)
        )
    )


DASHBOARDS = {"live": live, "compared": compared, "gpu": gpu}


def rendered() -> dict[str, str]:
    """File name to content of every dashboard."""
    encoder = JSONEncoder(sort_keys=True, indent=1)
    return {f"{name}.json": encoder.encode(build().build()) + "\n" for name, build in DASHBOARDS.items()}


def main() -> None:
    """Write the dashboards into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "dashboards")
    folder = parser.parse_args().folder
    for name, content in rendered().items():
        (folder / name).write_text(content)
        sys.stdout.write(f"{folder / name}\n")


if __name__ == "__main__":
    main()

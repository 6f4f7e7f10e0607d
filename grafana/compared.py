"""Implementations side by side: the newest pushed results, and what the stack saw live."""

from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    Row,
)
from grafana_foundation_sdk.models.dashboard import (
    DataTransformerConfig,
    DynamicConfigValue,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from panels import (
    BY,
    CHOSEN,
    NAMED,
    SOURCE,
    bars,
    dashboard,
    decimals,
    graph,
    implementation_variable,
    query,
    weights,
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
    "memory": (
        "Memory peak",
        "bytes",
        f"max by (implementation, model_set) (detbench_run_memory_peak_bytes{{{CHOSEN}}})",
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
    "valid": ("Valid", "short", f"min by (implementation, model_set) (detbench_run_valid{{{CHOSEN}}})"),
    "limits": ("Limits held", "short", f"min by (implementation, model_set) (detbench_run_limits_held{{{CHOSEN}}})"),
    "measured": (
        "Measured",
        "dateTimeFromNow",
        f"1000 * max by (implementation, model_set) (detbench_run_timestamp_seconds{{{CHOSEN}}})",
    ),
    "compared": (
        "Compared",
        "dateTimeFromNow",
        f"1000 * max by (implementation, model_set) (detbench_compare_timestamp_seconds{{{CHOSEN}}})",
    ),
}


def judged(expr: str) -> str:
    """`expr` by implementation and model set, with the label `answers`: empty, or a doubt for the legend.

    Fast is what answers nothing; only a comparison tells.
    """
    gate = f"max by (implementation, model_set) (detbench_gate_passed{{{CHOSEN}}})"
    pairs = "on (implementation, model_set)"
    doubts = {
        "": f"{expr} and {pairs} {gate} == 1",
        " (other answers)": f"{expr} and {pairs} {gate} == 0",
        " (not compared)": f"{expr} unless {pairs} {gate}",
    }
    marked = (f'label_replace({each}, "answers", "{doubt}", "implementation", ".*")' for doubt, each in doubts.items())
    return " or ".join(marked)


JUDGED = NAMED + "{{answers}}"


def comparison_table() -> table.Panel:
    """One row for each implementation and model set: the newest pushed results side by side."""
    panel = (
        table.Panel()
        .title("Newest results")
        .description(
            "What `detbench run` and `detbench compare` pushed last: throughput at the best number of users, latency "
            "at one user, output error over all models. Same answers: within what float32 reassociation leaves. "
            "Valid: the verdict on every load. Limits held: those of --slo, where there were any. "
            "Measured, Compared: how old a row is; only what is measured again is replaced."
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
        ).override_by_name(
            title,
            [
                DynamicConfigValue(id_val="unit", value=unit),
                DynamicConfigValue(id_val="custom.minWidth", value=90),  # all of them in 1,280 pixels
                *decimals(unit),
            ],
        )
    answers = {"0": {"text": "no", "color": "red", "index": 0}, "1": {"text": "yes", "color": "green", "index": 1}}
    for ref in ("gate", "valid", "limits"):
        panel = panel.override_by_name(
            COLUMNS[ref][0],
            [
                DynamicConfigValue(id_val="mappings", value=[{"type": "value", "options": answers}]),
                DynamicConfigValue(id_val="custom.displayMode", value="color-text"),
                DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}),
            ],
        )
    return panel


def compared() -> Dashboard:
    """Implementations side by side: the newest pushed results, and what the stack saw live."""
    return (
        dashboard(
            "detbench-compared",
            "Implementations compared",
            "Throughput, latency, memory and output error of each implementation. Results come from one-shot jobs: "
            "make bench-stack, make compare.",
        )
        .with_variable(implementation_variable())
        .with_panel(weights())
        .with_panel(comparison_table())
        .with_panel(
            bars(
                "Throughput",
                "Successful answers per second in the newest sweep, at the best number of users. More is better, where "
                "the answers are baseline's.",
                "reqps",
                (judged(COLUMNS["rps"][2]), JUDGED),
            )
        )
        .with_panel(
            bars(
                "p99 at 1 user",
                "Client latency in the newest sweep. Less is better, where the answers are baseline's.",
                "s",
                (judged(COLUMNS["p99"][2]), JUDGED),
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
                "Memory peak",
                "Most that the server's process took in the newest sweep, with this implementation alone: on a GPU the "
                "GPU's memory by NVML, without one resident memory. Less is better, where the answers are baseline's.",
                "bytes",
                (judged(COLUMNS["memory"][2]), JUDGED),
            )
        )
        .with_row(Row("As it was seen live"))
        .with_panel(
            graph(
                "Throughput",
                "Successful answers per second by the server's count, over 10 s.",
                "reqps",
                (f"{BY}:detserver_requests:rate10s{{{CHOSEN}}} > 0", NAMED),
            )
        )
        .with_panel(
            graph(
                "Server p99",
                "From a request's headers to its answer, over 30 s.",
                "s",
                (f"{BY}:detserver_request_duration_seconds:p99_rate30s{{{CHOSEN}}} >= 0", NAMED),
            )
        )
        .with_panel(
            graph(
                "Failed at the server",
                "Share of the requests to an implementation that got no detections, over 30 s.",
                "percentunit",
                (f"{BY}:detserver_requests:error_ratio_rate30s{{{CHOSEN}}}", NAMED),
            ).axis_soft_max(0.05)  # without it an axis of nothing but zeros ends at 10000 %
        )
    )

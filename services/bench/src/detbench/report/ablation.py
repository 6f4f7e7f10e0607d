"""The ablation's two tables: what each step is worth, and what it costs; for a terminal, as Markdown and as CSV."""

import csv
import io

from rich.table import Table

from detbench.report.comma_separated import memory_fields
from detbench.report.rows import (
    ERROR_COLUMNS,
    GATE_COLUMN,
    IMPLEMENTATION_COLUMNS,
    MEMORY_COLUMN,
    NOT_APPLICABLE,
    Column,
    duration,
    error_cells,
    gate_of,
    ground_truth_notes,
    implementation_cells,
    megabytes,
)
from detbench.report.table import markdown_lines, measured_on, output_error_lines, table_of
from detbench.results.ablation import Ablation, Gain, Step, Timing
from detbench.results.quality import Comparison, ErrorFigures
from detbench.verdict import stolen

GAIN_COLUMNS = (
    Column("batch", "images of a batch"),
    Column("step", "technique: + is added to the row that “versus” names", numeric=False),
    Column("implementation", "its name in the API", numeric=False),
    Column("median (ms)", "latency of forward and post-processing of a batch, without HTTP, decode and queue"),
    Column("quartiles (ms)", "half of the batches lie between these"),
    Column("images/s", "batch over median"),
    Column("vs baseline", "baseline's median over this one"),
    Column(
        "versus",
        "the row that this one adds its technique to, or the nearest before that which was measured and is right; of a "
        "row that adds to none, the fastest exact one above it",
        numeric=False,
    ),
    Column("factor", "median of the row that “versus” names, over this one"),
    Column(
        "share",
        "of the logarithm of the speed-up of the fastest exact row; on the path to it shares add up to 100 %; in "
        "parentheses: not on the path, an alternative or on top; negative where it is slower",
    ),
    MEMORY_COLUMN,
)
COST_COLUMNS = (
    *IMPLEMENTATION_COLUMNS,
    *ERROR_COLUMNS,
    Column("mean IoU", "of the boxes that have a partner in the reference"),
    GATE_COLUMN,
)


def gain_rows(ablation: Ablation) -> list[tuple[Step, tuple[str, ...]]]:
    """Each step that was measured with a batch size, and the text under each of `GAIN_COLUMNS`; by batch size."""
    return [
        (step, _gain_cells(step, timing))
        for batch_size in ablation.settings.batch_sizes
        for step in ablation.steps
        if (timing := step.timing(batch_size)) is not None
    ]


def cost_cells(step: Step) -> tuple[str, ...]:
    """Text under each of `COST_COLUMNS`."""
    iou = NOT_APPLICABLE if step.comparison is None else f"{step.comparison.overall.mean_iou:.4f}"
    return (
        *implementation_cells(step.implementation, (timing.memory for timing in step.timings)),
        *error_cells(step.comparison),
        iou,
        gate_of(step.comparison),
    )


def comparisons_of(ablation: Ablation) -> list[Comparison]:
    """Those of the steps that were compared."""
    return [step.comparison for step in ablation.steps if step.comparison]


def is_doubtful(step: Step) -> bool:
    """Whether its answers are not the reference's, or, where they were not compared, not even claimed to be."""
    return not (step.implementation.exact if step.comparison is None else step.comparison.gate.passed)


def terminal_tables(ablation: Ablation) -> tuple[Table, Table]:
    """Both tables for a terminal; what is or may be wrong stands out."""
    rows = gain_rows(ablation)
    title = f"Ablation: {ablation.settings.model_set} on {ablation.environment.device_name}"
    return (
        table_of(title, GAIN_COLUMNS, [cells for _, cells in rows], [_style(step) for step, _ in rows]),
        table_of(
            "What the steps cost, and their output error",
            COST_COLUMNS,
            map(cost_cells, ablation.steps),
            [_style(step) for step in ablation.steps],
        ),
    )


def ablation_markdown(ablation: Ablation) -> str:
    """Both tables in Markdown, with what the machine and the weights are above, and what is missing below them."""
    settings = ablation.settings
    lines = [
        f"Ablation of model set {settings.model_set}, compared on {settings.images} images of {settings.dataset}, "
        f"{measured_on(ablation.environment, ablation.weights, ablation.started)}",
        "",
        *markdown_lines(GAIN_COLUMNS, [cells for _, cells in gain_rows(ablation)]),
        "",
        *markdown_lines(COST_COLUMNS, map(cost_cells, ablation.steps)),
        *output_error_lines(comparisons_of(ablation)),
    ]
    missing = [f"- {note}" for note in notes_of(ablation)]
    missing += [f"- problem: {problem.splitlines()[0]}" for problem in ablation.problems]
    return "\n".join([*lines, *(["", *missing] if missing else []), ""])


def notes_of(ablation: Ablation) -> list[str]:
    """What is missing, and what to doubt, a line each."""
    taken = [
        f"{step.implementation.name}, batches of {timing.batch_size}: {doubt.message}; {doubt.remedy}"
        for step in ablation.steps
        for timing in step.timings
        for doubt in stolen(timing.cpu)
    ]
    left_out = [f"{name} is left out: {reason}" for name, reason in ablation.left_out.items()]
    return [*left_out, *taken, *ground_truth_notes(comparisons_of(ablation))]


def ablation_csv(ablation: Ablation) -> str:
    """Every figure with all its digits, a row per step and batch size; what was not measured is empty."""
    records = [
        _record(ablation, step, step.timing(size)) for size in ablation.settings.batch_sizes for step in ablation.steps
    ]
    out = io.StringIO()
    if records:
        writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return out.getvalue()


def _gain_cells(step: Step, timing: Timing) -> tuple[str, ...]:
    gain = timing.gain
    return (
        str(timing.batch_size),
        step.label,
        step.implementation.name,
        duration(timing.median_ms),
        f"{duration(timing.lower_quartile_ms)}–{duration(timing.upper_quartile_ms)}",
        f"{timing.images_per_s:.3g}",
        _times(gain.speedup if gain else None),
        (gain.versus if gain else None) or "–",
        _times(gain.factor if gain else None),
        _share(gain),
        megabytes(timing.memory.peak_mb),
    )


def _times(factor: float | None) -> str:
    return "–" if factor is None else f"{factor:.2f}×"


def _share(gain: Gain | None) -> str:
    if gain is None or gain.share is None:
        return "–"
    return f"{100 * gain.share:.0f} %" if gain.on_path else f"({100 * gain.share:.0f} %)"


def _record(ablation: Ablation, step: Step, timing: Timing | None) -> dict[str, object]:
    info, environment = step.implementation, ablation.environment
    overall = step.comparison.overall if step.comparison else None
    gain = timing.gain if timing else None
    return {
        "step": step.label,
        "implementation": info.name,
        "model_set": ablation.settings.model_set,
        "batch_size": timing.batch_size if timing else None,
        "batches": sum(map(len, timing.rounds_ms)) if timing else None,
        **{
            name: getattr(timing, name, None)
            for name in ("median_ms", "lower_quartile_ms", "upper_quartile_ms", "images_per_s")
        },
        "speedup_vs_baseline": gain.speedup if gain else None,
        "versus": gain.versus if gain else None,
        "factor": gain.factor if gain else None,
        "share": gain.share if gain else None,
        "on_path": gain.on_path if gain else None,
        **memory_fields(timing.memory if timing else None),
        "cpu_busy": timing.cpu.busy if timing and timing.cpu else None,
        "cpu_steal": timing.cpu.steal if timing and timing.cpu else None,
        "exact": info.exact,
        "precision": info.precision,
        "load_s": info.load_s,
        "first_load_s": info.first_load_s,
        "compile_s": info.compile_s,
        "kernels_per_request": info.kernels_per_request,
        **{name: getattr(overall, name, None) for name in ErrorFigures.model_fields},
        "gate": gate_of(step.comparison),
        "weights": " ".join(dict.fromkeys(model.source for model in ablation.weights)),
        "device": environment.device,
        "device_name": environment.device_name,
        "git_revision": environment.git_revision,
    }


def _style(step: Step) -> str:
    return "yellow" if is_doubtful(step) else ""

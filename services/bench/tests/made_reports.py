"""Sweeps made by hand, and the pages of their reports."""

import html.parser
from datetime import UTC, datetime, timedelta
from pathlib import Path

from detbench.api.schemas import ModelWeights
from detbench.load.tally import new_histogram
from detbench.report import write_reports
from detbench.results.loads import ClosedLoop, Load, Series, Times
from detbench.results.quality import Comparison, ErrorFigures, Gate
from detbench.results.sweep import Environment, ImplementationInfo, MeasurementWarning, Memory, Run, Settings, Sweep
from detbench.statistics.percentiles import Percentile

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MODELS = ("tf_efficientdet_d0", "tf_efficientdet_d1")
EVIL = "<script>alert(1)</script>"


def times(p50_ms: float, answered: int) -> Times:
    """As of so many requests that p99 is certified, and p99.9 is not; the histogram has those that were answered."""
    histogram = new_histogram()
    histogram.record_value(round(1e3 * p50_ms), answered)
    p50, p90, p99, p99_9 = (
        Percentile(rank, factor * p50_ms, 0, 9e9, certified=factor < 1.6, needed=needed)
        for rank, factor, needed in ((50, 1, 11), (90, 1.2, 64), (99, 1.5, 662), (99.9, 1.8, 6636))
    )
    return Times(
        mean_ms=p50_ms, p50=p50, p90=p90, p99=p99, p99_9=p99_9, max_ms=2 * p50_ms, histogram=histogram.encode().decode()
    )


def load(rps: float, p50_ms: float) -> Load:
    return Load(
        window_s=20,
        issued=round(20 * rps),
        answered=round(20 * rps),
        failed=0,
        dropped=0,
        offered_rps=None,
        rps=rps,
        latency=times(p50_ms, round(20 * rps)),
        service=times(p50_ms, round(20 * rps)),
        lateness=None,
        stages_ms={"receive": 1, "wait": 0.1, "decode": 4, "preprocess": 9, "queue": 1}
        | {"forward": 0.7 * p50_ms, "postprocess": 0.2 * p50_ms, "serialise": 1},
        batch_size_mean=1,
        errors={},
        series=Series(answered=[], issued=[], latency_mean_ms=[]),
        generator_cpu_percent=[7],
    )


def memory(**figures: float) -> Memory:
    """Memory of a process without a GPU, unless `figures` say otherwise: 889 MB when empty, 1,234 MB at its peak."""
    nothing = dict.fromkeys(Memory.model_fields)
    return Memory(**nothing | {"resident_mb": 1200.0, "resident_peak_mb": 1234.4, "empty_mb": 889.0} | figures)


def run(implementation: str, users: int, rps: float, used: Memory | None = None) -> Run:
    return Run(
        implementation=implementation,
        model_set="mixed",
        offered=ClosedLoop(users=users),
        verdict="valid",
        started=START,
        ended=START + timedelta(seconds=25),
        load=load(rps, 1000 * users / rps),
        memory=used or memory(),
        warnings=[MeasurementWarning(code="few-requests", message="few", remedy="more", invalidates=False)]
        if rps < 1
        else [],
    )


def comparison(implementation: str, boxes_mse: float) -> Comparison:
    figures = ErrorFigures(
        boxes_mse=boxes_mse,
        scores_mse=boxes_mse / 1e6,
        pairs_boxes_mse=boxes_mse,
        pairs_scores_mse=boxes_mse / 1e6,
        largest_box_difference_px=boxes_mse,
        largest_score_difference=boxes_mse / 1e6,
        labels_accuracy=float(boxes_mse < 1),
        mean_iou=1,
        pairs=10,
        missed=0,
        spurious=0,
        reference_detections=10,
        candidate_detections=10,
    )
    passed = boxes_mse < 1e-4
    return Comparison(
        implementation=implementation,
        model_set="mixed",
        exact=implementation != "invalid",
        images=2,
        batch_sizes={1: 2},
        per_model=dict.fromkeys(MODELS, figures),
        overall=figures,
        gate=Gate(passed=passed, reasons=[] if passed else ["tf_efficientdet_d0: boxes MSE 9.0e+04 px²"]),
        tolerance=Gate(passed=False) if implementation == "invalid" else None,
    )


def sweep(**changes: object) -> Sweep:
    names = ("baseline", "invalid", "graphs", "fastest")
    plain = Sweep(
        started=START,
        ended=START + timedelta(minutes=5),
        settings=Settings(
            implementations=list(names),
            model_set="mixed",
            offered=[ClosedLoop(users=1), ClosedLoop(users=4)],
            processes=1,
            duration_s=20,
            warmup_requests=5,
            dataset="sample",
            images=2,
            compare_outputs=True,
            keep_requests=False,
            concurrency=1,
            max_map_loss=0.01,
            host="http://127.0.0.1:8000",
        ),
        environment=Environment(
            device="cpu",
            device_name="Some Processor",
            driver=None,
            versions={"torch": "2.15.0", "python": "3.11.7"},
            cpu_count=2,
            torch_threads=2,
            platform="Linux",
            git_revision="0123456789abcdef",
        ),
        weights=[
            ModelWeights(
                model_name=name,
                architecture=name,
                num_classes=90,
                image_size=(512, 512),
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
                interpolation="bicubic",
                fill_color=(128, 128, 128),
                configuration={},
                source="random",
                fingerprint="f" * 64,
            )
            for name in MODELS
        ],
        implementations=[ImplementationInfo(name=n, description=n, exact=True, precision="fp32") for n in names],
        runs=[
            run("baseline", 1, 0.7),
            run("baseline", 4, 0.72),
            run("invalid", 1, 90),
            run("invalid", 4, 120),
            run("fastest", 1, 2.1),
            Run(
                implementation="graphs",
                model_set="mixed",
                offered=ClosedLoop(users=1),
                verdict="failed",
                reason=f"the server ended\n{EVIL}",
            ),
            Run(
                implementation="graphs",
                model_set="mixed",
                offered=ClosedLoop(users=4),
                verdict="not_run",
                reason="an earlier failure",
            ),
        ],
        comparisons=[comparison("baseline", 0.0), comparison("invalid", 9e4), comparison("fastest", 2e-7)],
        problems=[f"graphs, 1 user: the server ended\n{EVIL}"],
    )
    return plain.model_copy(update=changes)


def reported(run_dir: Path, made: Sweep) -> str:
    (run_dir / "results.json").write_text(made.model_dump_json())
    write_reports(run_dir)
    return (run_dir / "report.html").read_text()


class Page(html.parser.HTMLParser):
    """Collects text, ids, and what a page would load from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("data:", "#")):
                self.loaded.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data

"""What a process of the load generator keeps of its answers, and the sum of several processes."""

from pathlib import Path

import pytest

from detbench.api.schemas import Inference, ModelDetections
from detbench.load.answers import DistinctAnswer, DistinctAnswers, read_answers

MODELS = ("tf_efficientdet_d0", "tf_efficientdet_d1")


def found(x: float = 10.0, score: float = 0.9, label: int = 1) -> list[ModelDetections]:
    """Two boxes of the first model, nothing of the second."""
    boxes = [(x, 20.0, 110.0, 220.0), (0.1 + 0.2, 1e-300, 1e6 / 3, 4096.0)]
    return [
        ModelDetections(model_name=MODELS[0], boxes=boxes, scores=[score, 0.1], labels=[label, 90]),
        ModelDetections(model_name=MODELS[1], boxes=[], scores=[], labels=[]),
    ]


def answer(detections: list[ModelDetections], took_ms: float = 1.0) -> Inference:
    timed = [each.model_copy(update={"inference_time_ms": took_ms}) for each in detections]
    return Inference(
        implementation="x",
        model_set="mixed",
        total_inference_time_ms=took_ms,
        timings_ms={"forward": took_ms},
        batch_size=int(took_ms),
        detections=timed,
    )


def kept(folder: Path, *processes: DistinctAnswers) -> dict[tuple[str, float, float, int], int]:
    """Counts by what `found` was called with."""
    for process in processes:
        process.write(folder)
    return {
        (each.photo, first.boxes[0][0], first.scores[0], first.labels[0]): sum(each.times.values())
        for each in read_answers(folder)
        for first in each.detections[:1]
    }


def test_answers_are_equal_whatever_they_took_and_come_back_to_the_last_digit(tmp_path: Path):
    process = DistinctAnswers()
    for took_ms in (1.0, 2.0, 3.0):
        process.add("a", answer(found(), took_ms))
    process.write(tmp_path)
    assert list(read_answers(tmp_path)) == [DistinctAnswer("a", found(), {None: 3})]


@pytest.mark.parametrize("other", [{"x": 10.000001}, {"score": 0.8999999}, {"label": 2}])
def test_another_box_score_or_label_is_another_answer(tmp_path: Path, other: dict[str, float]):
    process = DistinctAnswers()
    process.add("a", answer(found()))
    process.add("a", answer(found(**other)))
    assert list(kept(tmp_path, process).values()) == [1, 1]


def test_the_same_answer_to_another_photo_is_another_one(tmp_path: Path):
    process = DistinctAnswers()
    for photo in ("a", "b", "a"):
        process.add(photo, answer(found()))
    assert kept(tmp_path, process) == {("a", 10.0, 0.9, 1): 2, ("b", 10.0, 0.9, 1): 1}


def test_processes_add_up(tmp_path: Path):
    processes = [DistinctAnswers(), DistinctAnswers(), DistinctAnswers()]
    for number in range(30):
        processes[number % 3].add("a", answer(found(x=float(number % 2))))
    processes[2].add("b", answer(found()))
    assert kept(tmp_path, *processes) == {
        **{("a", 0.0, 0.9, 1): 15, ("a", 1.0, 0.9, 1): 15, ("b", 10.0, 0.9, 1): 1},
    }


def test_answers_are_counted_by_replica_and_kept_once(tmp_path: Path):
    processes = [DistinctAnswers(most_bytes=1000), DistinctAnswers(most_bytes=1000)]
    for number in range(100):
        processes[number % 2].add("a", answer(found()).model_copy(update={"replica": f"r{number % 20}"}))
    for process in processes:
        process.write(tmp_path)
    assert list(read_answers(tmp_path)) == [
        DistinctAnswer("a", found(), {f"r{number}": 5 for number in (*range(0, 20, 2), *range(1, 20, 2))})
    ]


def test_what_is_beyond_the_bound_is_left_out_and_what_is_kept_counts_on(tmp_path: Path):
    process = DistinctAnswers(most_bytes=1000)
    for _ in range(2):
        for number in range(100):
            process.add("a", answer(found(x=float(number))))
    counts = kept(tmp_path, process)
    assert 3 <= len(counts) < 100
    assert {x for _, x, _, _ in counts} == set(range(len(counts)))
    assert set(counts.values()) == {2}

"""The served answer of `baseline` against effdet, called as its users call it."""

from pathlib import Path

import httpx
import numpy as np
import pytest
from effdet_directly import effdet_rows
from PIL import Image
from running_server import RunningServer

from detserver.http.schemas import Timings
from detserver.models.model_sets import BUILT_IN, read_model_sets
from detserver.models.weights import WeightsStore


@pytest.mark.parametrize("name", ["quick", pytest.param("mixed", marks=pytest.mark.slow)])
def test_the_served_answer_is_effdets(
    server: RunningServer, quick: dict[str, str], store: WeightsStore, photos: list[Path], name: str
):
    file = Path(quick["DETSERVER_MODEL_SETS_FILE"])
    (model_set,) = [each for each in (*BUILT_IN, *read_model_sets(file, file.parent)) if each.name == name]
    for photo in photos[:2]:
        answers = server.infer(f"baseline?model_set={name}", files={"file": photo.read_bytes()}).json()["detections"]
        for spec, answer in zip(model_set.models, answers, strict=True):
            state = store.get(spec).state_dict
            rows = effdet_rows(spec.architecture, spec.num_classes, state, photo, dict(spec.overrides))
            assert answer["model_name"] == spec.name
            assert answer["labels"] == rows[:, 5].astype(int).tolist()
            # The same operations on the same machine; the order of a sum may differ with the number of threads.
            np.testing.assert_allclose(answer["scores"], rows[:, 4], rtol=0, atol=1e-5)
            np.testing.assert_allclose(answer["boxes"], rows[:, :4], rtol=0, atol=1e-2)


def test_boxes_lie_inside_the_uploaded_image(server: RunningServer, photos: list[Path]):
    for photo in photos[2:]:
        width, height = Image.open(photo).size
        for model in server.infer("baseline", files={"file": photo.read_bytes()}).json()["detections"]:
            boxes = np.array(model["boxes"])
            assert 0 < len(boxes) <= 100
            assert (boxes >= 0).all()
            assert (boxes[:, [0, 2]] <= width + 1e-2).all()
            assert (boxes[:, [1, 3]] <= height + 1e-2).all()
            assert model["scores"] == sorted(model["scores"], reverse=True)


def test_times_add_up(server: RunningServer, photos: list[Path]):
    answer = server.infer("baseline", files={"file": photos[0].read_bytes()}).json()
    stages = answer["timings_ms"]
    assert list(stages) == list(Timings.model_fields)
    assert answer["total_inference_time_ms"] == pytest.approx(stages["forward"] + stages["postprocess"])
    per_model = sum(model["inference_time_ms"] for model in answer["detections"])
    assert per_model == pytest.approx(answer["total_inference_time_ms"], rel=0.05)


@pytest.mark.slow
def test_two_servers_give_the_same_detections(server: RunningServer, start_server, photos: list[Path], tmp_path: Path):
    other = start_server(data_dir=str(tmp_path / "empty"), preload="none")
    for photo in photos:
        ours, theirs = (
            each.infer("baseline?model_set=mixed", files={"file": photo.read_bytes()}).json()
            for each in (server, other)
        )
        for first, second in zip(ours["detections"], theirs["detections"], strict=True):
            assert [first[key] for key in ("boxes", "scores", "labels")] == [
                second[key] for key in ("boxes", "scores", "labels")
            ]
    health = [httpx.get(f"{each.url}/health").json()["model_sets"][0] for each in (server, other)]
    assert health[0] == health[1]

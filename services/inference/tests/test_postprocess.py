"""Post-processing against effdet's own, on the same raw outputs."""

import pytest
import torch
from effdet.anchors import Anchors
from effdet.bench import _batch_detection, _post_process
from effdet.config import get_efficientdet_config

from detserver import postprocess
from detserver.models.model_sets import ModelSpec
from detserver.postprocess import PostProcessor, RawOutput, is_complete

D0 = "tf_efficientdet_d0"
SPECS = [ModelSpec("a", D0, 90), ModelSpec("b", D0, 7)]
SCALES = torch.tensor([[1.25, 0.5, 3.0]] * 2)
SIZES = torch.tensor([[640.0, 480.0], [256.0, 200.0], [1000.0, 1536.0]])


def raw_outputs(spec: ModelSpec, batch: int = 3, mean: float = -7.0, step: float = 0.0) -> RawOutput:
    """Random outputs; logits are multiples of `step`, so that there are ties, unless it is 0."""
    generator = torch.Generator().manual_seed(spec.num_classes)
    sizes = [64, 32, 16, 8, 4]
    logits = [torch.randn(batch, 9 * spec.num_classes, s, s, generator=generator) * 2 + mean for s in sizes]
    boxes = [torch.randn(batch, 36, s, s, generator=generator) * 0.3 for s in sizes]
    return [(level / step).round() * step if step else level for level in logits], boxes


def by_effdet(spec: ModelSpec, raw: RawOutput, scales: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    config = get_efficientdet_config(spec.architecture)
    classes, boxes, indices, ids = _post_process(*map(list, raw), num_levels=5, num_classes=spec.num_classes)
    anchors = Anchors.from_config(config).boxes
    return _batch_detection(len(sizes), classes, boxes, anchors, indices, ids, scales, sizes)


def assert_equal_but_for_ties(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Rows (100, 6) are equal in order where scores differ, and as sets where scores are equal; the last tie is cut."""
    assert torch.equal(found[:, 4], expected[:, 4])
    last = expected[-1, 4]
    for score in expected[:, 4].unique():
        rows = [{tuple(row.tolist()) for row in each[each[:, 4] == score]} for each in (found, expected)]
        assert rows[0] == rows[1] or (score == last and score > 0)


@pytest.fixture(params=["eager", "fixed shape"])
def detections(request: pytest.FixtureRequest):
    def run(processor: PostProcessor, raw: list[RawOutput], scales: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        if request.param == "eager":
            return processor(raw, scales, sizes)
        rows = processor.fixed_shape(raw, scales, sizes)
        return rows[..., :6] if is_complete(rows) else processor.all_candidates(raw, scales, sizes)

    return run


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_two_models_and_three_images_at_once_are_effdets(detections, memory_format: torch.memory_format):
    raw = [raw_outputs(spec) for spec in SPECS]
    expected = [by_effdet(spec, each, s, SIZES) for spec, each, s in zip(SPECS, raw, SCALES, strict=True)]
    assert all(len(rows) == 100 and (rows[:, 5] > 0).all() for per_model in expected for rows in per_model)
    raw = [tuple([level.contiguous(memory_format=memory_format) for level in part] for part in each) for each in raw]
    found = detections(PostProcessor(SPECS, torch.device("cpu")), raw, SCALES, SIZES)
    assert torch.equal(found, torch.stack(expected))


def test_ties_are_kept_together(detections):
    raw = [raw_outputs(spec, step=0.5) for spec in SPECS]
    found = detections(PostProcessor(SPECS, torch.device("cpu")), raw, SCALES, SIZES)
    for spec, each, scales, rows in zip(SPECS, raw, SCALES, found, strict=True):
        expected = by_effdet(spec, each, scales, SIZES)
        assert (expected[:, :-1, 4] == expected[:, 1:, 4]).any()
        # 5000 candidates are cut in the middle of a tie, too: what is above that is decided without it.
        for mine, theirs in zip(rows, expected, strict=True):
            assert_equal_but_for_ties(mine, theirs)


def test_where_nothing_is_found_the_lowest_scores_are_effdets(detections):
    spec = SPECS[1]
    raw = raw_outputs(spec, mean=-40)
    found = detections(PostProcessor([spec], torch.device("cpu")), [raw], SCALES[:1], SIZES)
    expected = by_effdet(spec, raw, SCALES[0], SIZES)
    assert expected[..., 4].max() < 1e-9
    assert torch.equal(found[0], expected)


def test_less_than_100_detections_are_found_among_all_candidates_and_padded(detections):
    """Boxes so large that each covers the picture: one is left of each class, and zeros up to 100 rows."""
    spec = SPECS[1]
    logits, boxes = raw_outputs(spec)
    for level in boxes:
        level.view(3, 9, 4, *level.shape[2:])[:, :, 2:] += 8
    expected = by_effdet(spec, (logits, boxes), SCALES[0], SIZES)
    assert ((expected[..., 5] > 0).sum(dim=1) == spec.num_classes).all()
    found = detections(PostProcessor([spec], torch.device("cpu")), [(logits, boxes)], SCALES[:1], SIZES)
    assert torch.equal(found[0], expected)


def test_a_chain_of_boxes_longer_than_the_rounds_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """Each box suppresses the next: every second one stays, which takes as many rounds as there are boxes."""
    left = torch.arange(40.0) * 3
    boxes = torch.stack([left, left * 0, left + 10, left * 0 + 10], dim=-1)
    keep, settled = postprocess._suppressed_in_rounds(boxes)
    assert not settled
    monkeypatch.setattr(postprocess, "_ROUNDS", 41)
    keep, settled = postprocess._suppressed_in_rounds(boxes)
    assert settled
    assert keep.tolist() == [index % 2 == 0 for index in range(40)]


def test_bfloat16_outputs_are_decoded_in_float32():
    spec = SPECS[1]
    logits, boxes = raw_outputs(spec)
    low = [level.bfloat16() for level in logits], [level.bfloat16() for level in boxes]
    same = [level.float() for level in low[0]], [level.float() for level in low[1]]
    processor = PostProcessor([spec], torch.device("cpu"))
    assert torch.equal(processor([low], SCALES[:1], SIZES), processor([same], SCALES[:1], SIZES))

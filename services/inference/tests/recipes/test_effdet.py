"""Baseline's post-processing: that it is effdet's own is in test_baseline, against a server."""

import torch

from detserver.recipes.build import batch_sizes, why_not
from detserver.recipes.recipe import Recipe

CPU = torch.device("cpu")


def test_it_takes_one_image_and_one_network_at_a_time(build, images):
    assert batch_sizes(Recipe(), CPU) == (1,)
    ((answer,), times) = (build(Recipe()).detect(images[:1]), [])
    times = [output.inference_time_ms for output in answer]
    assert len(times) == 3
    assert all(time > 0 for time in times)
    assert "one network at a time" in str(why_not(Recipe(fold=True, stack="grouped"), CPU))


def test_its_stages_are_counted(build, images):
    baseline = build(Recipe())
    baseline.detect(images[:1])
    stages = baseline._plan.stopwatch.take()
    assert stages.keys() == {"forward", "postprocess"}
    assert all(seconds > 0 for seconds in stages.values())

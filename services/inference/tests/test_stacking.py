"""Networks of one architecture run as one: the same raw outputs, and as many convolutions as one network has."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detserver.errors import CannotRun
from detserver.implementations import vmap
from detserver.models.model_sets import BUILT_IN, ModelSet
from detserver.models.weights import WeightsStore
from detserver.postprocess import RawOutput
from detserver.recipes import stacking
from detserver.recipes.folding import fold_batch_norm
from detserver.recipes.grouping import GroupedEfficientDet

MIXED, UNIFORM = BUILT_IN
TWO_AND_ONE = ModelSet("two D0, one D1", (UNIFORM.models[1], MIXED.models[1], UNIFORM.models[2]))
STACKS: dict[str, Callable[..., stacking.Stack]] = {
    "grouped": GroupedEfficientDet,
    "grouped, products": lambda models: GroupedEfficientDet(models, products=True),
    "vmap": vmap.stack,
}


class CountConvolutions(TorchDispatchMode):
    """Counts calls of convolutions and batched products below autograd, vmap and modules."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.bmm, torch.ops.aten.baddbmm)
        return func(*args, **(kwargs or {}))


def pixels(batch: int, size: int = 512) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def assert_close(found: Sequence[RawOutput], expected: Sequence[RawOutput]) -> None:
    """Raw logits and box codes within 1e-4 of the largest of the level."""
    for ours, theirs in zip(found, expected, strict=True):
        for part, reference in zip(ours, theirs, strict=True):
            for level, own in zip(part, reference, strict=True):
                assert level.shape == own.shape
                assert (level - own).abs().max() < 1e-4 * own.abs().max()


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("batch", [1, 4])
@torch.inference_mode()
def test_raw_outputs_are_each_networks_own(store: WeightsStore, name: str, batch: int):
    expected = [store.model(spec)(pixels(batch)) for spec in UNIFORM.models]
    assert_close(STACKS[name]([store.model(spec) for spec in UNIFORM.models])(pixels(batch)), expected)


@pytest.mark.parametrize("name", STACKS)
@torch.no_grad()  # in inference mode a dispatch mode does not see what a composite operator calls
def test_three_networks_take_as_many_convolutions_as_one(store: WeightsStore, name: str):
    one = fold_batch_norm(store.model(UNIFORM.models[0]))
    run = STACKS[name]([store.model(spec) for spec in UNIFORM.models])
    with CountConvolutions() as of_one:
        one(pixels(1))
    with CountConvolutions() as of_three:
        run(pixels(1))
    assert of_three.count == of_one.count > 200


def test_what_is_of_one_architecture_is_found():
    assert stacking.members(TWO_AND_ONE) == [[0, 2], [1]]
    assert stacking.unsupported_reason(TWO_AND_ONE) is None
    assert stacking.unsupported_reason(UNIFORM) is None
    reason = stacking.unsupported_reason(MIXED)
    assert reason is not None
    assert "tf_efficientdet_d0, tf_efficientdet_d1, tf_efficientdet_d2" in reason


@pytest.mark.parametrize("name", STACKS)
@torch.inference_mode()
def test_two_are_stacked_and_the_third_runs_beside_them(store: WeightsStore, name: str):
    inputs = {config: pixels(1, *config.size[:1]) for config in TWO_AND_ONE.inputs}
    expected = [store.model(spec)(inputs[spec.input]) for spec in TWO_AND_ONE.models]
    sizes = []

    def stack(models):
        sizes.append(len(models))
        return STACKS[name](models)

    forward = stacking.stacked_forward(TWO_AND_ONE, [store.model(spec) for spec in TWO_AND_ONE.models], stack)
    assert sizes == [2, 1]
    assert_close(forward(inputs), expected)


def test_a_backbone_of_another_kind_is_refused(store: WeightsStore):
    models = [store.model(UNIFORM.models[0]) for _ in range(2)]
    for model in models:
        model.backbone = torch.nn.Identity()
    with pytest.raises(CannotRun, match="a backbone of type Identity"):
        GroupedEfficientDet(models)

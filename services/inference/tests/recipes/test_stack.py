"""Networks of one architecture run as one: the same answers, and as many convolutions as one network has."""

from collections.abc import Callable, Sequence

import pytest
import torch
from effdet.efficientdet import EfficientDet
from same_answers import assert_raw_close
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from detserver.errors import CannotRun
from detserver.models.model_sets import BUILT_IN
from detserver.recipes.build import why_not
from detserver.recipes.folding import fold_batch_norm
from detserver.recipes.grouping import GroupedEfficientDet
from detserver.recipes.recipe import Recipe
from detserver.recipes.stacks import groups
from detserver.recipes.techniques.vmap import StackedEfficientDet

MIXED, UNIFORM = BUILT_IN
STACKS: dict[str, Callable[[Sequence[EfficientDet]], nn.Module]] = {
    "grouped": GroupedEfficientDet,
    "grouped-products": lambda models: GroupedEfficientDet(models, products=True),
    "vmap": StackedEfficientDet,
}


class CountConvolutions(TorchDispatchMode):
    """Counts calls of convolutions and batched products below autograd, vmap and modules."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.bmm, torch.ops.aten.baddbmm)
        return func(*args, **(kwargs or {}))


def pixels(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[] if each == "grouped" else [pytest.mark.slow]) for each in STACKS]
)
def test_it_gives_baselines_answers(has_parity, name: str):
    has_parity(Recipe(fold=True, stack=name, postprocess="batched"))


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("batch", [1, 4])
@torch.inference_mode()
def test_raw_outputs_are_each_networks_own(store, small, name: str, batch: int):
    members, _ = groups(small.models)
    expected = [store.model(spec)(pixels(batch)) for spec in members]
    stacked = STACKS[name]([fold_batch_norm(store.model(spec)) for spec in members])
    assert_raw_close(stacked(pixels(batch)), expected)


@pytest.mark.parametrize("name", STACKS)
@torch.no_grad()  # in inference mode a dispatch mode does not see what a composite operator calls
def test_three_networks_take_as_many_convolutions_as_one(store, small, name: str):
    members, _ = groups(small.models)
    one, *three = (fold_batch_norm(store.model(spec)) for spec in (members[0], *members, members[0]))
    run = STACKS[name](three)
    with CountConvolutions() as of_one:
        one(pixels(1))
    with CountConvolutions() as of_three:
        run(pixels(1))
    assert of_three.count == of_one.count > 200


@pytest.mark.slow
def test_batch_norms_can_be_stacked_by_vmap_but_not_grouped(has_parity):
    has_parity(Recipe(stack="vmap", postprocess="batched"))
    assert "needs fold" in str(why_not(Recipe(stack="grouped", postprocess="batched"), torch.device("cpu")))


def test_what_is_of_one_architecture_is_found_and_the_rest_runs_beside_it(small, build):
    assert [[spec.name for spec in group] for group in groups(small.models)] == [["seven", "ninety"], ["other"]]
    recipe = Recipe(fold=True, stack="grouped", postprocess="batched")
    assert [len(network.specs) for network in build(recipe)._plan.networks] == [2, 1]
    assert why_not(recipe, model_set=small) is why_not(recipe, model_set=UNIFORM) is None
    assert "tf_efficientdet_d0, tf_efficientdet_d1, tf_efficientdet_d2" in str(why_not(recipe, model_set=MIXED))


def test_a_backbone_of_another_kind_is_refused(store):
    models = [fold_batch_norm(store.model(UNIFORM.models[0])) for _ in range(2)]
    for model in models:
        model.backbone = torch.nn.Identity()
    with pytest.raises(CannotRun, match="a backbone of type Identity"):
        GroupedEfficientDet(models)

"""The table of recipes, and what else is an implementation."""

from dataclasses import replace

import pytest
import torch

from detserver.implementations import Registry
from detserver.implementations.from_recipe import Row, of_row
from detserver.implementations.table import ROWS
from detserver.recipes.recipe import DEFAULTS, Recipe, Search
from detserver.recipes.techniques import all_techniques

CPU = torch.device("cpu")


def test_each_row_differs_from_the_one_it_adds_to_in_one_field_and_follows_it():
    rows = {row.name: row for row in ROWS}
    for number, row in enumerate(ROWS):
        if row.adds_to is None:
            assert row.name == "baseline" or isinstance(row.recipe, Search)
            continue
        parent = rows[row.adds_to]
        assert parent in ROWS[:number]
        changed = [name for name in vars(row.recipe) if vars(row.recipe)[name] != vars(parent.recipe)[name]]
        assert len(changed) == 1, row.name


def test_every_technique_is_of_a_field_and_its_value_is_one_of_that_field():
    assert {field for field, _ in all_techniques()} == {*DEFAULTS}
    with pytest.raises(LookupError, match="no technique stack=pile"):
        of_row(Row("piled", replace(Recipe(), stack="pile"), "for the tests"), None)  # type: ignore[arg-type]


def test_a_row_that_changes_two_things_at_once_is_refused():
    row = Row("two", Recipe(fold=True, layout="channels_last"), "for the tests", "baseline")
    with pytest.raises(ValueError, match="two differs from baseline, which it adds to, in fold, layout, not in one"):
        of_row(row, ROWS[0])


def test_what_is_float32_claims_to_be_exact_and_nothing_else_does():
    listed = Registry().all
    assert [name for name, each in listed.items() if not each.exact] == [
        *("invalid", "tf32", "fp16", "openvino-int8", "fastest-bf16", "fastest-fp16")
    ]


def test_what_needs_a_gpu_says_so_in_a_line():
    listed = Registry().all
    for name in ("streams", "graphs", "reduce-overhead", "tf32", "fp16", "fastest-fp16"):
        reason = listed[name].unavailable_reason(CPU)
        assert reason is not None, name
        assert "GPU" in reason
        assert "\n" not in reason
    for name in ("baseline", "postprocess", "channels-last", "folded", "vmap", "grouped", "fastest", "fastest-bf16"):
        assert listed[name].unavailable_reason(CPU) is None

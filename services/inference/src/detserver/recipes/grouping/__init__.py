"""Several networks of one architecture as one: really one forward pass, in which every convolution is of all members.

Activations of N members lie side by side as (B, N x C, H, W), member by member. A convolution of groups g becomes one
of N x g groups; what works on each channel alone stays as it is. Built by walking the module trees of the members side
by side, one rule per module type; a type without a rule is an error that names it.

    network = GroupedEfficientDet(models)
    raw_outputs = network(pixels)
"""

from detserver.recipes.grouping.network import GroupedEfficientDet
from detserver.recipes.grouping.rules import group

__all__ = ["GroupedEfficientDet", "group"]

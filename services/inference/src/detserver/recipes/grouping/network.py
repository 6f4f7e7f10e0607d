"""The grouped network as a whole."""

from collections.abc import Sequence

import torch
from effdet.efficientdet import EfficientDet
from timm.models.efficientnet import EfficientNetFeatures
from torch import nn

from detserver.errors import CannotRun
from detserver.postprocess import RawOutput
from detserver.recipes.grouping import convolution, fusion  # noqa: F401 (they register their rules)
from detserver.recipes.grouping.convolution import group_shared_input, pointwise_as_products
from detserver.recipes.grouping.heads import classes_of, cut_classes, pad_class_heads
from detserver.recipes.grouping.rules import group, group_children


class GroupedEfficientDet(nn.Module):
    """N networks of one architecture as one.

    Args:
        models: effdet networks in evaluation mode without batch norms (`fold_batch_norm`), whose class heads may differ
            in width. They are changed.
        products: run 1x1 convolutions as batched matrix products instead of as grouped convolutions.

    Raises:
        CannotRun: they differ in architecture, or hold a module that no rule knows.
    """

    def __init__(self, models: Sequence[EfficientDet], products: bool = False) -> None:
        super().__init__()
        self._classes = [classes_of(model) for model in models]
        self._widest = max(self._classes)
        pad_class_heads(models)
        self.backbone = _group_backbone([model.backbone for model in models])
        self.fpn, self.class_net, self.box_net = (
            group([getattr(model, part) for model in models]) for part in ("fpn", "class_net", "box_net")
        )
        if products:
            pointwise_as_products(self, len(models))

    def forward(self, pixels: torch.Tensor) -> list[RawOutput]:
        """Each member's raw outputs.

        Args:
            pixels: (B, 3, height, width), the same for all members.
        """
        features = self.fpn(self.backbone(pixels))
        classes, boxes = self.class_net(features), self.box_net(features)
        members = len(self._classes)
        class_parts = [level.chunk(members, dim=1) for level in classes]
        box_parts = [level.chunk(members, dim=1) for level in boxes]
        return [
            (
                cut_classes([level[member] for level in class_parts], num_classes, self._widest),
                [level[member] for level in box_parts],
            )
            for member, num_classes in enumerate(self._classes)
        ]


def _group_backbone(backbones: Sequence[EfficientNetFeatures]) -> nn.Module:
    if any(type(backbone) is not EfficientNetFeatures or backbone.feature_hooks is not None for backbone in backbones):
        raise CannotRun(f"cannot be grouped: a backbone of type {type(backbones[0]).__name__}")
    stem = group_shared_input([backbone.conv_stem for backbone in backbones])
    return group_children(backbones, conv_stem=stem)

"""Variants of the network: batch normalization of parts of a batch, and deeper stacks."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

import utils
from models import conv_block
from runs import Recipe


class GhostNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d that in training normalizes each part of `ghost` images separately.

    These are ghost batches (Hoffer et al. 2017). Running averages move once per step, towards the
    means of the parts' statistics. A loop is faster than a view of the parts as channels, which
    would need the contiguous memory format.
    """

    def __init__(self, channels: int, ghost: int):
        super().__init__(channels)
        self.ghost = ghost

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # `update_bn` sets the momentum to None and wants the statistics of whole batches.
        if not self.training or self.momentum is None or len(x) <= self.ghost:
            return super().forward(x)
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        parts = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, 1 / i, self.eps)
            for i, part in enumerate(x.split(self.ghost), 1)  # 1 / i: to average over the parts
        ]
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)
        return torch.cat(parts)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost={self.ghost}"


# How many blocks of the same width and size are added after each named block, by depth, which is
# the number of 3x3 convolutions as a multiple of the network's eight.
ADDED = {1: {}, 2: {"C5": 3, "C6": 2, "C9": 3}, 4: {"C5": 8, "C6": 8, "C9": 8}}


def make_network(arm: str, recipe: Recipe, ghost: int = 0, depth: int = 1) -> nn.Module:
    """Return the recipe's network, with GhostNorm if `ghost`, and `depth` times as deep."""
    model, layers = utils.make_model(arm, recipe), {}
    for name, layer in model.layers.named_children():
        layers[name] = layer
        for letter in "bcdefghi"[: ADDED[depth].get(name, 0)]:
            width, options = layer.conv.out_channels, {"groups": recipe.groups, "padding": 1}
            options["dropout"] = recipe.dropout
            layers[name + letter] = conv_block(width, width, norm=arm, **options)
    model.layers = nn.Sequential(OrderedDict(layers))
    for block in model.layers if ghost else ():
        if hasattr(block, "norm"):
            block.norm = GhostNorm(block.norm.num_features, ghost)
    return model

"""Networks that a claim varies: a ghost batch by itself, and a stack that is deeper in place."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import utils
from experiments.variants import GhostNorm, make_network
from runs import RECIPES

MUON = RECIPES["muon"]


def test_each_ghost_batch_is_normalized_by_itself():
    layer, ordinary, images = GhostNorm(3, 4), nn.BatchNorm2d(3), torch.randn(10, 3, 5, 5)
    with torch.no_grad():
        images[:4] += 3
        layer.weight += torch.rand(3)
    parts, output = images.split(4), layer(images)  # the last one has two images
    for part, normalized in zip(parts, output.split(4), strict=True):
        alone = F.batch_norm(part, None, None, layer.weight, layer.bias, training=True)
        torch.testing.assert_close(normalized, alone)
    mean = torch.stack([part.mean(dim=(0, 2, 3)) for part in parts]).mean(dim=0)
    var = torch.stack([part.var(dim=(0, 2, 3)) for part in parts]).mean(dim=0)
    torch.testing.assert_close(layer.running_mean, 0.1 * mean)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * var)
    ordinary.load_state_dict(layer.state_dict())
    assert layer.eval()(images).equal(ordinary.eval()(images))


@pytest.mark.parametrize("arm", ["none", "bn"])
def test_a_deeper_network_repeats_its_convolutions_in_place(arm):
    torch.manual_seed(1)
    shallow = make_network(arm, MUON).state_dict()
    torch.manual_seed(1)
    ordinary = utils.make_model(arm, MUON).state_dict()
    assert all(shallow[name].equal(ordinary[name]) for name in shallow | ordinary)
    names = "C1 C2 c3 P1 C4 C5 C5b C5c C5d C6 C6b C6c c7 P2 C8 C9 C9b C9c C9d C10 GAP c11"
    for depth in (1, 2, 4):
        x, sizes, model = torch.zeros(2, 3, 32, 32), {}, make_network(arm, MUON, depth=depth)
        for name, layer in model.layers.named_children():
            x = sizes[name] = layer(x)
        assert list(sizes) == names.split() or depth != 2
        blocks = {name: part.shape[1:] for name, part in sizes.items() if name[0] == "C"}
        assert len(blocks) == 8 * depth
        assert all(size == blocks[name.rstrip("bcdefghi")] for name, size in blocks.items())
        assert x.shape == (2, 10, 1, 1)

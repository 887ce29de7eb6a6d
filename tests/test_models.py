"""The networks: their layers, shapes and parameters, and what each normalization does."""

import math

import pytest
import torch
from torch import nn

import models
from common import OUR_NORMS
from models import Session8Net, conv_block, get_norm

# layer: weights, affine parameters of its norm, output channels, output height and width
TABLE = {
    "C1": (432, 32, 16, 30),
    "C2": (4608, 64, 32, 28),
    "c3": (512, 0, 16, 28),
    "P1": (0, 0, 16, 14),
    "C4": (3456, 48, 24, 14),
    "C5": (6912, 64, 32, 14),
    "C6": (11520, 80, 40, 12),
    "c7": (640, 0, 16, 12),
    "P2": (0, 0, 16, 6),
    "C8": (3456, 48, 24, 6),
    "C9": (6912, 64, 32, 6),
    "C10": (9216, 64, 32, 4),
    "GAP": (0, 0, 32, 1),
    "c11": (320, 0, 10, 1),
}
BLOCKS = [name for name in TABLE if name.startswith("C")]
norms = pytest.mark.parametrize("norm", OUR_NORMS)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@norms
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_session8_has_the_table_s_layers_parameters_and_shapes(norm, dropout):
    model = Session8Net(norm, dropout=dropout)
    assert count(model) == 48_448
    assert [name for name, _ in model.layers.named_children()] == list(TABLE)
    x = torch.rand(2, 3, 32, 32)
    for name, (weights, affine, channels, size) in TABLE.items():
        layer = getattr(model.layers, name)
        x = layer(x)
        assert count(layer) == weights + affine, name
        assert x.shape == (2, channels, size, size), name
        if name in BLOCKS:
            assert count(layer.norm) == affine


@norms
def test_every_block_has_the_norm_asked_for_and_no_other(norm):
    found = {
        name: module
        for name, module in Session8Net(norm).named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm | models.ScaleAndShift)
    }
    assert list(found) == [f"layers.{name}.norm" for name in BLOCKS]
    kinds = {"bn": nn.BatchNorm2d, "gn": models.GroupNorm, "ln": nn.GroupNorm}
    for module in found.values():
        assert type(module) is kinds.get(norm, models.ScaleAndShift)
        if norm in ("gn", "ln"):
            assert module.num_groups == {"gn": 4, "ln": 1}[norm]


@norms
def test_a_norm_starts_as_no_scale_and_no_shift(norm):
    layer = get_norm(norm, 8)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert torch.equal(layer.weight, torch.ones(8))
    assert torch.equal(layer.bias, torch.zeros(8))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_group_norm_is_pytorchs_whatever_the_memory_format(precision):
    x, gradient = torch.randn(2, 8, 16, 10, 10, generator=torch.Generator().manual_seed(0))
    outcomes = []
    for layer in (nn.GroupNorm(4, 16), get_norm("gn", 16)):
        leaf = x.to(precision).to(memory_format=torch.channels_last).requires_grad_()
        leaf.register_hook(outcomes.append)  # the gradient, as it comes
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            y = layer(leaf.clone())  # not a leaf, as in a network
        y.backward(gradient.to(precision).to(memory_format=torch.channels_last))
        outcomes += [y.detach(), layer.weight.grad, layer.bias.grad]
    for theirs, ours in zip(outcomes[:4], outcomes[4:], strict=True):
        torch.testing.assert_close(ours, theirs)
    for tensor in outcomes[4:6]:  # the gradient of the input, and the output
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@norms
def test_a_block_is_convolution_relu_norm_dropout_without_bias(norm):
    block = conv_block(16, 24, norm, padding=1, dropout=0.05)
    assert [name for name, _ in block.named_children()] == ["conv", "relu", "norm", "dropout"]
    assert block.conv.bias is None
    assert block.conv.kernel_size == (3, 3)
    assert block.conv.padding == (1, 1)
    assert block.dropout.p == 0.05
    x = torch.rand(2, 16, 6, 6)
    block.eval()
    assert torch.equal(block(x), block.norm(block.conv(x).relu()))


def test_dropout_is_in_every_block_but_the_first_and_nowhere_at_0():
    layers = Session8Net("bn", dropout=0.05).layers
    assert [name for name in BLOCKS if hasattr(getattr(layers, name), "dropout")] == BLOCKS[1:]
    assert not any(isinstance(module, nn.Dropout) for module in Session8Net("bn").modules())


@pytest.mark.parametrize(
    ("norm", "axes"),
    [("bn", (0, 3, 4, 2)), ("gn", (2, 3, 4)), ("ln", (1, 2, 3, 4))],
    ids=["bn", "gn", "ln"],
)
def test_a_norm_is_the_formula_over_its_axes(norm, axes):
    x = torch.randn(5, 8, 3, 3) * 3 + 2
    # (image, group, channel of the group, row, column); for bn each channel is a group
    split = x.view(5, 8, 1, 3, 3) if norm == "bn" else x.view(5, 4, 2, 3, 3)
    centred = split - split.mean(axes, keepdim=True)
    expected = centred / (split.var(axes, keepdim=True, unbiased=False) + 1e-5).sqrt()
    module = get_norm(norm, 8)
    torch.testing.assert_close(module(x), expected.view_as(x), atol=1e-5, rtol=1e-5)
    nn.init.constant_(module.weight, 2.0)
    module.bias.data = torch.arange(8.0)
    shifted = 2 * expected.view_as(x) + torch.arange(8.0).view(1, 8, 1, 1)
    torch.testing.assert_close(module(x), shifted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_none_scales_and_shifts_each_channel_and_has_no_statistics(precision):
    x = (torch.randn(5, 8, 3, 3) * 3 + 2).to(precision)
    layer = get_norm("none", 8)
    assert torch.equal(layer(x), x)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    weight, bias = (p.detach().to(precision).view(1, 8, 1, 1) for p in (layer.weight, layer.bias))
    for training in (True, False):
        y = layer.train(training)(x)
        assert y.dtype == precision
        assert torch.equal(y, weight * x + bias)
    assert list(layer.buffers()) == []
    before = [parameter.clone() for parameter in layer.parameters()]
    layer(100 * x)
    assert all(map(torch.equal, before, layer.parameters()))


def test_none_keeps_the_memory_format():
    x = torch.rand(2, 8, 6, 6).to(memory_format=torch.channels_last)
    assert get_norm("none", 8)(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("norm", ["BN", "", None, "instance", "None"])
def test_an_unknown_norm_is_refused_with_the_known_ones(norm):
    for make in (Session8Net, lambda norm: get_norm(norm, 8)):
        with pytest.raises(ValueError, match=f"{norm!r}, but ") as error:
            make(norm)
        assert all(repr(name) in str(error.value) for name in OUR_NORMS)


def test_the_norm_cannot_be_left_out():
    with pytest.raises(TypeError):
        Session8Net()
    with pytest.raises(TypeError):
        conv_block(3, 16)


@pytest.mark.parametrize("groups", [3, 5, 16])
def test_groups_that_do_not_divide_every_layer_are_refused(groups):
    with pytest.raises(ValueError, match=f"groups={groups} .* channels"):
        Session8Net("gn", groups=groups)


@pytest.mark.parametrize("norm", OUR_NORMS)
@pytest.mark.parametrize("groups", [0, -4, 2.0, None, True])
def test_groups_that_are_no_number_are_refused_with_any_norm(norm, groups):
    with pytest.raises(ValueError, match=f"groups={groups}, but must be a whole number"):
        Session8Net(norm, groups=groups)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_groups_that_divide_every_layer_are_taken(groups):
    model = Session8Net("gn", groups=groups)
    assert count(model) == 48_448
    assert model.layers.C6.norm.num_groups == groups


BAD = {
    "images too small": (torch.rand(2, 3, 8, 8), "[Kk]ernel size|too small"),
    "grey images": (torch.rand(2, 1, 32, 32), "3 channels"),
    "uint8 images": (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "type"),
    "channels last": (torch.rand(2, 32, 32, 3), "3 channels"),
}


@norms
@pytest.mark.parametrize("name", BAD)
def test_images_that_the_network_cannot_take_are_an_error_that_says_why(name, norm):
    images, message = BAD[name]
    with pytest.raises(RuntimeError, match=message):
        Session8Net(norm)(images)


@pytest.mark.parametrize("dropout", [-0.1, 1, 1.1, math.nan])
def test_a_dropout_that_is_no_probability_is_refused(dropout):
    with pytest.raises(ValueError, match=f"dropout is {dropout}.* from 0 to below 1"):
        Session8Net("bn", dropout=dropout)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Session6Net", 18_934), ("Session7Step1Net", 7_547), ("Session7Step2Net", 7_873)],
)
def test_the_older_models_have_the_published_parameter_counts(name, parameters):
    model = getattr(models, name)()
    assert count(model) == parameters
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_session6_averages_faster_from_the_second_block_on():
    norms = [m for m in models.Session6Net().modules() if isinstance(m, nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == [0.1, 0.2, 0.2, 0.2, 0.2, 0.2]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@norms
def test_the_output_is_float32_log_probabilities(norm, precision):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        output = Session8Net(norm)(torch.rand(4, 3, 32, 32))
    assert output.shape == (4, 10)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.exp().sum(dim=1), torch.ones(4))


@norms
def test_only_batch_norm_lets_one_image_change_another_s_result(norm):
    generator = torch.Generator().manual_seed(0)
    images, others = torch.rand(2, 4, 3, 32, 32, generator=generator)
    others[0] = images[0]
    model = Session8Net(norm).train()
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh network hardly looks at its images
            parameter.mul_(2 if parameter.ndim > 1 else 1)
        same = torch.allclose(model(images)[0], model(others)[0], atol=1e-6)
    assert same == (norm != "bn")


@norms
def test_only_batch_norm_has_something_to_remember_besides_its_parameters(norm):
    assert bool(list(Session8Net(norm).buffers())) == (norm == "bn")


@norms
def test_a_constructor_prints_nothing_and_leaves_the_seed_alone(norm, capsys):
    torch.manual_seed(1)
    first = Session8Net(norm)
    second = Session8Net(norm)
    assert capsys.readouterr() == ("", "")
    assert not torch.equal(first.layers.C1.conv.weight, second.layers.C1.conv.weight)
    torch.manual_seed(1)
    assert torch.equal(first.layers.C1.conv.weight, Session8Net(norm).layers.C1.conv.weight)

"""The networks: their layers, shapes and parameters, and what each normalization does."""

import pytest
import torch
from torch import nn

import models
from common import OUR_NORMS, draw_images
from models import Session8Net, get_norm

norms = pytest.mark.parametrize("norm", OUR_NORMS)
precisions = pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def autocast(precision):
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)


@norms
def test_session8_has_the_parameters_and_the_norm_asked_for_in_every_block(norm):
    """Its layers and shapes are those of the front page's table: see test_pages."""
    model = Session8Net(norm, dropout=0.05)
    kind = {"bn": nn.BatchNorm2d, "gn": models.GroupNorm, "ln": nn.GroupNorm}.get(norm)
    assert count(model) == 48_448
    blocks = [layer for name, layer in model.layers.named_children() if name.startswith("C")]
    assert len(blocks) == 8
    for block in blocks:
        parts = ["conv", "relu", "norm", "dropout"][: 3 if block is blocks[0] else 4]
        assert [part for part, _ in block.named_children()] == parts
        assert type(block.norm) is (kind or models.ScaleAndShift)
        assert getattr(block.norm, "num_groups", None) == {"gn": 4, "ln": 1}.get(norm)
        x = torch.rand(2, block.conv.in_channels, 6, 6)
        assert torch.equal(block.eval()(x), block.norm(block.conv(x).relu()))
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.05}
    assert not any(isinstance(module, nn.Dropout) for module in Session8Net(norm).modules())
    with pytest.raises(ValueError, match=f"norm is '{norm.upper()}'.*'bn', 'gn', 'ln', 'none'"):
        Session8Net(norm.upper())


@precisions
def test_group_norm_is_pytorchs_in_the_memory_format_that_is_fast(precision, monkeypatch):
    x, gradient = torch.randn(2, 8, 16, 10, 10, generator=torch.Generator().manual_seed(0))
    outcomes, computed, group_norm = [], [], nn.functional.group_norm

    def spy(x, *rest):  # on what PyTorch's function gets, there and back
        y = group_norm(x, *rest)
        y.grad_fn.register_prehook(lambda gradients: computed.append(gradients[0]))
        computed.append(x)
        return y

    monkeypatch.setattr(nn.functional, "group_norm", spy)
    for layer in (nn.GroupNorm(4, 16), get_norm("gn", 16)):
        leaf = x.to(precision).to(memory_format=torch.channels_last).requires_grad_()
        leaf.register_hook(outcomes.append)  # the gradient, as it comes
        with autocast(precision):
            y = layer(leaf.clone())  # not a leaf, as in a network
        y.backward(gradient.to(precision).to(memory_format=torch.channels_last))
        outcomes += [y.detach(), layer.weight.grad, layer.bias.grad]
    fast = torch.contiguous_format if precision == torch.bfloat16 else torch.channels_last
    assert [tensor.is_contiguous(memory_format=fast) for tensor in computed[2:]] == [True] * 2
    for theirs, ours in zip(outcomes[:4], outcomes[4:], strict=True):
        torch.testing.assert_close(ours, theirs)
    for tensor in outcomes[4:6]:  # the gradient of the input, and the output
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("norm", "axes"), [("bn", (0, 3, 4, 2)), ("gn", (2, 3, 4)), ("ln", (1, 2, 3, 4))]
)
def test_a_norm_is_the_formula_over_its_axes(norm, axes):
    x = torch.randn(5, 8, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + 2
    # (image, group, channel of the group, row, column); for bn each channel is a group
    split = x.view(5, 8, 1, 3, 3) if norm == "bn" else x.view(5, 4, 2, 3, 3)
    centred = split - split.mean(axes, keepdim=True)
    expected = centred / (split.var(axes, keepdim=True, unbiased=False) + 1e-5).sqrt()
    module = get_norm(norm, 8)
    torch.testing.assert_close(module(x), expected.view_as(x), atol=1e-5, rtol=1e-5)
    nn.init.constant_(module.weight, 2.0)
    module.bias.data = torch.arange(8.0)
    shifted = 2 * expected.view_as(x) + module.bias.view(8, 1, 1)
    torch.testing.assert_close(module(x), shifted, atol=1e-5, rtol=1e-5)


@precisions
def test_none_scales_and_shifts_and_has_no_statistics(precision):
    x, layer = torch.randn(5, 8, 3, 3).to(precision), get_norm("none", 8)
    x = x.to(memory_format=torch.channels_last)
    assert torch.equal(layer(x), x)
    weight, bias = (nn.init.normal_(p).detach().to(precision) for p in layer.parameters())
    for training in (True, False):
        y = layer.train(training)(x)
        assert torch.equal(y, weight.view(8, 1, 1) * x + bias.view(8, 1, 1))
        assert y.is_contiguous(memory_format=torch.channels_last)


SEVEN = "10x26 21x24 9x24 9x12 12x10 16x8 16x4"  # output channels and size of each layer
SIX = "12x26 24x24 12x24 12x12 20x10 32x10 16x10 16x5 16x3 32x3 32x1"
OLDER = {
    "Session6Net": (18_934, [0.1] * 6, 0.2, SIX),
    "Session7Step1Net": (7_547, [], 0.1, f"{SEVEN} 10x1"),
    "Session7Step2Net": (7_873, [0.05] * 4, 0.1, f"{SEVEN} 16x2 16x1 20x1 10x1"),
}


@pytest.mark.parametrize("name", OLDER)
def test_the_older_models_are_the_published_ones(name):
    (parameters, dropout, momentum, expected), model = OLDER[name], getattr(models, name)()
    assert count(model) == parameters
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == dropout
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == [0.1] + [momentum] * (len(norms) - 1)
    x, shapes = torch.rand(2, 1, 28, 28), []
    for layer in model.layers:
        x = layer(x)
        shapes += [f"{x.shape[1]}x{x.shape[2]}"] if x.ndim == 4 else []
    assert " ".join(shapes) == expected


@precisions
@norms
def test_the_output_is_float32_log_probabilities(norm, precision):
    images = draw_images(2) / 255
    model = Session8Net(norm).eval()
    with autocast(precision), torch.no_grad():
        output = model(images)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.exp().sum(dim=1), torch.ones(2))


@norms
def test_only_batch_norm_lets_one_image_change_another_s_result(norm):
    images, others = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    others[0] = images[0]
    model = Session8Net(norm).train()
    models.initialize_he(model)  # a fresh network hardly looks at its images
    with torch.no_grad():
        same = torch.allclose(model(images)[0], model(others)[0], atol=1e-4)
    assert same == (norm != "bn")
    assert bool(list(model.buffers())) == (norm == "bn")

"""The networks of the experiment: one CNN for CIFAR-10 and three older ones for MNIST.

The names of layers say what they are: C is a 3x3 convolution with ReLU, normalization and dropout,
c a 1x1 convolution alone, P a 2x2 max pooling, GAP the average over all positions. The comment
after a layer is the shape of its output, channels x height x width.
"""

from collections import OrderedDict
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


def get_norm(norm: str, channels: int, groups: int = 4) -> nn.Module:
    """Return the layer that `norm` names in NORMS, with one scale and one shift per channel."""
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}, but must be one of {', '.join(map(repr, NORMS))}")
    return NORMS[norm](channels, groups)


class ScaleAndShift(nn.Module):
    """Scale and shift each channel, (N, C, H, W) -> (N, C, H, W), without normalizing."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (p.to(x.dtype).view(-1, 1, 1) for p in (self.weight, self.bias))
        return x * weight + bias


# The values of `norm`: batch, group and layer normalization, and none as the baseline.
# Layer normalization is over (C, H, W) of one image, which is group normalization with one group
# (Wu and He 2018); nn.LayerNorm would have a scale and a shift per element.
NORMS = {
    "bn": lambda channels, groups: nn.BatchNorm2d(channels),
    "gn": lambda channels, groups: GroupNorm(groups, channels),
    "ln": lambda channels, groups: nn.GroupNorm(1, channels),
    "none": lambda channels, groups: ScaleAndShift(channels),
}


def conv_block(
    in_channels, out_channels, norm: str, *, groups=4, padding=0, dropout=0.0, momentum=0.1
) -> nn.Sequential:
    """Return a 3x3 convolution, ReLU, the normalization that `norm` names, and dropout.

    `momentum` is that of batch normalization's running averages.
    """
    layers = OrderedDict(
        conv=nn.Conv2d(in_channels, out_channels, 3, padding=padding, bias=False),
        relu=nn.ReLU(inplace=True),  # the convolution's output is not needed again
        norm=get_norm(norm, out_channels, groups),
    )
    if norm == "bn":
        layers["norm"].momentum = momentum
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(layers)


class Net(nn.Module):
    """A stack of named layers that ends in log-probabilities, (N, C, H, W) -> (N, 10)."""

    def __init__(self, **layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(OrderedDict(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(self.layers(x).flatten(1).float(), dim=1)


class Session8Net(Net):
    """The experiment's CNN for (N, 3, 32, 32): 48,448 parameters with every normalization.

    `norm` is a name in NORMS. `groups` is used by "gn" and must divide 16, 24, 32 and 40. `dropout`
    is the probability of dropping an activation, after every block except the first.
    """

    def __init__(self, norm: str, groups: int = 4, dropout: float = 0.0):
        C = partial(conv_block, norm=norm, groups=groups, dropout=dropout)
        c = partial(nn.Conv2d, kernel_size=1, bias=False)
        super().__init__(
            C1=C(3, 16, dropout=0.0),  # 16 x 30 x 30
            C2=C(16, 32),  # 32 x 28 x 28
            c3=c(32, 16),  # 16 x 28 x 28
            P1=nn.MaxPool2d(2),  # 16 x 14 x 14
            C4=C(16, 24, padding=1),  # 24 x 14 x 14
            C5=C(24, 32, padding=1),  # 32 x 14 x 14
            C6=C(32, 40),  # 40 x 12 x 12
            c7=c(40, 16),  # 16 x 12 x 12
            P2=nn.MaxPool2d(2),  # 16 x 6 x 6
            C8=C(16, 24, padding=1),  # 24 x 6 x 6
            C9=C(24, 32, padding=1),  # 32 x 6 x 6
            C10=C(32, 32),  # 32 x 4 x 4
            GAP=nn.AdaptiveAvgPool2d(1),  # 32 x 1 x 1
            c11=c(32, 10),  # 10 x 1 x 1
        )


def initialize_he(model: nn.Module) -> nn.Module:
    """Redraw all convolutions in place, with variance 2 / inputs (He et al. 2015); return model."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


class Session7Step1Net(Net):
    """An older model for MNIST, kept for reference: 7,547 parameters on (N, 1, 28, 28)."""

    def __init__(self):
        C = partial(conv_block, norm="bn")
        super().__init__(
            C1=C(1, 10),  # 10 x 26 x 26
            C2=C(10, 21),  # 21 x 24 x 24
            c3=nn.Conv2d(21, 9, 1, bias=False),  # 9 x 24 x 24
            P1=nn.MaxPool2d(2),  # 9 x 12 x 12
            C4=C(9, 12),  # 12 x 10 x 10
            C5=C(12, 16),  # 16 x 8 x 8
            P2=nn.MaxPool2d(2),  # 16 x 4 x 4
            C6=nn.Conv2d(16, 10, 4, bias=False),  # 10 x 1 x 1; a 4x4 convolution alone
        )


class Session7Step2Net(Net):
    """An older model for MNIST, kept for reference: 7,873 parameters on (N, 1, 28, 28)."""

    def __init__(self):
        C = partial(conv_block, norm="bn", dropout=0.05)
        super().__init__(
            C1=C(1, 10, dropout=0.0),  # 10 x 26 x 26
            C2=C(10, 21),  # 21 x 24 x 24
            c3=nn.Conv2d(21, 9, 1, bias=False),  # 9 x 24 x 24
            P1=nn.MaxPool2d(2),  # 9 x 12 x 12
            C4=C(9, 12),  # 12 x 10 x 10
            C5=C(12, 16),  # 16 x 8 x 8
            P2=nn.MaxPool2d(2),  # 16 x 4 x 4
            C6=C(16, 16),  # 16 x 2 x 2
            GAP=nn.AdaptiveAvgPool2d(1),  # 16 x 1 x 1
            c7=nn.Sequential(nn.Conv2d(16, 20, 1), nn.ReLU()),  # 20 x 1 x 1
            c8=nn.Conv2d(20, 10, 1),  # 10 x 1 x 1
        )


class Session6Net(Net):
    """An older model for MNIST, kept for reference: 18,934 parameters on (N, 1, 28, 28)."""

    def __init__(self):
        C = partial(conv_block, norm="bn", momentum=0.2, dropout=0.1)
        c = partial(nn.Conv2d, kernel_size=1, bias=False)
        super().__init__(
            C1=C(1, 12, momentum=0.1),  # 12 x 26 x 26
            C2=C(12, 24),  # 24 x 24 x 24
            c3=c(24, 12),  # 12 x 24 x 24
            P1=nn.MaxPool2d(2),  # 12 x 12 x 12
            C4=C(12, 20),  # 20 x 10 x 10
            C5=C(20, 32, padding=1),  # 32 x 10 x 10
            c6=c(32, 16),  # 16 x 10 x 10
            P2=nn.MaxPool2d(2),  # 16 x 5 x 5
            C7=C(16, 16),  # 16 x 3 x 3
            C8=C(16, 32, padding=1),  # 32 x 3 x 3
            GAP=nn.AdaptiveAvgPool2d(1),  # 32 x 1 x 1
            flatten=nn.Flatten(),
            linear=nn.Linear(32, 10),
        )


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, except that in bfloat16 on a CPU it computes in the contiguous memory format.

    There, PyTorch's kernel for channels_last makes a training step take 1.5 times as long.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.bfloat16 or x.device.type != "cpu":
            return super().forward(x)
        x = _change_format(x, torch.contiguous_format, torch.channels_last)
        return _change_format(super().forward(x), torch.channels_last, torch.contiguous_format)


def _change_format(x: torch.Tensor, to, back) -> torch.Tensor:
    """Return `x` in the memory format `to`; its gradient comes back in the format `back`."""
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient.contiguous(memory_format=back))
    return x.contiguous(memory_format=to)

"""The path on CUDA, without a GPU: PyTorch's fake tensors have a device and a shape, no values.

Each operation refuses tensors on two devices, and each wait for a value raises.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

import runs
import utils
from common import make_run
from models import Session8Net

CUDA = torch.device("cuda", 0)


def has_fakes():
    """Tell whether fake CUDA tensors work here: PyTorch 2.9 asks the driver for some operations."""
    try:
        with FakeTensorMode():
            return torch.zeros(1, device=CUDA).uniform_().device == CUDA
    except RuntimeError:
        return False


pytestmark = pytest.mark.skipif(
    not (torch.backends.cuda.is_built() and has_fakes()),
    reason="this PyTorch has no fake CUDA tensors that need no driver",
)


@pytest.fixture(autouse=True)
def driver(monkeypatch):
    """Stand in for what asks a driver, which is not there: its answers, and the backward pass."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)


def make_parts(run, monkeypatch):
    """Return what `utils.assemble` does, made on the fake device, with made-up gradients."""
    sizes = {(7, 3, 32, 32): torch.uint8, (7,): torch.int64}
    dataset = TensorDataset(*(torch.zeros(n, dtype=t, device=CUDA) for n, t in sizes.items()))
    train_loader = utils.Loader(dataset, utils.get_train_transforms(run.recipe), 4, shuffle=True)
    test_loader = utils.Loader(dataset, utils.get_test_transforms(), 4, shuffle=False)
    with CUDA:
        model = Session8Net(run.norm, run.recipe.groups, run.recipe.dropout)

    def backward(loss):
        assert loss.device == CUDA
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    optimizer = utils.get_optimizer(model, run.recipe)
    scheduler = utils.get_scheduler(optimizer, run.recipe, len(train_loader))
    loss = utils.get_loss(run.recipe)
    return model, train_loader, test_loader, optimizer, scheduler, loss


def find_devices(nest):
    return {leaf.device for leaf in tree_leaves(nest) if isinstance(leaf, torch.Tensor)}


@pytest.mark.parametrize("precision", runs.PRECISIONS)
@pytest.mark.parametrize(
    ("recipe", "norm"), [("muon", "gn"), ("muon", "none"), ("onecycle", "bn"), ("reference", "ln")]
)
def test_a_run_stays_on_its_device_and_no_step_waits(recipe, norm, precision, monkeypatch):
    run = make_run(recipe, norm, precision=precision, rotation=5.0)
    with FakeTensorMode():
        model, train_loader, test_loader, optimizer, scheduler, loss = make_parts(run, monkeypatch)
        computed = set()
        model.layers.C2.conv.register_forward_hook(lambda *args: computed.add(args[2].dtype))
        # Training asks for the losses' values when all its steps are done, and no sooner.
        with pytest.raises(DataDependentOutputException):
            utils.train(model, train_loader, optimizer, scheduler, loss, precision)
        assert scheduler.last_epoch == len(train_loader) == 2
        prediction, labels = utils.predict(model, test_loader, precision)
        assert prediction.shape == (7, 10)
        counted = [loss(prediction, labels), utils.GetCorrectPredCount(prediction, labels)]
        constants = [step.constants for step in test_loader.transforms.transforms]
        parts = [model.state_dict(), optimizer.state_dict(), prediction, labels, counted, constants]
        assert find_devices(parts) == {CUDA}
        assert computed == {getattr(torch, precision)}

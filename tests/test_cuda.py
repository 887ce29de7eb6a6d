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
from cifar10 import Data
from common import make_run

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


@pytest.mark.parametrize("precision", runs.PRECISIONS)
@pytest.mark.parametrize(
    ("recipe", "norm"), [("muon", "gn"), ("muon", "none"), ("onecycle", "bn"), ("reference", "ln")]
)
def test_a_run_stays_on_its_device_and_no_step_waits(recipe, norm, precision, monkeypatch):
    run, computed = make_run(recipe, norm, precision=precision, batch_size=4, rotation=5.0), set()

    def backward(loss):  # makes up the gradients
        assert loss.device == CUDA
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def make(*of):
        with CUDA:
            return utils.make_model(*of)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, *_, **__: model)  # fakes don't move
    with FakeTensorMode():
        images = torch.zeros(7, 3, 32, 32, dtype=torch.uint8, device=CUDA)
        dataset = TensorDataset(images, torch.zeros(7, dtype=torch.int64, device=CUDA))
        training = utils.assemble(run, Data((), dataset, dataset), make)
        model, train_loader, test_loader, optimizer, scheduler, loss = training
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
        tensors = [leaf for leaf in tree_leaves(parts) if isinstance(leaf, torch.Tensor)]
        assert {tensor.device for tensor in tensors} == {CUDA}
        assert computed == {getattr(torch, precision)}

"""Corrupted test images: what each corruption does, and what is measured on them."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import utils
from cifar10 import load_sample
from common import make_run, write_result
from experiments import claims, robustness
from experiments import results as records
from runs import RECIPES

SAMPLE = load_sample()
IMAGES = SAMPLE.test.tensors[0]


@pytest.mark.parametrize("corruption", robustness.AMOUNTS)
def test_more_of_a_corruption_changes_more_and_none_of_it_nothing(corruption):
    assert robustness.corrupt(IMAGES, corruption, 0.0).equal(IMAGES)
    changes = []
    for amount in robustness.AMOUNTS[corruption]:
        corrupted = robustness.corrupt(IMAGES, corruption, amount)
        assert (corrupted.dtype, corrupted.shape) == (IMAGES.dtype, IMAGES.shape)
        assert corrupted.equal(robustness.corrupt(IMAGES, corruption, amount))
        changes.append((corrupted.float() - IMAGES.float()).abs().mean().item())
    assert changes == sorted(set(changes))
    assert changes[0] > 0


def test_an_amount_is_that_of_its_definition():
    gray = torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)
    one, other = (robustness.corrupt(gray, "noise", 0.1, seed).float() for seed in (1, 2))
    assert not one.equal(other)
    assert (one.mean().item(), one.std().item()) == pytest.approx((128, 25.5), rel=0.02)
    before, after = IMAGES.float(), robustness.corrupt(IMAGES, "contrast", 0.6).float()
    torch.testing.assert_close(after.mean((2, 3)), before.mean((2, 3)), atol=0.5, rtol=0)
    torch.testing.assert_close(after.std((2, 3)), 0.4 * before.std((2, 3)), atol=0.5, rtol=0)
    point = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    point[..., 16, 16] = 255
    spread = robustness.corrupt(point, "blur", 1.0)[0, 0].double()
    variance = (spread.sum(dim=0) * (torch.arange(33) - 16) ** 2).sum() / spread.sum()
    assert variance.item() == pytest.approx(1, rel=0.1)


def test_the_calibration_error_is_that_of_its_definition():
    torch.manual_seed(0)
    prediction = (3 * torch.randn(500, 10)).log_softmax(dim=1)
    confidence, predicted = prediction.double().exp().max(dim=1)
    labels = (predicted + torch.randint(2, (500,))) % 10  # half are right, sure or not
    gaps, error = (predicted == labels).double() - confidence, 0.0
    for bin in range(15):
        inside = (confidence > bin / 15) & (confidence <= (bin + 1) / 15)
        error += abs(gaps[inside].sum().item()) / 500
    measured = robustness.get_calibration_error(prediction, labels)
    assert measured == pytest.approx(100 * error)
    sure = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).log()  # and once wrong
    assert robustness.get_calibration_error(sure, torch.tensor([0, 1])) == pytest.approx(50)


def make_trained(norm):
    """Return a network whose running averages are not those of the test images."""
    model = utils.make_model(norm, RECIPES["muon"]).to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.train()(torch.randn(64, 3, 32, 32) + 1)
    return model.eval()


def test_recomputed_statistics_are_those_of_the_corrupted_batch():
    torch.manual_seed(1)
    model, dataset = make_trained("bn"), TensorDataset(*SAMPLE.test[:100])  # one batch
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = robustness.get_rows(model, dataset)
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in before.items())
    assert len(rows) == 2 * (1 + 3 * 3)
    images = utils.get_test_transforms()(robustness.corrupt(IMAGES[:100], "noise", 0.1))
    for recomputed in (False, True):
        wanted = {"corruption": "noise", "amount": 0.1, "recomputed": recomputed}
        (row,) = [row for row in rows if row | wanted == row]
        with torch.no_grad():
            loss = F.nll_loss(model.train(recomputed)(images), dataset.tensors[1]).item()
        assert row["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert not any(r["recomputed"] for r in robustness.get_rows(make_trained("gn"), dataset))


def test_the_claim_is_measured_of_the_committed_weights(tmp_path, monkeypatch):
    model, run = make_trained("ln"), make_run("muon", "ln", 2)
    loader = utils.Loader(SAMPLE.test, utils.get_test_transforms(), 500)
    path = write_result(tmp_path, run)
    torch.save(model.state_dict(), path.with_suffix(".pt"))
    monkeypatch.setattr(robustness, "WEIGHTS", tmp_path)
    monkeypatch.setattr(robustness, "AMOUNTS", {"blur": (0.7, 1.0)})
    monkeypatch.setattr(utils, "get_data", lambda *_: SAMPLE)
    monkeypatch.setattr(claims, "FOLDER", tmp_path / "results" / "claims")
    claim = claims.CLAIMS["robustness"]
    said = claims.run_claim("robustness", replace(run, recipe=claim.recipes["muon"]))
    loss, accuracy = utils.test(model, loader, nn.NLLLoss())
    assert said == f"{accuracy:.2f} %"
    (row,) = records.load_frame(tmp_path / "results").to_dict("records")
    found = [row[key] for key in ("claim", "value", "arm", "seed")]
    assert found == ["robustness", "muon", "ln", 2]
    assert row["history"] == {"test_loss": [pytest.approx(loss)], "test_acc": [accuracy]}
    assert [part["amount"] for part in row["result"]["rows"]] == [0.0, 0.7, 1.0]
    assert json.loads(json.dumps(claim.protocol)) == row["result"]["protocol"]

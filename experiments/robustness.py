"""Evaluate the committed weights of `muon` on test images with noise, blur or less contrast."""

import copy
import math
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision.transforms.v2 import functional as v2_functional

import utils
from experiments import results as records
from runs import RECIPES, Run, Training

WEIGHTS = records.ROOT / "results"
# Severities 1, 3 and 5 of CIFAR-10-C (Hendrycks and Dietterich 2019), so that results compare: from
# hardly visible to hard for a person.
AMOUNTS = {
    "noise": (0.04, 0.08, 0.1),  # standard deviation, as a share of white
    "blur": (0.4, 0.7, 1.0),  # of a Gaussian, in pixels
    "contrast": (0.25, 0.6, 0.85),  # the share that is taken away
}
BATCH_SIZE = 1_000  # images over which recomputed statistics are taken
BINS, SEED = 15, 0  # of the calibration error; of the noise, which is the same for every network
PROTOCOL = {"amounts": {name: list(amounts) for name, amounts in AMOUNTS.items()}}
PROTOCOL |= {"recomputed_on": BATCH_SIZE, "bins": BINS, "seed": SEED}


def corrupt(images: torch.Tensor, corruption: str, amount: float, seed: int = SEED) -> torch.Tensor:
    """Return uint8 images (N, 3, H, W) with that amount of a corruption from AMOUNTS; 0 is none."""
    if not amount:
        return images
    if corruption == "blur":
        reach = math.ceil(4 * amount)  # pixels, four deviations
        return v2_functional.gaussian_blur(images, 2 * reach + 1, amount)
    changed = images.float()
    if corruption == "noise":  # drawn on the CPU: the same on each device
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        changed += 255 * amount * noise.to(images.device)
    else:
        means = changed.mean(dim=(2, 3), keepdim=True)
        changed = means + (1 - amount) * (changed - means)
    return changed.round().clamp(0, 255).to(torch.uint8)


def get_calibration_error(prediction: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the expected calibration error (Guo et al. 2017) in percent, over BINS equal bins.

    `prediction` is log-probabilities (N, 10); a bin includes its upper edge.
    """
    confidence, predicted = prediction.double().exp().max(dim=1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = (predicted == labels).double() - confidence
    return 100 * torch.bincount(bins, gaps, BINS).abs().sum().item() / len(labels)


def recompute(model: nn.Module) -> nn.Module:
    """Return a copy whose batch normalization uses batch statistics in evaluation, too."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = layer.running_var = None
    return model


def evaluate(model: nn.Module, dataset: TensorDataset, precision: str) -> dict[str, float]:
    """Return loss, accuracy (%) and calibration error (%) on uint8 images and their labels."""
    loader = utils.Loader(dataset, utils.get_test_transforms(), BATCH_SIZE)
    prediction, labels = utils.predict(model, loader, precision)
    hits, loss = utils.GetCorrectPredCount(prediction, labels), F.nll_loss(prediction, labels)
    scores = {"test_loss": loss.item(), "test_acc": 100 * hits.item() / len(labels)}
    return scores | {"ece": get_calibration_error(prediction, labels)}


def get_rows(model: nn.Module, dataset: TensorDataset, precision: str = "float32") -> list[dict]:
    """Evaluate on the images as they are, and with each amount of each corruption.

    A network with batch normalization is also evaluated with recomputed statistics.
    """
    (images, labels), rows, models = dataset.tensors, [], {False: model}
    if any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        models[True] = recompute(model)
    pairs = [(name, amount) for name, amounts in AMOUNTS.items() for amount in amounts]
    for corruption, amount in [("none", 0.0), *pairs]:
        corrupted = TensorDataset(corrupt(images, corruption, amount), labels)
        for recomputed, network in models.items():
            row = {"corruption": corruption, "amount": amount, "recomputed": recomputed}
            rows.append(row | evaluate(network, corrupted, precision))
    return rows


def measure(run: Run, training: Training) -> dict:
    """Evaluate the committed network of the run's norm and seed on the test images."""
    dataset = training.test_loader.dataset
    path = replace(run, recipe=RECIPES["muon"]).get_path(WEIGHTS, ".json")
    rows = get_rows(records.load_model(path), dataset, run.precision)
    history = {key: [rows[0][key]] for key in ("test_loss", "test_acc")}
    return {"history": history, "rows": rows}

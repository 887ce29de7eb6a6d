"""What a normalization is said to do: each measurement on a case with a known answer."""

import json
import math
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import utils
from cifar10 import Data, load_sample
from experiments import claims
from experiments import results as records
from experiments.variants import make_network
from models import Session8Net
from runs import Run, is_same_recipe

SAMPLE = load_sample()
DATA = replace(SAMPLE, train=TensorDataset(*SAMPLE.train[:256]))  # 4 batches of 64

# --- Measurements


def get_square(weights):
    """Return loss and gradient of (a * b * c) ** 2 / 2, of three linear layers of one unit."""
    product = math.prod(weights[name].item() for name in "abc")
    return product**2 / 2, {name: product**2 / weights[name] for name in "abc"}


def test_the_shift_is_that_of_the_earlier_layers_a_share_and_an_angle():
    weights = dict(zip("abc", torch.tensor([2.0, 1.0, 1.0]), strict=True))
    shift = claims.get_shift(get_square, weights, 0.1, {"first": "a", "last": "c"})
    assert shift["first"] == {"change": 0.0, "cosine": pytest.approx(1.0)}
    # a and b step to 2 - 0.2 and 1 - 0.4, and c stays where it is.
    change = 1 - (1.8 * 0.6) ** 2 / 2**2
    assert shift["last"] == {"change": pytest.approx(change), "cosine": pytest.approx(1.0)}
    tiny = 1e-30 * torch.tensor([[3.0, 4.0]])  # whose square is 0 in float32
    change = claims.measure_change(tiny, 1e-30 * torch.tensor([[-4.0, 3.0]]))
    assert change == {"change": pytest.approx(2**0.5), "cosine": pytest.approx(0.0, abs=1e-7)}


def test_along_its_gradient_a_parabola_is_a_parabola():
    def get(weights):  # 2 w ** 2
        return 2 * weights["w"].item() ** 2, {"w": 4 * weights["w"]}

    line = claims.get_line(get, {"w": torch.tensor([3.0])}, 0.1)
    # At d times the rate the weight is 3 (1 - 0.4 d), and the gradient has changed by 0.4 d.
    losses = [18 * (1 - 0.4 * d) ** 2 for d in claims.DISTANCES]
    assert line["loss_range"] == pytest.approx([min(losses), max(losses)])
    assert line["change"] == pytest.approx(0.4 * 4)
    assert line["smoothness"] == pytest.approx(0.4)


def test_a_measured_gradient_is_that_of_the_step():
    model = Session8Net("bn").train()
    images, labels = torch.rand(6, 3, 32, 32), torch.arange(6)
    get = claims.make_gradient(model, nn.NLLLoss(), images, labels)
    loss, gradients = get(dict(model.named_parameters()))
    expected = nn.NLLLoss()(model(images), labels)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_deviations_are_those_of_each_channel_of_a_block():
    model, images = Session8Net("bn"), torch.rand(8, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deviations = claims.get_deviations(model, images)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    sizes = {"C1": 16, "C2": 32, "C4": 24, "C5": 32, "C6": 40, "C8": 24, "C9": 32, "C10": 32}
    assert {name: len(values) for name, values in deviations.items()} == sizes
    output = model.layers.C1(images)  # still in training mode: statistics of these images
    assert deviations["C1"][3] == pytest.approx(output[:, 3].flatten().std().item(), rel=1e-4)


def test_smoothness_is_the_largest_change_of_the_gradient_per_distance():
    def get(weights):  # of the loss w ** 4
        return (weights["w"] ** 4).item(), {"w": 4 * weights["w"] ** 3}

    line = claims.get_line(get, {"w": torch.ones(1)}, 0.1)
    changes = {d: abs((1 - 0.4 * d) ** 3 - 1) for d in claims.DISTANCES}
    assert line["change"] == pytest.approx(max(changes.values()))
    assert line["smoothness"] == pytest.approx(max(c / d for d, c in changes.items()))


def test_he_initialization_has_the_variance_of_its_paper():
    model, *_ = utils.assemble(Run(claims.SGD, "he", 1, "float32"), DATA)
    kernel = model.layers.C2.conv.weight  # 16 inputs of 3 x 3
    assert kernel.var().item() == pytest.approx(2 / 144, rel=0.1)


def test_held_out_images_are_not_trained_on():
    data = Data((), TensorDataset(torch.arange(50_000)), None)
    held, again = (claims.hold_out(data, 5_000) for _ in range(2))
    (train,), (test,) = held.train.tensors, held.test.tensors
    assert len(test) == 5_000
    assert torch.cat([train, test]).sort().values.equal(torch.arange(50_000))
    assert test.equal(again.test.tensors[0])


@pytest.mark.parametrize("claim", claims.CLAIMS)
def test_a_value_has_the_recipe_and_the_protocol_that_its_results_record(claim):
    recipes = {recipe.name: recipe for recipe in claims.CLAIMS[claim].recipes.values()}
    results = [records.load_result(path) for path in claims.FOLDER.rglob(f"{claim}-*.json")]
    for result in results or pytest.skip("there are no results yet"):
        name = result["recipe"]["name"]
        assert is_same_recipe(result["recipe"], recipes[name]), name
        settings = claims.CLAIMS[claim].get_settings(Run(recipes[name], "bn", 1, "float32"))
        protocol = json.loads(json.dumps(claims.CLAIMS[claim].protocol)) | settings
        assert result.get("protocol", protocol) == protocol


# --- Whole runs, on the sample


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A function that makes a small run of a claim and returns the run, its JSON and the line."""
    monkeypatch.setattr(utils, "get_data", lambda *_: DATA)
    monkeypatch.setattr(claims, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(claims, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(claims, "WATCHED", ("C2", "C10"))
    monkeypatch.setattr(claims, "DISTANCES", (1.0, 1e38))  # at the last the loss overflows

    def make(claim, arm, value=None, **changes):
        protocol = claims.CLAIMS[claim].protocol
        protocol = protocol | {"held_out": 56} if "held_out" in protocol else protocol
        value = value or next(iter(claims.CLAIMS[claim].recipes))
        changes = {"epochs": 1, "batch_size": 64} | changes
        recipe = replace(claims.CLAIMS[claim].recipes[value], **changes)
        small = {"protocol": protocol, "recipes": {value: recipe}}
        monkeypatch.setitem(claims.CLAIMS, claim, replace(claims.CLAIMS[claim], **small))
        run = Run(recipe, arm, 1, "float32")
        said = claims.run_claim(claim, run)
        assert records.is_done(run, claims.FOLDER)
        assert not list((tmp_path / "checkpoints").rglob("*.pt"))
        return run, json.loads(run.get_path(claims.FOLDER, ".json").read_text("utf-8")), said

    return make


def fit(run, folder, **settings):
    """Return the trained network and the history of the run, without a claim's measurements."""
    training = utils.assemble(run, DATA, partial(make_network, **settings))
    return training.model, utils.fit(run, training, folder)


@pytest.mark.parametrize(
    ("claim", "arm", "measured"), [("rates", "he", set()), ("scales", "ln", {"before", "after"})]
)
def test_a_claim_trains_as_the_notebooks_do(claim, arm, measured, small, tmp_path):
    run, result, said = small(claim, arm)
    expected = {"recipe", "norm", "seed", "data", "environment", "protocol", "history"}
    assert set(result) == expected | measured
    history = fit(run, tmp_path)[1]
    assert result["history"]["test_loss"] == history["test_loss"]
    assert said == f"{history['test_acc'][-1]:.2f} %"
    assert result.get("before", 0) != result.get("after", 1), "it has trained"


def test_a_final_measurement_is_that_of_plain_loaders(small, tmp_path):
    run, result, _ = small("optimizers", "bn")
    model, history = fit(run, tmp_path)
    assert result["history"] | {"seconds": 0} == history | {"seconds": 0}
    digits = []
    for part in (DATA.train, DATA.test):
        loader = utils.Loader(part, utils.get_test_transforms(), run.recipe.batch_size)
        with torch.no_grad():
            digits.append(torch.cat([model.eval()(images).argmax(dim=1) for images, _ in loader]))
    right = (digits[0] == DATA.train.tensors[1]).sum().item()
    assert result["clean_train_acc"] == 100 * right / 256
    assert result["test_predictions"] == "".join(map(str, digits[1].tolist()))


@pytest.mark.parametrize(("claim", "settings"), [("batches", {}), ("ghosts", {"ghost": 2})])
def test_recomputed_statistics_are_those_of_the_images(
    claim, settings, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(claims, "RECOMPUTED_ON", 200)  # one batch
    run, result, _ = small(claim, "bn")
    assert result["protocol"] == {"recomputed_on": 10_000} | settings
    trained, history = fit(run, tmp_path, **settings)
    assert result["history"]["test_loss"] == history["test_loss"]
    model, transforms = Session8Net("bn"), utils.get_test_transforms()
    model.to(memory_format=torch.channels_last).load_state_dict(trained.state_dict())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the last batch alone
    with torch.no_grad():
        model.train()(transforms(DATA.train.tensors[0][:200]))
    loader = utils.Loader(DATA.test, transforms, 64)
    assert result["recomputed_acc"] == utils.test(model, loader, nn.NLLLoss())[1]


def test_to_measure_the_shift_leaves_the_training_alone(small, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "SHIFT_EVERY", 2)
    run, result, _ = small("shift", "bn")
    assert result["history"]["test_loss"] == fit(run, tmp_path)[1]["test_loss"]
    first, second = result["rows"]
    assert (first["step"], second["step"]) == (0, 2)
    assert first["shift"]["C10"]["change"] != second["shift"]["C10"]["change"]
    _, result, _ = small("shift", "none")
    assert result["rows"][0]["loss_range"][1] is result["rows"][0]["smoothness"] is None


def test_a_search_sees_no_test_image(small, monkeypatch):
    monkeypatch.setattr(utils, "get_data", lambda *_: replace(DATA, test=None))
    _, result, said = small("search", "none")
    assert said == f"{result['history']['validation_acc'][-1]:.2f} %"
    _, diverged, said = small("search", "none", lr=1e30, warmup=0.5)
    assert diverged["diverged"] == said
    assert re.search(r"diverged.* step \d", said)
    for made in (result, diverged):
        assert (made["data"]["train_size"], made["data"]["validation_size"]) == (200, 56)
        assert not any("test" in key for key in (*made, *made["data"], *made["history"]))


@pytest.mark.parametrize(
    ("batch_size", "where"), [(64, r"step \d: its loss"), (256, "its test_loss is not finite")]
)
def test_a_shift_that_diverges_is_a_result(batch_size, where, small):
    _, result, said = small("shift", "bn", lr=1e30, batch_size=batch_size)
    assert re.search(where, said)
    assert result["diverged"] == said


# --- The command line


@pytest.mark.parametrize("claim", claims.CLAIMS)
def test_a_job_makes_the_run_that_it_is_for(claim):
    def get_runs(*arguments):
        options = claims.parse(arguments)
        recipes = claims.CLAIMS[claim].recipes
        return claims.get_runs([recipes[value] for value in options.values], options)

    declared = claims.CLAIMS[claim]
    runs = get_runs(claim, "--values", *declared.recipes)
    assert len(runs) == len(declared.seeds) * len(declared.arms) * len(declared.recipes)
    for run in (runs[0], runs[-1]):
        module, *arguments = claims.make_command(claim, run)
        assert module == "experiments.claims"
        assert claims.parse(arguments).one
        assert get_runs(*arguments) == [run]

"""What a normalization is said to do: each measurement on a case with a known answer."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import utils
from cifar10 import draw_gratings
from common import draw_images
from experiments import claims
from models import Session8Net


def test_what_is_not_finite_is_dropped_and_nothing_else():
    nest = {"a": [1.5, math.inf], "b": {"c": math.nan, "d": 2}}
    assert claims.drop_infinite(nest) == {"a": [1.5, None], "b": {"c": None, "d": 2}}


def get_product(weights):
    """Return loss and gradient of c * b * a, a network of three linear layers of one unit."""
    a, b, c = (weights[name].item() for name in "abc")
    return a * b * c, {"a": torch.tensor(b * c), "b": torch.tensor(a * c), "c": torch.tensor(a * b)}


def test_the_shift_is_that_of_the_earlier_layers_alone():
    weights = {
        name: torch.tensor(value) for name, value in zip("abc", (2.0, 3.0, 5.0), strict=True)
    }
    shift = claims.get_shift(get_product, weights, 0.1, {"first": "a", "last": "c"})
    assert shift["first"] == {"change": 0.0, "cosine": pytest.approx(1.0)}
    # a and b step to 2 - 1.5 and 3 - 1, so the gradient of c goes from 6 to 1.
    assert shift["last"] == {"change": pytest.approx(5 / 6), "cosine": pytest.approx(1.0)}


def test_the_change_of_a_gradient_is_its_share_and_its_angle():
    change = claims.measure_change(torch.tensor([[3.0, 4.0]]), torch.tensor([[-4.0, 3.0]]))
    assert change == {"change": pytest.approx(2**0.5), "cosine": pytest.approx(0.0, abs=1e-7)}
    tiny = torch.tensor([3e-30, 4e-30])
    assert claims.measure_change(tiny, 2 * tiny) == {
        "change": pytest.approx(1),
        "cosine": pytest.approx(1),
    }


def test_a_run_that_diverges_after_the_last_measurement_is_told_too(small, monkeypatch):
    monkeypatch.setattr(claims, "SHIFT_EVERY", 1000)
    result, _ = small("shift", "bn", lr=1e4)
    assert re.search(r"loss in step \d, at rate 10000, is not finite", result["diverged"])
    result, _ = small("shift", "bn", lr=1e30, batch_size=1000)  # one step
    assert "loss after the last step, at rate 1e+30, is not finite" in result["diverged"]


def test_along_the_gradient_a_parabola_is_a_parabola():
    def get(weights):  # 2 w ** 2
        return 2 * weights["w"].item() ** 2, {"w": 4 * weights["w"]}

    line = claims.get_line(get, {"w": torch.tensor([3.0])}, 0.1)
    # At d times the rate the weight is 3 (1 - 0.4 d), and the gradient has changed by 0.4 d.
    losses = [18 * (1 - 0.4 * d) ** 2 for d in claims.DISTANCES]
    assert line["loss_range"] == pytest.approx([min(losses), max(losses)])
    assert line["change"] == pytest.approx(0.4 * 4)
    assert line["smoothness"] == pytest.approx(0.4)


@pytest.mark.parametrize("norm", ["bn", "none"])
def test_a_measured_gradient_is_the_step_s_own_and_leaves_the_network_alone(norm):
    model = Session8Net(norm).train()
    images, labels = torch.rand(6, 3, 32, 32), torch.arange(6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    get = claims.make_gradient(model, nn.NLLLoss(), images, labels)
    loss, gradients = get(dict(model.named_parameters()))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    expected = nn.NLLLoss()(model(images), labels)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_deviations_are_those_of_each_channel_of_each_block_s_output():
    model, images = Session8Net("bn"), torch.rand(8, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deviations = claims.get_deviations(model, images)
    assert list(deviations) == ["C1", "C2", "C4", "C5", "C6", "C8", "C9", "C10"]
    assert [len(values) for values in deviations.values()] == [16, 32, 24, 32, 40, 24, 32, 32]
    output = model.layers.C1(images)  # still in training mode: statistics of these images
    assert deviations["C1"][3] == pytest.approx(output[:, 3].flatten().std().item(), rel=1e-4)
    model.load_state_dict(before)
    claims.get_deviations(model, images)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_statistics_computed_anew_are_those_of_all_the_images():
    model = nn.Sequential(nn.BatchNorm2d(3))
    model[0].running_mean.fill_(7.0)
    loader = utils.get_loader(
        TensorDataset(draw_images(400), torch.arange(400) % 10), utils.get_test_transforms(), 100
    )
    claims.update_bn(loader, model)
    images = torch.cat([images for images, _ in loader])
    torch.testing.assert_close(model[0].running_mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(model[0].running_var, images.var((0, 2, 3)), rtol=1e-3, atol=0)


def test_he_s_first_weights_keep_the_signal_that_pytorch_s_lose():
    run = utils.Run(replace(claims.SGD, name="x", batch_size=100), "none", 1, "float32")
    data = draw_gratings()
    images = utils.get_test_transforms()(data.test.tensors[0])
    none, he = (
        torch.tensor(claims.get_deviations(claims.assemble(r, data)[0], images)["C10"]).mean()
        for r in (run, replace(run, norm="he"))
    )
    assert none < 0.001
    assert 0.1 < he < 10


# --- Whole runs, on the stand-in


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A function that makes one small run of a claim and returns its JSON and the line said."""
    data = draw_gratings()
    monkeypatch.setattr(utils, "get_data", lambda *_: data)
    monkeypatch.setattr(claims, "CHECKPOINTS", tmp_path / "checkpoints")

    def run(claim, arm, **changes):
        recipe = next(iter(claims.CLAIMS[claim].recipes.values()))
        recipe = replace(recipe, **({"epochs": 1, "batch_size": 128} | changes))
        made = utils.Run(recipe, arm, 1, "float32")
        said = claims.run_claim(claim, made, tmp_path / "claims")
        path = made.get_path(tmp_path / "claims", ".json")
        assert claims.is_done(claim, made, tmp_path / "claims")
        assert not list((tmp_path / "checkpoints").rglob("*.pt"))
        return json.loads(path.read_text(encoding="utf-8")), said

    return run


@pytest.mark.parametrize(
    ("claim", "arm", "measured"),
    [
        ("rates", "he", {"history"}),
        ("baseline", "none", {"history"}),
        ("batches", "bn", {"history", "recomputed_acc"}),
        ("scales", "ln", {"history", "before", "after"}),
        ("shift", "gn", {"history", "rows"}),
    ],
)
def test_each_claim_is_measured_from_end_to_end(claim, arm, measured, small, monkeypatch):
    monkeypatch.setattr(claims, "SHIFT_EVERY", 2)
    monkeypatch.setattr(claims, "RECOMPUTED_ON", 500)
    seen, weights, update_bn, get_line = [], [], claims.update_bn, claims.get_line

    def update(loader, model):
        update_bn(loader, model)
        seen.append(sum(len(images) for images, _ in loader))

    def watch(get, now, rate):
        weights.append(now["layers.C1.conv.weight"].sum().item())
        return get_line(get, now, rate)

    monkeypatch.setattr(claims, "update_bn", update)
    monkeypatch.setattr(claims, "get_line", watch)
    result, said = small(claim, arm)
    assert result["norm"] == arm
    assert set(result) - {"recipe", "norm", "seed", "data", "environment", "protocol"} == measured
    assert said.endswith(f"{result['history']['test_acc'][-1]:.2f} %")
    assert seen == ([500] if claim == "batches" else [])
    assert result.get("before", 0) != result.get("after", 1), "it has trained"
    if claim == "shift":
        steps = [row.pop("step") for row in result["rows"]]
        assert steps == list(range(0, max(steps) + 1, 2))
        assert len(steps) > 1
        assert len(set(weights)) == len(steps), "the weights move"


def test_the_search_for_the_baseline_s_rates_sees_no_test_image(small, monkeypatch):
    held = replace(claims.CLAIMS["search"], protocol={"held_out": 200})
    monkeypatch.setitem(claims.CLAIMS, "search", held)
    result, said = small("search", "he")
    assert said.endswith(f"{result['history']['validation_acc'][-1]:.2f} %")
    diverged, _ = small("search", "he", lr=1e30, warmup=0.5)
    assert "diverged" in diverged
    for made in (result, diverged):
        assert (made["data"]["train_size"], made["data"]["validation_size"]) == (800, 200)
        assert not any("test" in key for key in (*made, *made["data"], *made["history"]))


@pytest.mark.parametrize(("claim", "changes"), [("rates", {"warmup": 0.0}), ("shift", {})])
def test_a_run_that_diverges_is_a_result_that_says_where(claim, changes, small):
    result, said = small(claim, "bn", lr=1e30, **changes)
    assert "diverged" in result["diverged"]
    assert "step" in result["diverged"]
    assert re.search(r"rate \S*e\+\d\d", result["diverged"])
    assert result["diverged"] in said


def test_to_look_ahead_where_the_loss_overflows_ends_no_run(small, monkeypatch):
    monkeypatch.setattr(claims, "DISTANCES", (1.0, 1e38))
    result, _ = small("shift", "none")
    assert "diverged" not in result
    row = result["rows"][0]
    assert row["loss_range"][1] is None
    assert row["smoothness"] is None
    assert row["shift"]["C10"]["change"] >= 0


def test_a_result_of_another_protocol_is_refused_by_name(small, tmp_path, monkeypatch):
    result, _ = small("shift", "gn")
    run = utils.Run(utils.Recipe(**result["recipe"]), "gn", 1, "float32")
    changed = replace(claims.CLAIMS["shift"], protocol={"every": 10})
    monkeypatch.setitem(claims.CLAIMS, "shift", changed)
    with pytest.raises(ValueError, match="shift-0.1-gn-seed1.json is of another protocol"):
        claims.is_done("shift", run, tmp_path / "claims")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["speeds"], "'rates', 'search', 'baseline', 'batches', 'scales', 'shift'"),
        (["rates", "--arms", "in"], "rates has none, he, bn, gn, ln, but not in"),
        (["batches", "--arms", "he"], "batches has bn, gn, ln, but not he"),
        (["rates", "--values", "0.2"], "rates has 0.01, 0.03, 0.1, 0.3, 1, 3, but not 0.2"),
        (["rates", "--values", "fast"], "rates has 0.01, 0.03, 0.1, 0.3, 1, 3, but not fast"),
        (["baseline", "--arms", "bn"], "baseline has none, he, but not bn"),
        (["rates", "--seeds", "-1"], "from 0 to 4294967295"),
    ],
)
def test_what_is_unknown_is_answered_with_what_is_known(options, said, capsys):
    with pytest.raises(SystemExit):
        claims.parse(options)
    assert said.replace("'", "") in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_another_precision_is_refused_and_not_ignored(precision, monkeypatch, capsys):
    monkeypatch.setenv("PRECISION", precision)
    with pytest.raises(SystemExit):
        claims.parse(["rates"])
    assert "claims are measured in float32 alone" in capsys.readouterr().err


def test_a_value_is_known_however_it_is_written():
    assert claims.parse(["rates", "--values", "1.0", "0.10", "3e-2"]).values == ["1", "0.1", "0.03"]


def get_runs(*arguments):
    options = claims.parse(arguments)
    recipes = claims.CLAIMS[options.claim].recipes
    return claims.get_runs([recipes[value] for value in options.values], options)


def test_all_combinations_are_run_once_and_the_first_seed_s_first():
    runs = get_runs("rates")
    assert len(runs) == 90
    assert {run.seed for run in runs[:30]} == {1}
    assert {run.precision for run in runs} == {"float32"}
    some = get_runs("batches", "--values", "2", "2", "--seeds", "5", "--arms", "gn", "bn")
    assert [(run.norm, run.recipe.batch_size, run.recipe.lr) for run in some] == [
        (norm, 2, pytest.approx(0.05 / 64)) for norm in ("gn", "bn")
    ]

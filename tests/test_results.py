"""Reading results: the right run and its own weights, or an error that names the file."""

import itertools
import math

import pytest
import torch
from torch.utils.data import TensorDataset

import utils
from cifar10 import load_cifar10
from common import ROOT, make_run, write_result
from experiments import results as records
from models import Session8Net
from runs import get_recipe, is_same_recipe


def test_a_frame_has_a_row_a_run_of_all_folders(tmp_path):
    history = {"test_acc": [86.0, 85.0]}  # the last, not the best
    write_result(tmp_path, make_run(), history=history, clean_train_acc=88.0)
    write_result(tmp_path, make_run(seed=6))  # of no page's seed
    write_result(tmp_path / "claims", make_run(name="rates-0.3", norm="he"), diverged="It did.")
    (tmp_path / "speed").mkdir()  # no runs
    (tmp_path / "speed" / "float32.json").write_text("{}")
    (tmp_path / ".ipynb_checkpoints").mkdir()  # Jupyter's, of a result that was opened in it
    (tmp_path / ".ipynb_checkpoints" / "onecycle-bn-seed1-checkpoint.json").write_text("{}")
    claim, run = records.load_frame(tmp_path).to_dict("records")
    assert [claim[key] for key in ("claim", "value", "arm")] == ["rates", "0.3", "he"]
    assert math.isnan(claim["test"])
    assert [run[key] for key in ("recipe", "claim", "test", "clean_gap")] == ["onecycle", "", 85, 3]


def test_a_run_whose_result_is_there_is_done(tmp_path):
    run = make_run()
    assert not records.is_done(run, tmp_path)
    write_result(tmp_path, run)
    assert records.is_done(run, tmp_path)
    assert not records.is_done(make_run(precision="bfloat16"), tmp_path)
    with pytest.raises(ValueError, match="onecycle-bn-seed1.json is of another recipe"):
        records.is_done(make_run(lr=0.3), tmp_path)


def test_weights_are_loaded_into_the_network_of_the_result(tmp_path):
    path, model = write_result(tmp_path, make_run("muon", "gn", groups=8)), Session8Net("gn", 8)
    torch.save(model.state_dict(), path.with_suffix(".pt"))
    loaded = records.load_model(path)
    assert str(loaded) == str(model)
    assert torch.equal(loaded.layers.C1.conv.weight.cpu(), model.layers.C1.conv.weight)


def test_data_lie_in_the_repository_by_default(monkeypatch):
    monkeypatch.setenv("CIFAR10_ROOT", " \n")
    assert records.find_root() == ROOT / "data"


# --- The committed results


def read_results(folder, recipe="*"):
    """Return the results of the compared norms and the pages' seeds, by their paths."""
    paths = sorted((ROOT / "results" / folder).glob(f"{recipe}-?n-seed[1-5].json"))
    return {path: records.load_result(path) for path in paths}


@pytest.mark.parametrize("folder", ["float32", "bfloat16"])
def test_the_committed_results_are_those_of_their_recipes(folder):
    found = read_results(folder).values()
    recipes = {result["recipe"]["name"] for result in found}
    made = [(r["recipe"]["name"], r["norm"], r["seed"]) for r in found]
    assert sorted(made) == sorted(itertools.product(recipes, records.COMPARED, records.SEEDS))
    for result in found:
        recipe = get_recipe(result["recipe"]["name"])
        assert is_same_recipe(result["recipe"], recipe)
        assert result["data"] == {"name": "CIFAR-10", "train_size": 50_000, "test_size": 10_000}
        assert {len(values) for values in result["history"].values()} == {recipe.epochs}


def test_every_result_is_of_the_run_in_its_name():
    for path in (ROOT / "results").rglob("*-seed*.json"):
        result = records.load_result(path)
        name = f"{result['recipe']['name']}-{result['norm']}-seed{result['seed']}.json"
        assert path.parts[-2:] == (result["environment"]["precision"], name)


def test_every_result_was_trained_in_one_environment_by_committed_code():
    for result in records.load_frame().result:
        (environment,) = result.get("environments", [result["environment"]])
        assert environment["threads"] == 1
        assert environment.get("clean", "commit" not in environment)


@pytest.mark.cifar10
def test_committed_predictions_and_weights_are_those_of_their_results(cifar10_root):
    test = load_cifar10(cifar10_root).test
    labels = [*map(str, test.tensors[1].tolist())]
    for result in (read_results("float32") | read_results("bfloat16")).values():
        hits = sum(map(str.__eq__, result["test_predictions"], labels))
        assert hits / 100 == pytest.approx(result["history"]["test_acc"][-1])
    first = utils.Loader(TensorDataset(*test[:500]), utils.get_test_transforms(), 500)
    for path, result in read_results("float32", "muon").items():
        digits = utils.predict(records.load_model(path), first)[0].argmax(dim=1).tolist()
        differ = sum(map(int.__ne__, digits, map(int, result["test_predictions"])))
        assert differ <= 10, "two runs differ in 48 or more, two machines in a few"

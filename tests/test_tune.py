"""The search for a recipe: judged by training images that were held out."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch.utils.data import TensorDataset

import utils
from cifar10 import Data, draw_gratings
from common import make_run
from experiments import results as records
from experiments import tune


def test_the_held_out_images_are_training_images_that_are_not_trained_on():
    numbers = torch.arange(50_000)
    data = Data((), TensorDataset(numbers), None)
    held = tune.hold_out(data, tune.HELD_OUT)
    assert (len(held.train), len(held.test)) == (45_000, 5_000)
    assert torch.cat([held.train.tensors[0], held.test.tensors[0]]).sort().values.equal(numbers)
    assert held.test.tensors[0].equal(tune.hold_out(data, tune.HELD_OUT).test.tensors[0])


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_trial_writes_its_accuracy_on_held_out_images_and_sees_no_test_image(
    optimizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(tune, "ROOT", tmp_path)
    monkeypatch.setattr(tune, "HELD_OUT", 200)
    data = replace(draw_gratings(), test=None)
    monkeypatch.setattr(utils, "get_data", lambda *_: data)
    run = make_run("smoke", "gn", 3, name="trial", epochs=2, optimizer=optimizer)
    said = tune.run_trial(run, tmp_path / "tuning")
    path = tmp_path / "tuning" / "float32" / "trial-gn-seed3.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    assert (result["data"]["train_size"], result["data"]["validation_size"]) == (800, 200)
    assert result["recipe"] == asdict(run.recipe)
    accuracies = result["history"]["validation_acc"]
    assert len(accuracies) == 2
    assert said == f"trial-gn-seed3: {accuracies[-1]:.2f} %"
    assert records.is_done(run, tmp_path / "tuning")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert not list((tmp_path / "checkpoints").rglob("*.pt"))


def test_every_trial_of_the_pages_changes_what_its_name_says():
    starts = {"muon": tune.MUON, "quick": tune.QUICK}
    results = records.load_results(tune.FOLDER / "bfloat16")
    trials = {trial for trial, _, _ in results} & tune.TRIALS.keys()  # not those of the user's own
    assert len(trials) > 15
    for trial in trials:
        recipe = tune.TRIALS[trial]
        start = starts.get(trial.split("-")[0], tune.START)
        ours, theirs = asdict(recipe), asdict(replace(start, name=trial))
        changed = {key: ours[key] for key in ours if ours[key] != theirs[key]}
        assert recipe.name == trial
        assert all(f"-{value:g}" in trial for value in changed.values())
        assert len(changed) == sum(part.replace(".", "").isdigit() for part in trial.split("-"))

"""Reading results: the right run under its own name, or an error that names the file."""

import json
import math
from dataclasses import asdict

import pytest

from common import ROOT, make_run
from experiments import results as records


def write(folder, run, name=None, **changes):
    result = {"recipe": asdict(run.recipe), "norm": run.norm, "seed": run.seed}
    result |= {"history": {}, "environment": {}} | changes
    result["environment"].setdefault("precision", run.precision)
    path = (folder / run.precision / f"{name or run.name}").with_suffix(".json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result), encoding="utf-8")


def test_results_are_found_by_recipe_norm_and_seed(tmp_path):
    write(tmp_path, make_run())
    write(tmp_path, make_run("reference", "none", 12))
    write(tmp_path, make_run(precision="bfloat16", seed=3))
    found = records.load_results(tmp_path / "float32")
    assert set(found) == {("onecycle", "bn", 1), ("reference", "none", 12)}


@pytest.mark.parametrize("text", ["half of it", "[]", '{"recipe": {"name": "x"}}', ""])
def test_what_is_no_result_is_named(text, tmp_path):
    path = tmp_path / "onecycle-bn-seed1.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="onecycle-bn-seed1.json is not the result of a run"):
        records.load_results(tmp_path)


@pytest.mark.parametrize("name", ["onecycle-bn-seed1_old", "a-copy", "onecycle-bn-seed2"])
def test_a_copy_under_another_name_is_refused_by_name(name, tmp_path):
    write(tmp_path, make_run())
    write(tmp_path, make_run(), name)
    with pytest.raises(ValueError, match=f"{name}.json is the result of onecycle-bn-seed1"):
        records.load_results(tmp_path / "float32")


def test_a_result_in_the_folder_of_another_precision_is_refused(tmp_path):
    write(tmp_path, make_run(), environment={"precision": "bfloat16"})
    with pytest.raises(ValueError, match="seed1.json is the result of a run in bfloat16"):
        records.load_results(tmp_path / "float32")


def test_a_number_that_is_not_finite_is_no_result(tmp_path):
    write(tmp_path, make_run(), history={"test_acc": [math.nan]})
    with pytest.raises(ValueError, match="is not the result of a run"):
        records.load_results(tmp_path / "float32")


def test_a_run_whose_result_is_there_is_done(tmp_path):
    run = make_run()
    assert not records.is_done(run, tmp_path)
    write(tmp_path, run)
    assert records.is_done(run, tmp_path)
    assert not records.is_done(make_run(precision="bfloat16"), tmp_path)
    with pytest.raises(ValueError, match="onecycle-bn-seed1.json is of other hyperparameters"):
        records.is_done(make_run(lr=0.3), tmp_path)


def test_a_result_from_before_a_field_was_added_is_of_its_default(tmp_path):
    recipe = asdict(make_run("muon").recipe)
    del recipe["affine_lr"]
    write(tmp_path, make_run("muon"), recipe=recipe)
    assert records.is_done(make_run("muon"), tmp_path)
    with pytest.raises(ValueError, match="other hyperparameters"):
        records.is_done(make_run("muon", affine_lr=1.0), tmp_path)


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_without_a_word_on_it_the_data_are_the_repository_s(value, monkeypatch):
    monkeypatch.delenv("CIFAR10_ROOT")
    if value is not None:
        monkeypatch.setenv("CIFAR10_ROOT", value)
    assert records.find_root() == ROOT / "data"


def test_data_that_several_runs_need_are_fetched_once_and_before(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path))
    monkeypatch.setattr(records, "load_cifar10", lambda root, bar: fetched.append(root))
    records.fetch_data([make_run("smoke"), make_run("smoke", seed=2)])
    assert fetched == []
    records.fetch_data([make_run("smoke"), make_run(), make_run(seed=2)])
    assert fetched == [tmp_path]

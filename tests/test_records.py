"""Reading results: the right run under its own name, or an error that names the file."""

import json
from dataclasses import asdict

import pytest

import records
from common import make_run


def write(folder, run, name=None, **changes):
    result = {"recipe": asdict(run.recipe), "norm": run.norm, "seed": run.seed}
    result |= {"history": {}, "environment": {}} | changes
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


def test_a_run_whose_result_is_there_is_done(tmp_path):
    run = make_run()
    assert not records.is_done(run, tmp_path)
    write(tmp_path, run)
    assert records.is_done(run, tmp_path)
    assert not records.is_done(make_run(precision="bfloat16"), tmp_path)
    with pytest.raises(ValueError, match="onecycle-bn-seed1.json is of other hyperparameters"):
        records.is_done(make_run(lr=0.3), tmp_path)


def test_a_result_from_before_a_field_was_added_is_of_its_default(tmp_path):
    recipe = asdict(make_run().recipe)
    del recipe["affine_lr"]
    write(tmp_path, make_run(), recipe=recipe)
    assert records.is_done(make_run(), tmp_path)
    with pytest.raises(ValueError, match="other hyperparameters"):
        records.is_done(make_run(affine_lr=1.0), tmp_path)

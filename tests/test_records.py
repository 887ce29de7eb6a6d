"""Reading results: the right run under its own name, or an error that names the file."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

import records
from common import ROOT, make_run


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


def test_texts_are_read_and_written_as_utf8_wherever_the_locale_is_another():
    """On Windows the default is cp1252: each open() must name its encoding."""
    code = "import records, evidence, replicate, tune\n"
    code += "records.load_results(records.ROOT / 'results' / 'float32')\n"
    code += "replicate.read_notebook('none')\n"
    if not all(map(pytest.importorskip, ("pandas", "scipy", "tabulate"))):
        return
    command = [sys.executable, "-X", "warn_default_encoding", "-c", code]
    done = subprocess.run(
        command, cwd=ROOT / "experiments", capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    ours = [line for line in done.stderr.splitlines() if str(ROOT) in line]
    assert [line for line in ours if "EncodingWarning" in line] == []
    for path in (*ROOT.glob("*.py"), *(ROOT / "experiments").glob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "read_text(" in line or "write_text(" in line:
                assert "encoding=" in line, f"{path.name}: {line}"

"""What the notebooks hold; that they run is nbval's part."""

import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

import utils
from common import NOTEBOOKS, ROOT
from experiments import results as records

MODULES = ["models.py", "cifar10.py", "runs.py", "utils.py"]
notebooks = pytest.mark.parametrize("norm", NOTEBOOKS)


def read(norm):
    return nbformat.read(NOTEBOOKS[norm], 4).cells


def get_code(norm):
    return [cell.source for cell in read(norm) if cell.cell_type == "code"]


def get_outputs(norm):
    """Return all that the notebook shows as text."""
    outputs = [output for cell in read(norm) for output in cell.get("outputs", [])]
    texts = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs]
    return "\n".join(texts)


def test_the_code_differs_in_one_line_that_names_the_norm():
    lines = {norm: "\n".join(get_code(norm)).split("\n") for norm in NOTEBOOKS}
    assert len({len(code) for code in lines.values()}) == 1
    differ = [row for row in zip(*lines.values(), strict=True) if len(set(row)) > 1]
    assert differ == [tuple(f'norm = "{norm}"' for norm in NOTEBOOKS)]


@notebooks
def test_a_cell_is_short_and_a_sentence_stands_before_it(norm):
    cells = read(norm)
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown"
            assert 1 <= len(cell.source.splitlines()) <= 10
    assert not re.search(r"^\s*(def|class) ", "\n".join(get_code(norm)), re.MULTILINE)


@notebooks
def test_the_blocks_are_the_seven_published_ones(norm):
    text = "\n".join(cell.source for cell in read(norm) if cell.cell_type == "markdown")
    assert re.findall(r"^## Block (\d)", text, re.MULTILINE) == list("1234567")


@notebooks
def test_the_code_is_python_that_a_script_can_hold(norm):
    for source in get_code(norm):
        lines = [line for line in source.splitlines() if not line.startswith("%")]
        compile("\n".join(lines), norm, "exec")


@notebooks
def test_a_figure_has_an_alternative_text(norm):
    figures = [cell for cell in read(norm) if "utils.post_" in cell.source]
    assert len(figures) == 9
    assert len({cell.metadata["alt"] for cell in figures}) == 9


@notebooks
def test_the_committed_outputs_are_of_one_clean_run_on_the_real_data(norm):
    code = [cell for cell in read(norm) if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [output["output_type"] for cell in code for output in cell.outputs]
    assert "error" not in kinds
    assert not any("execution" in cell.metadata for cell in code), "times of the cells"
    text = get_outputs(norm)
    assert "CIFAR-10: 50,000 training and 10,000 test images" in text
    assert "NOT CIFAR-10" not in text
    assert "Total params: 48,448" in text
    assert "Warning" not in text
    assert not re.search(r"(?<![\w.])/\w+/|\b[A-Z]:\\", text), "a path of a machine"


@notebooks
def test_the_committed_run_is_the_committed_result(norm):
    text = get_outputs(norm)
    name = re.search(r"Written: runs/(\S+\.json)", text)[1]
    result = records.load_result(ROOT / "results" / name)
    recipe, seed = result["recipe"]["name"], result["seed"]
    run = utils.Run(utils.get_recipe(recipe), norm, seed, result["environment"]["precision"])
    assert name == run.get_path("", ".json").as_posix()
    assert recipe == re.search(r'"RECIPE", ""\).strip\(\) or "(\w+)"', "\n".join(get_code(norm)))[1]
    history = result["history"]
    lines = text.splitlines()
    for epoch in range(1, 21):
        expected = utils.format_epoch(history, epoch, epochs=epoch)
        assert any(line.startswith(expected) for line in lines), expected
    correct = round(history["test_acc"][-1] * 100)
    assert f"{correct:,} of 10,000 test images right, {history['test_acc'][-1]:.2f}%" in text


# --- The parameters


def find_parameters(norm):
    return next(cell for cell in read(norm) if "parameters" in cell.metadata.get("tags", []))


@notebooks
def test_one_tagged_cell_holds_what_papermill_may_set_and_nothing_else(norm):
    names = re.findall(r"^(\w+) = ", find_parameters(norm).source, re.MULTILINE)
    assert names == ["norm", "recipe", "seed", "precision", "results"]
    assert len(find_parameters(norm).source.splitlines()) == 5


def test_a_value_is_that_set_last_and_an_empty_variable_counts_as_unset(monkeypatch, capsys):
    for name, empty in (("RECIPE", ""), ("SEED", " \n"), ("PRECISION", " ")):
        monkeypatch.setenv(name, empty)
    code = [re.sub("^%.*$", "", source, flags=re.MULTILINE) for source in get_code("ln")]
    place = 1 + code.index(find_parameters("ln").source)
    stop = next(i for i, source in enumerate(code) if "get_data" in source)
    below = 'norm, recipe, seed, precision = "gn", "smoke", 7, "float32"'
    cells = {}
    for source in code[1:stop] + [below] + code[place:stop] * 2:  # and those may be run again
        exec(source, cells)
    said = capsys.readouterr().out
    assert "Layer normalization, 20 epochs of muon, seed 1\n" in said
    assert said.count("Group normalization, 3 epochs of smoke, seed 7") == 2
    assert "convolutions in float32" in said


# --- The first cell


@pytest.mark.parametrize("gone", [[], ["cifar10.py", "utils.py"], MODULES])
def test_what_is_missing_beside_the_notebook_is_named(gone, tmp_path):
    for name in set(MODULES) - set(gone):
        (tmp_path / name).touch()
    command = [sys.executable, "-m", "IPython", "--colors=NoColor", "-c", get_code("bn")[0]]
    env = {**os.environ, "PYTHONPATH": ""}
    said = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True).stdout
    expected = f"Put beside this notebook: {', '.join(n for n in MODULES if n in gone)}"
    assert said.strip() == (expected if gone else "All is here.")


@notebooks
def test_the_modules_that_are_asked_for_are_all_that_the_notebook_imports(norm):
    asked = re.search(r'in \(("models.*?)\)', "\n".join(get_code(norm)))[1]
    assert sorted(f"{name}.py" for name in re.findall(r'"(\w+)"', asked)) == sorted(MODULES)
    for name in MODULES:
        code = (ROOT / name).read_text(encoding="utf-8")
        ours = re.findall(r"^(?:from|import) (models|cifar10|runs|utils|experiments)\b", code, re.M)
        below = {"utils.py": {"models", "cifar10", "runs"}, "runs.py": {"cifar10"}}
        assert set(ours) <= below.get(name, set()), "arrows go down only"


def test_the_notebooks_metadata_is_that_of_any_machine():
    for path in NOTEBOOKS.values():
        metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
        assert metadata["kernelspec"]["name"] == "python3"

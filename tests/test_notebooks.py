"""What the notebooks hold, and that their cells can be run again; that they run is nbval's part."""

import re
from dataclasses import replace
from unittest import mock

import nbformat
import pytest
import torch
from IPython.core.inputtransformer2 import TransformerManager
from torch.utils.data import TensorDataset

import cifar10
import runs
import utils
from common import NOTEBOOKS, ROOT
from experiments import sync

MODULES = ["cifar10.py", "models.py", "plots.py", "runs.py", "utils.py"]
notebooks = pytest.mark.parametrize("norm", NOTEBOOKS)


def read(norm):
    return nbformat.read(NOTEBOOKS[norm], 4).cells


def get_code(norm):
    return [cell.source for cell in read(norm) if cell.cell_type == "code"]


def test_the_code_differs_in_one_line_and_a_text_only_where_it_is_a_lessons_own(capsys):
    lines = {norm: "\n".join(get_code(norm)).split("\n") for norm in NOTEBOOKS}
    differ = [row for row in zip(*lines.values(), strict=True) if len(set(row)) > 1]
    assert differ == [tuple(f'norm = "{norm}"' for norm in NOTEBOOKS)]
    with pytest.raises(SystemExit) as end:
        sync.main(["--check"])
    assert not end.value.code, capsys.readouterr().out


def test_a_code_cell_that_changes_loses_its_outputs():
    output = nbformat.v4.new_output("stream", text="1")
    one, two = (nbformat.v4.new_code_cell(code, id="a", outputs=[output]) for code in "12")
    for old, outputs in ((one, [output]), (two, [])):
        (cell,) = sync.copy_cells([one], [old], "gn")
        assert (cell.source, cell.outputs) == ("1", outputs)


@notebooks
def test_a_cell_is_short_and_defines_nothing_and_a_figure_has_a_text_of_its_own(norm):
    for source in get_code(norm):
        assert 1 <= len(source.splitlines()) <= 10, source
    assert not re.search(r"^\s*(def|class) ", "\n".join(get_code(norm)), re.MULTILINE)
    figures = [cell for cell in read(norm) if re.search(r"^(utils\.)?post_", cell.source, re.M)]
    texts = {cell.metadata.get("alt") for cell in figures} - {None}
    assert len(texts) == len(figures) >= 12


@notebooks
def test_the_idea_comes_first_and_then_the_seven_published_blocks(norm):
    text = "\n".join(cell.source for cell in read(norm) if cell.cell_type == "markdown")
    headings = re.findall(r"^## (.+)", text, re.MULTILINE)
    assert headings[0].startswith("The idea")
    assert [h[6] for h in headings if h.startswith("Block ")] == list("1234567")


@notebooks
def test_the_committed_outputs_are_of_one_clean_run_on_the_real_data(norm):
    code = [cell for cell in read(norm) if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any("execution" in cell.metadata for cell in code), "times of the cells"
    outputs = [output for cell in code for output in cell.outputs]
    texts = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs]
    text = "\n".join(texts)
    assert "CIFAR-10: 50,000 training and 10,000 test images" in text
    assert "Total params: 48,448" in text
    assert "Warning" not in text
    assert "error" not in [output["output_type"] for output in outputs]
    assert not re.search(r"(?<![\w.])/\w+/|\b[A-Z]:\\", text), "a path of a machine"
    epochs = re.findall(r"^ +(\d+) .*? (\S+) +\S+(?:  \S+ min left)?$", text, re.MULTILINE)
    assert [int(epoch) for epoch, _ in epochs] == list(range(1, 21))
    assert f"of 10,000 test images right, {epochs[-1][1]}%" in text
    assert NOTEBOOKS[norm].stat().st_size < 1_200_000, "bytes"


# --- To run a cell again


class Notebook:
    """The cells of a notebook, run in this process on 64 images and with figures not drawn."""

    def __init__(self, norm, patch):
        small, data = replace(runs.RECIPES["smoke"], epochs=1), cifar10.load_sample()
        parts = (TensorDataset(*part[:64]) for part in (data.train, data.test))
        data = cifar10.Data(data.classes, *parts)
        patch.setitem(runs.RECIPES, "smoke", small)
        patch.setattr(utils, "load_sample", lambda: data)
        transform = TransformerManager().transform_cell
        self.code = [transform(source).replace(", 60)", ", 12)") for source in get_code(norm)]
        self.names = {"get_ipython": mock.Mock()}

    def find(self, text):
        return next(i for i, source in enumerate(self.code) if text in source)

    def run(self, start=0, stop=None):
        for source in self.code[start:stop]:
            exec(source, self.names)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The Batch notebook, run from top to bottom."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("book"))
        torch.seed()  # another state each time: the cells seed what they need
        book = Notebook("bn", patch)
        book.run()
        yield book


def test_the_cells_train_what_assemble_does(book):
    names, data = book.names, utils.load_sample()
    training = utils.assemble(names["run"], data)
    assert names["history"] | {"seconds": 0} == utils.fit(names["run"], training) | {"seconds": 0}
    plain = utils.Loader(data.train, utils.get_test_transforms(), 500)
    accuracy = utils.test(training.model, plain, training.criterion, names["run"].precision)[1]
    assert names["clean_train_acc"] == pytest.approx(accuracy, abs=0.2)


def test_a_name_means_one_thing_and_every_cell_can_be_run_again(book):
    names, first = book.names, book.names["history"]["test_loss"]
    sizes = {"images": 64, "labels": 64, "truth": 64, "prediction": 64}
    assert {name: len(names[name]) for name in sizes} == sizes
    assert type(names["optimizer"]).__name__ == "Muon", "not that of the race"
    training = book.find("history = utils.fit")
    book.run(training, training + 1)  # alone, after its result was written
    assert names["history"]["test_loss"] == first
    block_5 = book.find("C1 = ")
    book.run(stop=block_5)  # all of them a second time: the first blocks, then the others
    book.run(block_5)
    assert names["history"]["test_loss"] == first
    book.run(book.find("post_accuracyplots"))  # block 7 alone


# --- The parameters, and the files beside the notebook


@notebooks
def test_the_first_cell_holds_what_papermill_may_set_on_any_machine(norm):
    cell = next(cell for cell in read(norm) if cell.cell_type == "code")
    assert cell.metadata["tags"] == ["parameters"]
    names = re.findall(r"^(\w+) = ", cell.source, re.MULTILINE)
    assert names == ["norm", "recipe", "seed", "precision", "results"]
    assert nbformat.read(NOTEBOOKS[norm], 4).metadata["kernelspec"]["name"] == "python3"


def test_a_value_is_that_set_last_and_an_empty_variable_counts_as_unset(monkeypatch, capsys):
    book = Notebook("ln", monkeypatch)
    for name in ("RECIPE", "SEED", "PRECISION"):
        monkeypatch.setenv(name, "")
    stop = book.find("utils.get_data")
    book.run(0, stop)
    exec('norm, recipe, seed, precision = "gn", "smoke", 7, "float32"', book.names)
    book.run(1, stop)
    said = capsys.readouterr().out
    assert "Layer normalization, 20 epochs of muon, seed 1\n" in said
    assert "Group normalization, 1 epochs of smoke, seed 7" in said
    assert "convolutions in float32" in said


@notebooks
def test_the_files_to_upload_are_all_that_the_notebook_imports(norm):
    text = "\n".join(cell.source for cell in read(norm) if cell.cell_type == "markdown")
    upload = re.search(r"In Colab, upload (.*)", text)[1]
    assert sorted(re.findall(r"`(.+?)`", upload)) == sorted([*MODULES, cifar10.SHEET.name])
    below = {
        "utils.py": {"models", "cifar10", "runs", "plots"},
        "plots.py": {"runs"},
        "runs.py": {"cifar10"},
    }
    for name in MODULES:
        code = (ROOT / name).read_text(encoding="utf-8")
        ours = r"^(?:from|import) (models|cifar10|plots|runs|utils|experiments)\b"
        found = set(re.findall(ours, code, re.MULTILINE))
        assert found <= below.get(name, set()), "arrows go down only"

"""The README tells the truth: its numbers, its commands, its files."""

import re

import pytest
import torch

import evidence
import utils
from conftest import NOTEBOOKS, ROOT

README = (ROOT / "README.md").read_text()
RESULTS = evidence.load_results(ROOT / "results")
NAMES = [(recipe, norm, 1) for recipe in ("onecycle", "reference") for norm in NOTEBOOKS]


def test_the_table_is_made_from_the_results():
    assert evidence.renew(README, "results", evidence.make_table(RESULTS)) == README


def test_the_findings_numbers_are_those_of_the_results():
    findings = " ".join(README.split("\n## Findings\n")[1].split("\n## ")[0].split())
    accuracy = {name: evidence.get_accuracy(RESULTS[name]) for name in NAMES}
    ours, reference = (
        [accuracy[recipe, norm, 1] for norm in NOTEBOOKS] for recipe in ("onecycle", "reference")
    )
    published = evidence.PUBLISHED.values()
    below = [b[1] - a[1] for a, b in zip(reference, published, strict=True)]
    gains = [a[1] - b[1] for a, b in zip(ours, reference, strict=True)]
    gaps = [train - test for train, test in ours]
    apart = [max(t for _, t in runs) - min(t for _, t in runs) for runs in (ours, reference)]
    assert "end {:.1f}, {:.1f} and {:.1f} points (bn, gn, ln) below".format(*below) in findings
    assert "ends {:.1f}, {:.1f} and {:.1f} points above `reference`".format(*gains) in findings
    assert "lie {:.1f} points apart with `onecycle` and {:.1f} with".format(*apart) in findings
    assert "ends {:.1f}, {:.1f} and {:.1f} points above test".format(*gaps) in findings


def test_no_accuracy_in_the_text_is_from_elsewhere():
    measured = [value for result in RESULTS.values() for value in evidence.get_accuracy(result)]
    known = [value for pair in evidence.PUBLISHED.values() for value in pair] + measured
    quoted = re.findall(r"\b\d\d\.\d\d\b", README)
    assert len(quoted) >= 18
    assert set(quoted) <= {f"{value:.2f}" for value in known}


def test_markers_that_are_missing_are_an_error():
    with pytest.raises(ValueError, match="0 places marked <!-- results -->"):
        evidence.renew("no markers", "results", "text")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: "-".join(map(str, name)))
def test_a_result_is_whole_and_agrees_with_itself(name):
    result = RESULTS[name]
    recipe, history = utils.get_recipe(name[0]), result["history"]
    assert utils.Recipe(**result["recipe"]) == recipe
    assert result["parameters"] == 48_448
    assert result["data"] == {"name": "CIFAR-10", "train_size": 50_000, "test_size": 10_000}
    assert set(history) == {"lr", "train_loss", "train_acc", "test_loss", "test_acc", "seconds"}
    assert {len(values) for values in history.values()} == {recipe.epochs}
    assert re.fullmatch(r"\d{10000}", result["test_predictions"])


@pytest.mark.parametrize("norm", NOTEBOOKS)
def test_onecycle_reaches_what_is_expected_of_it(norm):
    _, test = evidence.get_accuracy(RESULTS["onecycle", norm, 1])
    assert test >= {"bn": 83.5, "gn": 82.0, "ln": 82.0}[norm]


def test_the_commands_are_there_and_ci_runs_the_one_for_the_tests():
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
    setup = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && "
    assert [command.startswith(setup) for command in commands] == [True, True, False]
    run, test, benchmark = (command.removeprefix(setup) for command in commands)
    assert (ROOT / benchmark.removeprefix(".venv/bin/python ")).is_file()
    assert run.startswith(".venv/bin/jupyter nbconvert --to notebook --execute --inplace ")
    assert ROOT / run.split()[-1] in NOTEBOOKS.values()
    assert test == ".venv/bin/pytest"
    assert "grep -m 1 'bin/pytest$' README.md" in (ROOT / ".ci" / "run").read_text()


def test_every_link_and_image_leads_to_a_file():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) >= 12
    assert [target for target in targets if not (ROOT / target).exists()] == []
    assert all(alt for alt in re.findall(r"!\[(.*?)\]", README))


def test_the_names_in_the_block_table_exist():
    table = README[README.index("block by block") : README.index("file by file")]
    names = re.findall(r"`(?:utils\.)?((?:get|post|save)_\w+|fit|train|test|predict)`", table)
    assert len(names) >= 16
    assert [name for name in names if not callable(getattr(utils, name, None))] == []


@pytest.mark.cifar10
@pytest.mark.parametrize("norm", NOTEBOOKS)
def test_the_committed_weights_give_the_accuracy_in_the_result(norm, cifar10_root):
    result = RESULTS["onecycle", norm, 1]
    data = utils.get_data(utils.get_recipe("onecycle"), cifar10_root, torch.device("cpu"))
    loader = utils.get_loader(data.test, utils.get_test_transforms(), 128)
    prediction, labels = utils.predict(evidence.load_model(result, ROOT / "results").cpu(), loader)
    accuracy = 100 * (prediction.argmax(dim=1) == labels).double().mean().item()
    # On another machine a rounding can tip an image that is on the edge.
    here = utils.get_environment(torch.device("cpu")) == result["environment"]
    assert accuracy == pytest.approx(result["history"]["test_acc"][-1], abs=1e-9 if here else 0.1)
    same = sum(
        digit == str(label)
        for digit, label in zip(result["test_predictions"], data.test.tensors[1].tolist(), strict=1)
    )
    assert same / 100 == pytest.approx(result["history"]["test_acc"][-1])

"""The README tells the truth: its numbers, its commands, its files."""

import os
import re
import statistics
import subprocess
from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset

import evidence
import replicate
import tune
import utils
from conftest import NOTEBOOKS, ROOT

README = (ROOT / "README.md").read_text()
TEXT = " ".join(README.split())  # whatever its line breaks
COMMANDS = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
FINDINGS = " ".join(README.split("\n## Findings\n")[1].split("\n## ")[0].split())
RESULTS = evidence.load_all(ROOT / "results")
TRIALS = evidence.load_results(tune.FOLDER)
BFLOAT16 = evidence.load_results(ROOT / "results" / "bfloat16")


def test_the_tables_are_made_from_the_results():
    assert evidence.renew(README, "results", evidence.make_table(RESULTS)) == README
    assert evidence.renew(README, "architecture", evidence.make_architecture()) == README
    assert evidence.renew(README, "tuning", evidence.make_tuning(TRIALS)) == README


def test_the_statistics_are_made_from_the_results():
    pytest.importorskip("scipy", reason="needs experiments/requirements.txt")
    assert evidence.renew(README, "seeds", evidence.make_seeds(RESULTS)) == README
    assert evidence.renew(README, "differences", evidence.make_differences(RESULTS)) == README
    assert evidence.renew(README, "precisions", evidence.make_precisions(RESULTS)) == README


@pytest.mark.cifar10
def test_mcnemars_table_is_made_from_the_results(cifar10_root):
    pytest.importorskip("scipy", reason="needs experiments/requirements.txt")
    labels = utils.load_cifar10(cifar10_root).test.tensors[1].tolist()
    assert evidence.renew(README, "mcnemar", evidence.make_mcnemar(RESULTS, labels)) == README
    for norm in NOTEBOOKS:
        runs = (results["reference", norm, 1] for results in (RESULTS, BFLOAT16))
        p = evidence.compare_pairs(*(evidence.get_hits(run, labels) for run in runs))[2]
        assert p > 0.05 if norm == "bn" else p < 0.001


def test_the_finding_on_the_lead_is_what_mcnemars_table_says():
    rows = re.findall(r"^\| `(\w+)` \| (\w\w, \w\w) \| (\d+) \| (\d+) \| (.+) \|$", README, re.M)
    told_apart = {row[:2] for row in rows if float(row[4].strip("< ")) < 0.05}
    assert told_apart == {("reference", "bn, gn"), ("reference", "bn, ln")}
    assert all(int(row[2]) > int(row[3]) for row in rows if row[:2] in told_apart)
    assert len(rows) == 6


def get_finals(recipe, part):
    """Return the final "train" or "test" accuracies of bn, gn and ln, each by seed."""
    index = ("train", "test").index(part)
    runs = (evidence.get_runs(RESULTS, recipe, norm) for norm in NOTEBOOKS)
    return [{seed: evidence.get_accuracy(r)[index] for seed, r in by.items()} for by in runs]


def get_means(recipe, part):
    """Return the means over the seeds of what `get_finals` returns."""
    return [statistics.mean(by.values()) for by in get_finals(recipe, part)]


def subtract(ones, others):
    return [one - other for one, other in zip(ones, others, strict=True)]


def test_the_findings_numbers_are_those_of_the_results():
    ours, float32, reference = (get_means(recipe, "test") for recipe in evidence.COMPARED)
    said = "ends {:.1f}, {:.1f} and {:.1f} points above `reference` (bn, gn, ln), and in the same "
    said += "precision, float32, {:.1f}, {:.1f} and {:.1f} points"
    assert said.format(*subtract(ours, reference), *subtract(float32, reference)) in FINDINGS
    apart = [max(means) - min(means) for means in (ours, float32, reference)]
    said = "lie {:.1f} points apart with `onecycle`, {:.1f} in float32, and {:.1f} with `reference`"
    assert said.format(*apart) in FINDINGS
    gaps = subtract(get_means("onecycle", "train"), ours)
    assert "ends {:.1f}, {:.1f} and {:.1f} points above it (bn".format(*gaps) in FINDINGS


def test_the_finding_on_the_precisions_is_that_of_the_runs_of_seed_1():
    float32, bfloat16 = (
        [evidence.get_accuracy(results["reference", norm, 1])[1] for norm in NOTEBOOKS]
        for results in (RESULTS, BFLOAT16)
    )
    points = "{:+.2f}, {:+.2f} and {:+.2f}".format(*subtract(bfloat16, float32))
    assert f"had ended {points} points (bn, gn, ln) from those in float32" in FINDINGS
    published = [test for _, test in evidence.PUBLISHED.values()]
    missed = [miss > 1 for miss in subtract(published, bfloat16)]
    assert missed == [False, True, True], "the README says: by more than a point"


def get_differences(first_cell):
    """Return the rows that begin with that cell, as three tuples: train, test, and their gap.

    Each is a mean and the lower and upper end of its interval, as the table says them.
    """
    interval = r"\| ([+-]\S+) \(([+-]\S+) to ([+-]\S+)\) "
    rows = re.findall(rf"^\| {re.escape(first_cell)} \| .*5 {3 * interval}\|$", README, re.M)
    return [[tuple(map(float, row[i : i + 3])) for i in (0, 3, 6)] for row in rows]


def includes_0(interval):
    return interval[1] <= 0 <= interval[2]


def test_the_findings_on_the_published_recipe_are_what_the_table_says():
    bn_gn, bn_ln, _ = get_differences("`reference`")
    said = "`bn` leads by {:.1f} and {:.1f} points in test accuracy (before `gn` and `ln`) and by"
    assert said.format(bn_gn[1][0], bn_ln[1][0]) in FINDINGS
    assert f"by {bn_gn[0][0]:.1f} and {bn_ln[0][0]:.1f} in train accuracy" in FINDINGS
    assert not any(map(includes_0, (*bn_gn[:2], *bn_ln[:2])))
    for part in ("train", "test"):
        bn, gn, ln = get_finals("reference", part)
        assert all(bn[seed] > other[seed] for other in (gn, ln) for seed in range(1, 6))


def test_the_finding_on_the_better_recipe_is_what_the_table_says():
    said = "`bn` leads by {:.1f} and {:.1f} points in test accuracy in float32, and no interval "
    said += "includes 0; in bfloat16 by {:.1f} and {:.1f}, and each does"
    float32, bfloat16 = map(get_differences, ("`onecycle` in float32", "`onecycle`"))
    leads = [row[1] for row in (*float32[:2], *bfloat16[:2])]
    assert said.format(*(mean for mean, _, _ in leads)) in FINDINGS
    assert list(map(includes_0, leads)) == [False, False, True, True]
    assert all(includes_0(row[0]) for row in (*float32[:2], *bfloat16[:2]))


def test_the_finding_on_group_and_layer_is_what_the_table_says():
    words, ahead = ("no", "one", "two", "three", "four", "all"), {}
    for recipe, label in evidence.COMPARED.items():
        _, gn, ln = get_finals(recipe, "test")
        ahead[recipe] = words[sum(ln[seed] > gn[seed] for seed in range(1, 6))]
        assert includes_0(get_differences(label)[2][1])
    trains = [get_differences(label)[2][0] for label in evidence.COMPARED.values()]
    assert list(map(includes_0, trains)) == [False, True, True]
    assert trains[0][0] < 0, "the README says: in favour of ln"
    said = f"`ln` beats `gn` with {ahead['reference']} of the five seeds of `reference`, and of "
    said += f"`onecycle` with {ahead['onecycle']} in bfloat16 and {ahead[evidence.FLOAT32]} in"
    assert said in FINDINGS


def test_the_finding_on_regularization_is_what_the_table_says():
    rows = [row for label in evidence.COMPARED.values() for row in get_differences(label)[:2]]
    gaps = [row[2] for row in rows]
    means = [-mean for mean, _, _ in gaps]
    assert f"It does, by {min(means):.1f} to {max(means):.1f} points, but only one" in FINDINGS
    assert len(gaps) == 6
    assert sum(map(includes_0, gaps)) == 5
    on_train = re.search(r"end (.+), (.+) and (.+) points above their", FINDINGS).groups()
    assert on_train[0] == max(on_train), "the README says: with seed 1 that of bn is not smaller"


def test_the_finding_on_bfloat16_is_what_the_table_says():
    rows = [get_differences(f"{name} (`{norm}`)") for norm, name in evidence.NAMES.items()]
    bn, gn, ln = (tests for ((_, tests, _),) in rows)
    assert f"is {bn[0]:+.2f}, {gn[0]:+.2f} and {ln[0]:+.2f} points in test accuracy" in FINDINGS
    assert (includes_0(bn), gn[2] < 0, includes_0(ln)) == (True, True, True)


def test_the_findings_on_the_seeds_are_those_of_the_results():
    tests = [list(by.values()) for by in get_finals("reference", "test")]
    published = [test for _, test in evidence.PUBLISHED.values()]
    spreads = [max(values) - min(values) for values in tests]
    assert "spread over {:.1f}, {:.1f} and {:.1f} points".format(*spreads) in FINDINGS
    ours = [max(by.values()) - min(by.values()) for by in get_finals("onecycle", "test")]
    least, most = min(spreads + ours), max(spreads + ours)
    assert f"spread over {least:.1f} to {most:.1f} points" in TEXT
    steps = (published[0] - published[1], published[1] - published[2])
    assert "lie {:.1f} (bn to gn) and {:.1f} (gn to ln)".format(*steps) in FINDINGS
    assert all(spread > max(steps) for spread in spreads[1:])
    other = [evidence.get_accuracy(BFLOAT16["reference", norm, 1])[1] for norm in NOTEBOOKS]
    assert all(min(a) <= test <= max(a) for a, test in zip(tests, other, strict=True))
    off = subtract(get_means("reference", "test"), published)
    said = "ends {:+.1f}, {:+.1f} and {:+.1f} points (bn, gn, ln) from them".format(*off)
    assert f"{said} in the mean of five seeds each" in FINDINGS
    assert list(map(len, tests)) == [5, 5, 5]
    assert [max(a) < b for a, b in zip(tests, published, strict=True)] == [False, True, False]
    pytest.importorskip("scipy", reason="needs experiments/requirements.txt")
    one_more = [evidence.get_interval(a) * (len(a) + 1) ** 0.5 for a in tests]  # of a single run
    assert all(abs(d) < half for d, half in zip(off, one_more, strict=True))
    said = "one more run would lie within {:.1f}, {:.1f} and {:.1f} points of that mean"
    assert said.format(*one_more) in FINDINGS


def test_the_times_threads_and_precisions_are_those_that_the_readme_names():
    environments = {name: run["environment"] for name, run in RESULTS.items()}
    precisions = {"onecycle": "bfloat16", evidence.FLOAT32: "float32", "reference": "float32"}
    for recipe, precision in precisions.items():
        found = {e["precision"] for name, e in environments.items() if name[0] == recipe}
        assert found == {precision}
    assert {run["environment"]["precision"] for run in BFLOAT16.values()} == {"bfloat16"}
    assert {trial["environment"]["precision"] for trial in TRIALS.values()} == {"bfloat16"}
    two = {name for name, environment in environments.items() if environment["threads"] != 1}
    assert two == {("reference", "bn", 1)}
    runs = [RESULTS["onecycle", norm, 1]["history"]["seconds"] for norm in NOTEBOOKS]
    minutes = sorted(round(sum(seconds) / 60) for seconds in runs)
    assert "`onecycle` in bfloat16 and `reference` in float32, with one thread (`bn` with" in TEXT
    assert f"the committed ones trained for {minutes[0]} to {minutes[-1]} minutes; in" in TEXT
    runs = [run["history"]["seconds"] for key, run in RESULTS.items() if key[0] == evidence.FLOAT32]
    minutes = sorted(round(sum(seconds) / 60) for seconds in runs)
    assert f"in float32 it takes {minutes[0]} to {minutes[-1]})" in TEXT
    assert len(runs) == 15


def test_accuracies_stand_only_in_the_tables_that_are_made_from_the_results():
    text = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", README, flags=re.DOTALL)
    assert len(text) < len(README)
    assert re.findall(r"\b\d\d\.\d\d\b", text) == []


def test_markers_that_are_missing_are_an_error():
    with pytest.raises(ValueError, match="0 places marked <!-- results -->"):
        evidence.renew("no markers", "results", "text")


@pytest.mark.parametrize("name", RESULTS, ids=lambda name: "-".join(map(str, name)))
def test_a_result_is_whole_and_agrees_with_itself(name):
    result = RESULTS[name]
    recipe, history = utils.get_recipe(result["recipe"]["name"]), result["history"]
    assert utils.Recipe(**result["recipe"]) == recipe
    assert result["parameters"] == 48_448
    assert result["data"] == {"name": "CIFAR-10", "train_size": 50_000, "test_size": 10_000}
    assert set(history) == {"lr", "train_loss", "train_acc", "test_loss", "test_acc", "seconds"}
    assert {len(values) for values in history.values()} == {recipe.epochs}
    assert re.fullmatch(r"\d{10000}", result["test_predictions"])


@pytest.mark.parametrize("name", TRIALS, ids=lambda name: "-".join(map(str, name)))
def test_a_trial_is_whole_and_of_the_recipe_that_it_is_named_for(name):
    trial = TRIALS[name]
    assert utils.Recipe(**trial["recipe"]) == tune.make_run(*name).recipe
    assert trial["seed"] == 1, "the README says: one seed each"
    sizes = {"train_size": 45_000, "validation_size": 5_000}
    assert trial["data"] == {"name": "CIFAR-10", **sizes}
    assert {len(values) for values in trial["history"].values()} == {20}
    assert not any("test" in key for key in (*trial, *trial["history"]))


def test_onecycle_has_the_best_learning_rate_and_no_later_trial_beats_it_by_the_margin():
    finals = {
        trial: [TRIALS[trial, norm, 1]["history"]["validation_acc"][-1] for norm in NOTEBOOKS]
        for trial in {name[0] for name in TRIALS}
    }
    means = {trial: statistics.mean(values) for trial, values in finals.items()}
    best = max(("start", "lr-0.2", "lr-0.05"), key=means.get)
    assert replace(tune.make_run(best, "bn", 1).recipe, name="onecycle") == utils.get_recipe(
        "onecycle"
    )
    gain = max(means.values()) - means[best]
    assert gain < tune.MARGIN
    assert f"None did: the best of them raised it by {gain:.1f}." in TEXT
    rates = {
        trial: accs for trial, accs in finals.items() if re.fullmatch(r"start|lr-[^-]+", trial)
    }
    own = [max(rates, key=lambda trial, i=i: rates[trial][i]) for i in range(3)]
    gains = [rates[trial][i] - rates[best][i] for i, trial in enumerate(own)]
    lrs = [f"{tune.make_run(trial, 'bn', 1).recipe.lr:g}" for trial in own]
    said = "learning rate of the four tried alone, {}, {} and {} (bn, gn, ln), the three would gain"
    assert said.format(*lrs) in TEXT
    assert len(rates) == 4
    said = "{:.1f}, {:.1f} and {:.1f} points on these images, where one trial shows nothing below"
    assert f"{said.format(*gains)} {tune.MARGIN * 3**0.5:.1f}." in TEXT  # of one norm, not three
    assert f"over the three normalizations, by {means[best] - means['start']:.1f} points" in TEXT


@pytest.mark.cifar10
def test_the_margin_is_two_standard_errors(cifar10_root):
    labels = utils.load_cifar10(cifar10_root).test.tensors[1].tolist()
    runs = (evidence.get_runs(RESULTS, "onecycle", norm).values() for norm in NOTEBOOKS)
    hits = torch.tensor([[evidence.get_hits(run, labels) for run in seeds] for seeds in runs])
    generator = torch.Generator().manual_seed(0)
    halves = [torch.randperm(10_000, generator=generator)[:5_000] for _ in range(100)]
    variances = [hits[:, :, half].double().mean(dim=2).var(dim=1).mean() for half in halves]
    error = 100 * (2 * torch.stack(variances).mean() / 3) ** 0.5  # of a difference of means of 3
    assert f"{2 * error:.1f}" == str(tune.MARGIN)
    assert f"of `lr-0.05` by {tune.MARGIN} points to be taken" in TEXT


def test_the_norms_have_the_same_number_of_trials():
    bn, gn, ln = ({(t, seed) for t, n, seed in TRIALS if n == norm} for norm in NOTEBOOKS)
    assert bn == gn == ln


@pytest.mark.parametrize("norm", NOTEBOOKS)
def test_onecycle_reaches_what_is_expected_of_it(norm):
    _, test = evidence.get_accuracy(RESULTS["onecycle", norm, 1])
    assert test >= {"bn": 83.5, "gn": 82.0, "ln": 82.0}[norm]


def test_the_commands_are_there_and_ci_runs_the_one_for_the_tests():
    setup = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && "
    run, test = (command.removeprefix(setup) for command in COMMANDS if command.startswith(setup))
    assert run.startswith(".venv/bin/jupyter nbconvert --to notebook --execute --inplace ")
    assert ROOT / run.split()[-1] in NOTEBOOKS.values()
    assert test == ".venv/bin/pytest"
    assert "grep -m 1 'bin/pytest$' README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_experiments_take_the_options_that_are_shown():
    shown = re.findall(r"\.venv/bin/python experiments/(\w+)\.py(.*)", "\n".join(COMMANDS))
    parsers = {"replicate": replicate.parse, "tune": tune.parse}
    for name, options in shown:
        assert (ROOT / "experiments" / f"{name}.py").is_file()
        if name in parsers and "$" not in options:
            parsers[name](options.split())  # SystemExit for an unknown one
        elif name not in parsers:
            assert options == ""
    assert {name for name, _ in shown} == {"replicate", "tune", "evidence", "benchmark"}


def test_the_scheduler_gets_all_runs_one_a_job(tmp_path):
    command = next(command for command in COMMANDS if "sbatch" in command)
    stub = tmp_path / "sbatch"  # prints what each job of the array would run
    stub.write_text('#!/bin/sh\nfor SLURM_ARRAY_TASK_ID in 1 2 3 4 5; do eval "echo $3"; done\n')
    stub.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    jobs = subprocess.run(
        ["sh", "-c", command], env={"PATH": path}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    runs = [replicate.parse(job.split("replicate.py ")[1].split()) for job in jobs]
    assert all(len(run.norms) == len(run.recipes) == len(run.seeds) == 1 for run in runs)
    assert "--array=1-5 --wrap " in command
    assert len({(*run.norms, *run.recipes, *run.seeds) for run in runs}) == 30


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
@pytest.mark.parametrize(("index", "norm"), list(enumerate(NOTEBOOKS, 1)))
def test_the_committed_weights_give_the_accuracies_that_are_said(index, norm, cifar10_root):
    result = RESULTS["onecycle", norm, 1]
    data = utils.get_data(utils.get_recipe("onecycle"), cifar10_root, torch.device("cpu"))
    loader = utils.get_loader(data.test, utils.get_test_transforms(), 128)
    model = evidence.load_model(result, ROOT / "results").cpu()
    prediction, labels = utils.predict(model, loader)
    accuracy = 100 * (prediction.argmax(dim=1) == labels).double().mean().item()
    # On another machine a rounding can tip an image that is on the edge.
    here = utils.get_environment(torch.device("cpu")) == result["environment"]
    assert accuracy == pytest.approx(result["history"]["test_acc"][-1], abs=1e-9 if here else 0.1)
    gap = float(re.search(r"end (.+), (.+) and (.+) points above their", FINDINGS)[index])
    images, labels = (tensor[:10_000] for tensor in data.train.tensors)
    loader = utils.get_loader(TensorDataset(images, labels), utils.get_test_transforms(), 128)
    prediction, _ = utils.predict(model, loader)
    on_train = 100 * (prediction.argmax(dim=1) == labels).double().mean().item()
    assert on_train - accuracy == pytest.approx(gap, abs=0.05 if here else 0.15)
    same = sum(
        digit == str(label)
        for digit, label in zip(result["test_predictions"], data.test.tensors[1].tolist(), strict=1)
    )
    assert same / 100 == pytest.approx(result["history"]["test_acc"][-1])

"""What the pages say of the results is what the results say: tables, findings, searches."""

import re
import statistics
from dataclasses import replace
from itertools import combinations

import pytest
import torch

import utils
from cifar10 import load_cifar10
from common import CPU, OUR_NORMS, PAGES, ROOT, get_rows, need_packages, skip_if_changed
from experiments import claims, tune
from experiments import results as records
from experiments.results import COMPARED, RECIPES, SEEDS, SHOWN
from runs import get_environment

README, LAB = PAGES.values()
TEXT, LAB_TEXT = (" ".join(page.split()) for page in PAGES.values())  # whatever the line breaks
FINDINGS = " ".join(README.split("\n## Findings\n")[1].split("\n## ")[0].split())
RESULTS, BFLOAT16 = (
    records.load_results(ROOT / "results" / name) for name in ("float32", "bfloat16")
)
# As many seeds of a trial as the page says; others are the user's own.
SEEDS_OF_TRIALS = {row[0].strip("`"): int(row[1]) for row in get_rows(LAB, "tuning")}
TRIALS = {
    (trial, norm, seed): result
    for (trial, norm, seed), result in records.load_results(tune.FOLDER / "bfloat16").items()
    if seed <= SEEDS_OF_TRIALS.get(trial, 0)
}
CLAIMED = records.load_results(claims.FOLDER / "float32")
ALL = [  # but not those of the user's own recipes and norms
    (precision, *key)
    for precision, runs in (("float32", RESULTS), ("bfloat16", BFLOAT16))
    for key in runs
    if key[0] in SHOWN and key[1] in OUR_NORMS
]


def get_finals(recipe, part, results=RESULTS):
    """Return the final "train" or "test" accuracies of bn, gn and ln over the pages' seeds."""
    return [
        [run["history"][f"{part}_acc"][-1] for run in records.pick(results, recipe, norm)]
        for norm in COMPARED
    ]


def get_means(recipe, part, results=RESULTS):
    return list(map(statistics.mean, get_finals(recipe, part, results)))


def subtract(ones, others):
    return [one - other for one, other in zip(ones, others, strict=True)]


@pytest.fixture(autouse=True)
def committed():
    skip_if_changed("results")


def test_a_page_is_held_to_results_only_where_git_can_tell_that_they_are_committed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.skip.Exception, match="git can't tell"):
        skip_if_changed("results")


# --- Tables


@pytest.fixture
def evidence():
    need_packages()
    from experiments import evidence

    return evidence


def test_the_tables_are_made_from_the_results(evidence):
    runs = evidence.reasons.get_baseline(RESULTS, CLAIMED)
    baseline = evidence.reasons.make_baseline_frame(runs)
    table = evidence.make_table(evidence.make_frame(RESULTS), baseline)
    assert evidence.renew(README, {"results": table}) == README
    tables = evidence.make_tables(RESULTS, BFLOAT16, TRIALS, CLAIMED)
    assert len(SEEDS_OF_TRIALS) >= 17, "trials"
    for name, table in tables.items():
        assert evidence.renew(LAB, {name: table}) == LAB, name
    markers = set(re.findall(r"<!-- ([\w-]+) -->", LAB))
    assert markers == {*tables, "mcnemar", "minutes"}


@pytest.mark.cifar10
def test_mcnemars_table_is_made_from_the_results(cifar10_root, evidence):
    labels = load_cifar10(cifar10_root).test.tensors[1].tolist()
    assert evidence.renew(LAB, {"mcnemar": evidence.make_mcnemar(RESULTS, labels)}) == LAB


# --- Findings


def get_number(cell):
    """Return the number that a cell begins with, in bold or not."""
    return float(re.match(r"\**([+-]?[\d.]+)", cell)[1])


def find_epochs(results, recipe, arm, level):
    """Return the first and the last epoch in which a run of the arm gets down to a training loss.

    The level is that of a table, rounded, so a run may end a rounding above it.
    """
    epochs = []
    for run in records.pick(results, recipe, arm):
        losses = run["history"]["train_loss"]
        epochs.append(next(i for i, loss in enumerate(losses, 1) if loss < level + 0.0005))
    return min(epochs), max(epochs)


def get_differences(marker, *first):
    """Return the rows that begin with these cells, as three pairs each: mean, and if shown."""
    rows = [row for row in get_rows(LAB, marker) if row[: len(first)] == list(first)]
    cells = [row[-3:] for row in rows]
    return [[(get_number(cell), "*" in cell) for cell in row] for row in cells]


def test_the_findings_on_the_published_recipe_are_what_the_table_says():
    bn_gn, bn_ln, _ = get_differences("differences", "`reference`")
    said = "`bn` leads by {:.1f} and {:.1f} points in test accuracy (before `gn` and `ln`) and by"
    assert said.format(bn_gn[1][0], bn_ln[1][0]) in FINDINGS
    assert f"by {bn_gn[0][0]:.1f} and {bn_ln[0][0]:.1f} in train accuracy; all four" in FINDINGS
    assert all(shown for row in (bn_gn, bn_ln) for _, shown in row[:2])


def test_the_finding_on_the_better_recipes_is_what_the_table_says():
    bn_gn, bn_ln, gn_ln = get_differences("differences", "`onecycle`")
    said = (
        "`bn` leads by {:.1f} and {:.1f} points in test accuracy; only the lead over `gn` is shown"
    )
    assert said.format(bn_gn[1][0], bn_ln[1][0]) in FINDINGS
    assert [row[1][1] for row in (bn_gn, bn_ln, gn_ln)] == [True, False, False]
    muon = get_differences("differences", "`muon`")
    assert "With `muon` no difference in test accuracy is shown; in train" in FINDINGS
    assert not any(row[1][1] for row in muon)
    assert f"`bn` ends {-muon[1][0][0]:.1f} points below `ln`, and that is." in FINDINGS
    assert [row[0][1] for row in muon] == [False, True, False]
    apart = [max(means) - min(means) for means in (get_means(r, "test") for r in RECIPES)]
    assert f"the three lie within {apart[2]:.1f} points, and five seeds can't tell" in TEXT
    said = "lie {:.1f}, {:.1f} and {:.1f} points apart (`reference`, `onecycle`, `muon`)"
    assert said.format(*apart) in LAB_TEXT


def test_what_is_said_of_quick_is_what_the_results_say(evidence):
    above = subtract(get_means("quick", "test"), evidence.PUBLISHED.values())
    said = "`quick` ends {:.1f}, {:.1f} and {:.1f} points (bn, gn, ln) above the published"
    assert said.format(*above) in FINDINGS
    assert min(above) > 1
    cells = [list(map(float, row[1:])) for row in get_rows(LAB, "minutes")]
    usual, bfloat16, float32 = (sorted(row[i] for row in cells) for i in (1, 3, 6))
    assert f"takes {bfloat16[0]} to {bfloat16[-1]} minutes in bfloat16 and" in FINDINGS
    assert f"and {float32[0]} to {float32[-1]} in float32. A textbook" in FINDINGS
    assert f"takes {usual[0]:.0f} to {usual[-1]:.0f} minutes until `reference` levels" in FINDINGS
    below = [float(row[3]) < evidence.PUBLISHED[row[0]] for row in get_rows(LAB, "minutes")]
    assert below == [False, True, True], "the page says so"
    for i, result in (
        (2, ("reference", RESULTS)),
        (5, ("quick", BFLOAT16)),
        (8, ("quick", RESULTS)),
    ):
        means = get_means(result[0], "test", result[1])
        assert [row[i] for row in cells] == pytest.approx(means, abs=0.006)
    commits = {
        RESULTS["quick", norm, s]["environment"]["commit"] for norm in COMPARED for s in SEEDS
    }
    assert {commit[:7] for commit in commits} == {"6d1ce16"}
    assert "those of `quick` of 6d1ce16" in LAB_TEXT


def test_the_finding_on_group_and_layer_is_what_the_table_says():
    rows = [get_differences("differences", f"`{recipe}`", "gn - ln")[0] for recipe in RECIPES]
    assert not any(shown for row in rows for _, shown in row[:2])
    assert "is not shown to be better than layer normalization" in FINDINGS


def test_the_finding_on_regularization_is_what_the_tables_say(evidence):
    cells = {(row[0].strip("`"), row[2]): row[3] for row in get_rows(LAB, "equal-loss")}
    shown = {key for key, cell in cells.items() if cell.startswith("**")}
    assert shown == {
        ("reference", "bn - gn"),
        ("reference", "bn - ln"),
        ("onecycle", "bn - gn"),
    }
    levels = {row[0].strip("`"): float(row[1]) for row in get_rows(LAB, "equal-loss")}

    def get_test(recipe, norm, level):
        tests = [
            evidence.reasons.interpolate(
                run["history"]["train_loss"], run["history"]["test_acc"], level
            )
            for run in records.pick(RESULTS, recipe, norm)
        ]
        return statistics.mean(tests)

    runs = [RESULTS["reference", norm, s]["history"] for norm in COMPARED for s in SEEDS]
    lowest = max(min(history["train_loss"]) for history in runs)
    bn, gn, ln = (get_test("reference", norm, lowest) for norm in COMPARED)
    gn, ln = bn - gn, bn - ln
    more = get_number(cells["onecycle", "bn - gn"])
    said = f"`bn` is {gn:.1f} and {ln:.1f} points more accurate in testing"
    assert f"{said} than `gn` and `ln` with `reference`, and {more:.1f} more" in FINDINGS
    assert f"{said} at the same training loss than `gn` and `ln`, with `onecycle` {more:.1f}" in (
        LAB_TEXT
    )
    gn, ln = (row[1] for row in get_rows(LAB, "gap-differences")[:2])
    said = f"{-float(gn.split(' ')[0]):.1f} points smaller than that of `gn` and"
    assert f"{said} {float(ln.split(' ')[0]):.1f} larger than that of `ln`" in LAB_TEXT
    assert not any("*" in row[1] for row in get_rows(LAB, "gap-differences"))
    assert find_epochs(RESULTS, "reference", "bn", levels["reference"]) == (7, 8)
    others = [find_epochs(RESULTS, "reference", norm, levels["reference"]) for norm in ("gn", "ln")]
    at_70 = [get_test("reference", norm, 0.7) for norm in COMPARED]
    said = f"at 0.70 the three lie within {max(at_70) - min(at_70):.1f} points with `reference`"
    assert said in LAB_TEXT
    assert f"and the others in epochs {min(others)[0]} to {max(others)[1]};" in LAB_TEXT
    for recipe in ("onecycle", "muon"):
        assert {find_epochs(RESULTS, recipe, norm, levels[recipe]) for norm in COMPARED} == {
            (20, 20)
        }


def test_the_epochs_to_an_accuracy_are_those_of_the_table(evidence):
    to_70 = {tuple(re.findall(r"`(\w+)`", row[0])): row[2] for row in get_rows(LAB, "speed")}
    for recipe, said in (("reference", "take {}, {} and {} epochs"), ("muon", "but {}, {} and {}")):
        epochs = [
            statistics.mean(
                evidence.reasons.find_crossing(run["history"]["test_acc"], 70)
                for run in records.pick(RESULTS, recipe, norm)
            )
            for norm in COMPARED
        ]
        assert f"{said.format(*(f'{mean:.1f}' for mean in epochs))} with `{recipe}`" in TEXT
    to_80 = {tuple(re.findall(r"`(\w+)`", row[0])): row[3] for row in get_rows(LAB, "speed")}
    numbers = []
    for recipe, without in (("onecycle", "he"), ("muon", "none")):
        norms = [get_number(to_70[recipe, norm]) for norm in COMPARED]
        numbers += [min(norms), max(norms), get_number(to_70[recipe, without])]
    said = (
        "To 70 % `onecycle` takes {:.1f} to {:.1f} epochs with one, and {:.1f} with first weights"
        " of He alone; `muon` takes {:.1f} to {:.1f}, and {:.1f} without. To 80 % it is {:.1f} to"
        " {:.1f} and {:.1f} with `onecycle`; with `muon` it is no more without one."
    )
    norms = [get_number(to_80["onecycle", norm]) for norm in COMPARED]
    numbers += [min(norms), max(norms), get_number(to_80["onecycle", "he"])]
    assert said.format(*numbers) in TEXT
    assert get_number(to_80["muon", "none"]) < min(get_number(to_80["muon", n]) for n in COMPARED)


def test_the_findings_numbers_are_those_of_the_results():
    reference, onecycle, muon = (get_means(recipe, "test") for recipe in RECIPES)
    said = "`onecycle` ends {:.1f}, {:.1f} and {:.1f} points above `reference` (bn, gn, ln)"
    assert said.format(*subtract(onecycle, reference)) in FINDINGS
    said = "and `muon` another {:.1f}, {:.1f} and {:.1f} above that"
    assert said.format(*subtract(muon, onecycle)) in FINDINGS
    assert "bfloat16 costs no accuracy that shows" in LAB_TEXT
    assert not any(shown for row in get_differences("precisions") for _, shown in row)


def test_the_findings_on_the_published_runs_and_the_seeds_are_those_of_the_results(evidence):
    tests = get_finals("reference", "test")
    published = list(evidence.PUBLISHED.values())
    spreads = [max(values) - min(values) for values in tests]
    assert "spread over {:.1f}, {:.1f} and {:.1f} points".format(*spreads) in LAB_TEXT
    steps = (published[0] - published[1], published[1] - published[2])
    assert "lie {:.1f} (bn to gn) and {:.1f} (gn to ln)".format(*steps) in LAB_TEXT
    assert all(spread > max(steps) for spread in spreads[1:])
    off = subtract(get_means("reference", "test"), published)
    said = "ends {:+.1f}, {:+.1f} and {:+.1f} points (bn, gn, ln) from them".format(*off)
    assert f"{said} in the mean of five seeds each" in LAB_TEXT
    assert [max(a) < b for a, b in zip(tests, published, strict=True)] == [False, True, False]
    one_more = [evidence.get_half_width(a) * (len(a) + 1) ** 0.5 for a in tests]  # of a single run
    assert all(abs(d) < half for d, half in zip(off, one_more, strict=True))
    said = "one more run would lie within {:.1f}, {:.1f} and {:.1f} points of that mean"
    assert said.format(*one_more) in LAB_TEXT


def test_runs_of_one_seed_are_no_more_alike_than_others():
    tests = [get_finals(recipe, "test") for recipe in RECIPES[:2]]
    tests.append(get_finals("onecycle", "test", BFLOAT16))
    pairs = [pair for norms in tests for pair in combinations(norms, 2)]
    mean = statistics.mean(statistics.correlation(*pair) for pair in pairs)
    assert len(pairs) == 9
    assert (
        f"correlation of their test accuracies is {abs(mean):.1f} in the mean of nine" in LAB_TEXT
    )


def test_the_times_and_threads_are_those_that_the_pages_name():
    runs = {key: run for key, run in RESULTS.items() if key[0] in RECIPES and key[2] in SEEDS}
    two = {key for key, run in runs.items() if run["environment"]["threads"] != 1}
    assert two == {("reference", "bn", 1)}
    results = [*runs.values(), *BFLOAT16.values(), *TRIALS.values(), *CLAIMED.values()]
    made_by = {(run["environment"]["torch"], run["environment"]["device"]) for run in results}
    assert made_by == {("2.14.1+cu130", "AMD EPYC")}, "the lab book says so"
    seconds = [sum(run["history"]["seconds"]) for key, run in runs.items() if key[0] == "muon"]
    minutes = sorted(round(s / 60) for s in seconds)
    assert f"took {minutes[0]} to {minutes[-1]} minutes each with `muon`" in TEXT


# --- Claims


@pytest.mark.parametrize("name", CLAIMED, ids=lambda name: "-".join(map(str, name)))
def test_a_claim_s_run_is_of_the_protocol_that_the_code_has(name):
    result, claim = CLAIMED[name], name[0].split("-")[0]
    recipe = claims.CLAIMS[claim].recipes[name[0].removeprefix(f"{claim}-")]
    assert claims.is_done(claim, utils.Run(recipe, *name[1:], "float32"))
    assert result["norm"] in claims.CLAIMS[claim].arms
    assert result["environment"]["threads"] == 1
    assert result["environment"]["clean"]


def test_the_rates_are_those_of_the_runs(evidence):
    frame = evidence.reasons.make_frame(CLAIMED, "rates")
    assert "After 4 epochs, three seeds," in LAB_TEXT
    assert set(frame.groupby("value").seed.nunique()) == {3}
    seconds = [
        sum(run["history"].get("seconds", [])) for k, run in CLAIMED.items() if "rates-" in k[0]
    ]
    hours = sum(seconds) / 3600
    said = (
        f"took {hours:.0f} hours, and one run of `rates` some {hours * 60 / len(frame):.0f} minutes"
    )
    assert said in LAB_TEXT
    means = evidence.reasons.get_means(frame)
    at_one = means.loc[list(COMPARED), 1.0]
    said = "At 1 `bn` reaches {:.0f} %, `gn` and `ln` {:.0f} and {:.0f} %"
    assert said.format(*at_one) in TEXT
    assert (frame[(frame.arm == "none")].test == 10).all(), "at no rate"
    rows = {row[0].strip("`"): row[4:] for row in get_rows(LAB, "rates")}
    trains = {arm: cells[0] for arm, cells in rows.items()}
    assert trains == {"none": "–", "he": "0.1", "bn": "1", "gn": "1", "ln": "1"}
    diverged = {rows[norm][1] for norm in COMPARED}
    said = "Of {2} runs {0} diverged with each, all at a rate of 3, and {3} with He's weights"
    assert said.format(*diverged.pop().split(), rows["he"][1].split()[0]) in TEXT
    assert not diverged
    lost = frame[frame.test.isna() & frame.arm.isin(COMPARED)]
    assert set(lost.value) == {3}
    assert means.max(axis=1).idxmax() == "bn"
    lead = means.loc["bn", 0.01] - means.loc[["he", "gn", "ln"], 0.01].max()
    assert f"at 0.01 it is ahead, too, by {lead:.1f} points or more" in LAB_TEXT
    below = means.loc["bn"].max() - means.max(axis=1)
    assert max(below.gn, below.ln) < 3, "as predicted"
    assert 5 < below.he < 10
    assert (means.drop(columns=3.0) <= means.loc["bn"].drop(3.0)).all(axis=None), "ahead at each"
    lost = (means.max(axis=1) - means[1.0]).loc[list(COMPARED)]
    assert lost.idxmin() == "bn", "loses least"


def test_the_speeds_at_the_best_rates_are_those_of_the_table():
    rows = {row[0].split("`")[1]: row[1:] for row in get_rows(LAB, "rates-speed")}
    assert rows["he"][1].startswith("0 of ")
    to_60, to_70 = (
        {arm: float(cells[i].split(" ")[0]) for arm, cells in rows.items() if arm in COMPARED}
        for i in (0, 1)
    )
    he = float(rows["he"][0].split(" ")[0])
    assert f"`he` takes {he / to_60['bn']:.1f} times as many to 60 %" in LAB_TEXT
    for epochs in (to_60, to_70):
        assert max(epochs["gn"], epochs["ln"]) <= epochs["bn"], "no more than bn"


def test_the_search_for_the_baseline_is_what_is_said():
    rows = get_rows(LAB, "search")
    none, he = (
        {(row[0], row[1]): float(row[column].strip("*")) for row in rows} for column in (2, 3)
    )
    assert len(rows) == 8
    assert all(value < 10 for key, value in none.items() if key[0] == "`onecycle`"), "nothing"
    muon = [key for key in none if key[0] == "`muon`"]
    assert max(abs(none[key] - he[key]) for key in muon) < 1, "as well as he"
    nothing = {key[1]: value for key, value in none.items() if key[0] == "`onecycle`"}
    ahead = nothing.pop("0.03") - max(nothing.values())
    assert round(ahead * 50) == 2, "two of 5,000 images"


def test_what_it_costs_to_do_without_is_what_is_said(evidence):
    frame = evidence.reasons.make_baseline_frame(evidence.reasons.get_baseline(RESULTS, CLAIMED))
    means = frame.groupby(["recipe", "arm"]).test.mean()
    runs = frame.groupby(["recipe", "arm"]).size().to_dict()
    assert set(runs.values()) == {5}
    count = ("no", "one", "two", "three", "four", "five")
    assert f"`none` learns nothing ({means['onecycle', 'none']:.1f} %, five runs)" in LAB_TEXT
    diverged = frame[frame.test.isna()].groupby(["recipe", "arm"]).size().to_dict()
    assert set(diverged) == {("onecycle", "he")}
    lost = count[diverged["onecycle", "he"]]
    ended = count[5 - diverged["onecycle", "he"]]
    assert f"`he` with `onecycle` is the mean of the {ended} runs that ended:" in TEXT
    assert f"then {lost} run of five diverged" in TEXT
    assert f"{lost} run of five diverged" in FINDINGS
    assert f"in {lost} of five runs it diverges" in LAB_TEXT
    sgd, muon = means["onecycle"], means["muon"]
    assert f"it ends {sgd.he - sgd.gn:.1f} points above `gn`, where 4 to 8 below" in LAB_TEXT
    low = [muon[norm] - muon.none for norm in COMPARED]
    said = "it ends {:.1f}, {:.1f} and {:.1f} points below `bn`, `gn` and `ln` without"
    assert said.format(*low) in FINDINGS
    said = (
        f"ends {min(low):.1f} to {max(low):.1f} points below them with `muon`, and no difference is"
    )
    assert said in TEXT
    bn, gn, ln = (sgd[norm] - sgd.he for norm in COMPARED)
    said = f"end {bn:.1f} points below `bn`, {-gn:.1f} above `gn` and {ln:.1f} below `ln`, and"
    assert said in FINDINGS
    assert max(bn, gn, ln) < 0.8, "within 0.8 points"
    said = f"`none` ends {muon.ln - muon.none:.1f} points below `ln`, `he` {muon.ln - muon.he:.1f},"
    assert f"{said} and {muon.he - muon.none:.1f} apart." in LAB_TEXT
    rows = {(row[0].strip("`"), row[1]): row[2] for row in get_rows(LAB, "costs")}
    shown = {key for key, cell in rows.items() if "*" in cell}
    assert not shown & {("onecycle", f"{norm} - he") for norm in COMPARED}
    assert "muon" not in {recipe for recipe, _ in shown}
    trials = {row[0]: row for row in get_rows(LAB, "tuning")}
    ones, others = trials["`muon-lr-0.02`"], trials["`muon`"]
    gains = [float(ones[i]) - float(others[i]) for i in (2, 3, 4)]
    said = (
        "`bn` was {:.1f} points better at 0.02 than at 0.03, `gn` and `ln` {:.1f} and {:.1f} worse"
    )
    assert said.format(gains[0], -gains[1], -gains[2]) in LAB_TEXT
    assert ones[1] == others[1] == "2", "seeds"
    high = {key: float(cell.split(" ")[3].strip(")")) for key, cell in rows.items() if " " in cell}
    assert max(high["muon", f"{norm} - none"] for norm in COMPARED) < 0.9
    assert round(max(high["onecycle", f"{norm} - he"] for norm in COMPARED), 1) == 1.1


def test_the_norms_and_doing_without_are_compared_at_equal_training_loss(evidence):
    rows = {row[2]: row[3] for row in get_rows(LAB, "equal-loss-without")}
    means = {pair: get_number(cell) for pair, cell in rows.items()}
    assert {pair for pair, cell in rows.items() if "*" in cell} == {"bn - he", "bn - none"}
    assert max(means.values()) < 1, "as predicted"
    assert all(abs(mean) < 0.5 for pair, mean in means.items() if not pair.startswith("bn"))
    assert f"a lead of {means['bn - none']:.1f} points is" in FINDINGS
    runs = evidence.reasons.get_baseline(RESULTS, CLAIMED)
    less = dict(runs)
    for seed in SEEDS:
        history = runs["muon", "bn", seed]["history"]
        losses = [loss - 0.015 for loss in history["train_loss"]]
        less["muon", "bn", seed] = {"history": history | {"train_loss": losses}}
    pairs = [(norm, arm) for norm in COMPARED for arm in ("he", "none")]
    made = (evidence.reasons.make_equal_loss(some, ["muon"], pairs) for some in (runs, less))
    assert [table.count("**") for table in made] == [4, 0], "shown, and then not"
    (level,) = {float(row[1]) for row in get_rows(LAB, "equal-loss-without")}
    for arm in (*COMPARED, "he", "none"):
        assert find_epochs(runs, "muon", arm, level) == (20, 20), "all in the last epoch"


def test_the_batches_are_those_of_the_runs(evidence):
    from experiments import intervals

    frame = evidence.reasons.make_batch_frame(CLAIMED)
    assert "After 5 epochs, three seeds," in LAB_TEXT
    assert set(frame.groupby("value").seed.nunique()) == {3}
    means = frame.groupby(["arm", "value"]).test.mean().unstack()
    two, four, late = (means[64] - means[size] for size in (2, 4, 256))
    said = f"it loses {two.bn:.1f} points from 64 images to 2, and {four.bn:.1f} to 4; `gn` and"
    assert f"{said} `ln` lose at most {max(two.gn, two.ln, four.gn, four.ln):.1f}." in TEXT
    back_of_two, back = (loss.bn - loss["bn anew"] for loss in (two, four))
    said = f"at 4 images it ends {four.bn:.1f} points below what it has at 64, of which {back:.1f}"
    assert f"{said} come back with statistics" in LAB_TEXT
    assert four.bn < 5, "less than predicted"
    assert back < four.bn / 2, "as predicted"
    behind = [means.loc[norm, 2] - means.loc["bn", 2] for norm in ("gn", "ln")]
    said = (
        f"`bn` ends {two.bn:.1f} points below what it has at 64, of which {back_of_two:.1f} come"
        f" back, and {behind[0]:.1f} and {behind[1]:.1f} below `gn` and `ln`, which lose"
        f" {two.gn:.1f} and {two.ln:.1f}. All of this as predicted"
    )
    assert said in LAB_TEXT
    assert 5 < two.bn < 12
    assert min(behind) > 3
    assert back_of_two < two.bn / 3
    small = means.loc[["gn", "ln"], [2, 4, 16, 64]]
    assert (small.max(axis=1) - small.min(axis=1)).max() < 3, "as predicted"
    norms = means.loc[list(COMPARED)]
    assert set(norms[[2, 4]].idxmin()) == {"bn"}
    assert set(norms[[16, 64, 256]].idxmax()) == {"bn"}
    said = f"that lose, {late.gn:.1f} and {late.ln:.1f} points from 64 on, and `bn` {late.bn:.1f};"
    assert said in LAB_TEXT
    assert f"`gn` and `ln` that lose, {late.gn:.1f} and {late.ln:.1f} points, and there" in TEXT
    runs = {
        (size, norm): frame[(frame.value == size) & (frame.arm == norm)].test.tolist()
        for size in sorted(set(frame.value))
        for norm in COMPARED
    }
    apart = min(runs[2, "gn"] + runs[2, "ln"]) - max(runs[2, "bn"])
    assert apart > 6.4
    assert "every run of `bn` ends at least 6.4 points below every one of `gn` and `ln`." in TEXT
    assert "every run of `bn` ends at least 6.4 points below every one of the others" in LAB_TEXT
    pairs = [(size, norm) for size in sorted(set(frame.value)) for norm in ("gn", "ln")]
    ps = [intervals.welch(runs[size, "bn"], runs[size, norm])[3] for size, norm in pairs]
    ps = dict(zip(pairs, intervals.holm(ps), strict=True))
    assert f"after the correction p is {ps[2, 'gn']:.3f} and {ps[2, 'ln']:.3f}." in LAB_TEXT
    said = f"p = {min(ps[2, 'gn'], ps[2, 'ln']):.3f} after correction for all ten comparisons"
    assert said in TEXT
    assert {pair for pair, p in ps.items() if p < 0.05} == {(256, "gn")}, "one of ten"
    rows = get_rows(LAB, "batch-differences")
    assert len(rows) == 10
    assert [row[:2] for row in rows if "**" in row[2]] == [["256", "bn - gn"]]
    lead = means.loc["bn", 256] - means.loc["gn", 256]
    assert f"the lead of `bn` over `gn`, {lead:.1f}, is shown" in TEXT


def test_the_scales_are_those_of_the_runs():
    before, after = (
        {row[0].strip("`"): row[column].split(" ")[0] for row in get_rows(LAB, "scales")}
        for column in (1, 4)
    )
    assert f"falls {before['none']}-fold from `C1` to `C10`" in TEXT
    assert float(before["none"].replace(",", "")) > 1000
    assert float(before["he"]) < 10
    spread = {row[0].strip("`"): float(row[2].split(" ")[0]) for row in get_rows(LAB, "scales")}
    least, *_, most = sorted(spread[norm] for norm in COMPARED)
    assert f"a normalization {least:.1f}- to {most:.1f}-fold. After" in TEXT
    factors = sorted(float(before[norm]) for norm in COMPARED)
    assert f"and {factors[0]:.1f}- to {factors[-1]:.1f}-fold with one" in TEXT
    assert all(1 / 3 < float(before[norm]) < 3 for norm in COMPARED)
    assert all(float(after["bn"]) < float(after[arm]) for arm in ("he", "gn", "ln"))
    assert f"channels {spread['he']:.1f}-fold apart (90th percentile by 10th)" in TEXT
    said = f"After 4 epochs they are {float(after['he']):.1f}-fold apart with He's weights, and"
    assert said in TEXT
    ends = sorted(float(after[norm]) for norm in COMPARED)
    assert f"{said} {ends[0]:.1f}- to {ends[-1]:.1f}-fold with a normalization" in TEXT
    finals = {CLAIMED["scales-0.05", "none", seed]["history"]["test_acc"][-1] for seed in (1, 2, 3)}
    assert finals == {10.0}, "the page says so"


def test_the_shifts_are_those_of_the_runs(evidence):
    cells = {row[0]: row[1:] for row in get_rows(LAB, "shift")}
    (_, _, *norms) = (cell.split(" ")[0] for cell in cells["change of C10's gradient"])
    said = "changes by {} of its length with `bn`, and by {} and {} with `gn` and `ln`"
    assert said.format(*(f"{float(share):.2f}" for share in norms)) in TEXT
    rows = get_rows(LAB, "shift-differences")
    shown = {row[0]: [cell.startswith("**") for cell in row[1:]] for row in rows}
    assert shown["change of C8's gradient"] == shown["change of C10's gradient"] == [True, False]
    assert shown["range of the loss"] == [True, True]
    (_, _, *ranges) = (get_number(cell) for cell in cells["range of the loss"])
    said = (
        "the loss ranges over {:.2f} with `bn`, and over {:.2f} and {:.2f} with the others, which"
    )
    assert f"{said.format(*ranges)} is shown against both" in TEXT
    assert "for all 22" in LAB_TEXT
    assert 2 * len(rows) == 22
    frame = evidence.internals.make_shift_frame(CLAIMED)
    columns = [f"change {layer}" for layer in claims.WATCHED]
    first = frame[frame.step < 100].groupby(["arm", "seed"])[columns].median()
    first = first.groupby("arm").mean()
    assert set(first.drop("none").idxmin()) == {"he"}, "the front page says so"
    assert first["change C10"].drop("none").idxmax() == "gn", "the lab book says so"
    first = first["change C8"]
    said = (
        "`C8` changes by {bn:.2f} of its length with `bn`, by {gn:.2f} with `gn` and {ln:.2f} with"
    )
    assert said.format(**first) in LAB_TEXT
    assert f"`ln`, and by {first['he']:.2f} with the two runs of `he` that did not" in LAB_TEXT
    assert first.idxmax() == "bn"
    less = frame.groupby(["arm", "seed"])[columns].median().groupby("arm").mean()
    assert (less.loc[["gn", "ln"]] >= less.loc["he"]).all(axis=None), "no less of it"
    diverged = {key for key, run in CLAIMED.items() if "diverged" in run and "shift" in key[0]}
    assert diverged == {("shift-0.1", "he", 3)}
    assert "in step 4," in CLAIMED["shift-0.1", "he", 3]["diverged"]
    ends = [
        statistics.mean(
            CLAIMED["shift-0.1", arm, seed]["history"]["test_acc"][-1]
            for seed in (1, 2, 3)
            if ("shift-0.1", arm, seed) not in diverged
        )
        for arm in ("gn", "ln", "he", "bn")
    ]
    assert "{:.0f} and {:.0f} %, `he` {:.0f}, `bn` {:.0f})".format(*ends) in LAB_TEXT


# --- Results


@pytest.mark.parametrize("name", ALL, ids=lambda name: "-".join(map(str, name)))
def test_a_result_is_whole_and_agrees_with_itself(name):
    precision, *key = name
    result = (RESULTS if precision == "float32" else BFLOAT16)[tuple(key)]
    recipe, history = utils.Recipe(**result["recipe"]), result["history"]
    assert recipe == utils.get_recipe(recipe.name)
    assert result["parameters"] == 48_448
    assert result["data"] == {"name": "CIFAR-10", "train_size": 50_000, "test_size": 10_000}
    assert set(history) == {"lr", "train_loss", "train_acc", "test_loss", "test_acc", "seconds"}
    assert {len(values) for values in history.values()} == {recipe.epochs}
    assert re.fullmatch(r"\d{10000}", result["test_predictions"])
    assert result["environment"]["precision"] == precision


@pytest.mark.parametrize("name", TRIALS, ids=lambda name: "-".join(map(str, name)))
def test_a_trial_is_whole_and_of_the_recipe_that_it_is_named_for(name):
    trial = TRIALS[name]
    recipe = utils.Recipe(**trial["recipe"])
    assert recipe == tune.TRIALS.get(name[0], recipe)
    sizes = {"train_size": 45_000, "validation_size": 5_000}
    assert trial["data"] == {"name": "CIFAR-10", **sizes}
    assert {len(values) for values in trial["history"].values()} == {recipe.epochs}
    assert not any("test" in key for key in (*trial, *trial["history"]))
    assert trial["environment"]["precision"] == "bfloat16", "the lab book says so"


def get_trials(start):
    """Return the accuracies (bn, gn, ln) with seed 1 of the page's trials whose names so begin."""
    names = [row[0].strip("`") for row in get_rows(LAB, "tuning")]
    return {
        name: [TRIALS[name, norm, 1]["history"]["validation_acc"][-1] for norm in COMPARED]
        for name in names
        if re.match(start, name)
    }


def test_onecycle_has_the_best_learning_rate_and_no_later_trial_beats_it_by_the_margin():
    finals = get_trials("(?!muon|quick)")
    means = {trial: statistics.mean(values) for trial, values in finals.items()}
    best = max(("start", "lr-0.2", "lr-0.05"), key=means.get)
    onecycle = replace(tune.TRIALS[best], name="onecycle")
    assert onecycle == utils.get_recipe("onecycle")
    gain = max(means.values()) - means[best]
    assert gain < tune.MARGIN
    assert f"None did: the best of them raised it by {gain:.1f}." in LAB_TEXT
    rates = {t: accs for t, accs in finals.items() if re.fullmatch(r"start|lr-[^-]+", t)}
    own = [max(rates, key=lambda trial, i=i: rates[trial][i]) for i in range(3)]
    gains = [rates[trial][i] - rates[best][i] for i, trial in enumerate(own)]
    lrs = [f"{tune.TRIALS[trial].lr:g}" for trial in own]
    said = "learning rate of the four tried alone, {}, {} and {} (bn, gn, ln), the three would gain"
    assert said.format(*lrs) in LAB_TEXT
    assert len(rates) == 4
    said = "{:.1f}, {:.1f} and {:.1f} points on these images, where one trial shows nothing below"
    assert f"{said.format(*gains)} {tune.MARGIN * 3**0.5:.1f}." in LAB_TEXT  # one norm, not three
    assert f"the three normalizations, by {means[best] - means['start']:.1f} points" in LAB_TEXT


def test_what_is_said_of_the_search_with_muon_is_what_the_table_says():
    finals = get_trials("muon")
    means = {trial: statistics.mean(values) for trial, values in finals.items()}
    ranks = sorted(means, key=means.get, reverse=True)
    assert ranks[0] == "muon"
    assert len(ranks) == 6
    assert f"lie within {means['muon'] - min(means.values()):.1f} points of each other" in LAB_TEXT
    assert means["muon-lr-0.02"] == pytest.approx(means["muon-affine-lr-0.2"])
    assert list(tune.TRIALS).index("muon-lr-0.02") < list(tune.TRIALS).index("muon-affine-lr-0.2")
    gain = means["muon"] - statistics.mean(get_trials("lr")["lr-0.05"])
    assert f"With seed 1 it raises the mean of `lr-0.05` by {gain:.1f} points" in LAB_TEXT
    both = {
        trial: statistics.mean(means[trial] for means in (means, get_means_of_seed(2)))
        for trial in ("muon", "muon-lr-0.02")
    }
    lead = both["muon-lr-0.02"] - both["muon"]
    assert 0 < lead < tune.MUON_MARGIN
    assert f"got the second seed, and leads by {lead:.1f} points then" in LAB_TEXT
    assert f"leads by {tune.MUON_MARGIN} points, one standard error" in LAB_TEXT
    assert replace(tune.MUON, name="muon") == utils.get_recipe("muon")


def test_what_is_said_of_the_search_for_quick_is_what_the_table_says():
    finals = get_trials("quick")
    means = {trial: statistics.mean(values) for trial, values in finals.items()}
    ranks = sorted(means, key=means.get, reverse=True)
    gain = means[ranks[0]] - means["quick"]
    assert gain > tune.MARGIN
    assert f"`{ranks[0]}` raised the mean by {gain:.1f} and reached them" in LAB_TEXT
    goals = (79.9, 78.9, 77.9)
    assert "than was published ({}, {} and {} %)".format(*goals) in LAB_TEXT
    assert all(final >= goal for final, goal in zip(finals[ranks[0]], goals, strict=True))
    assert replace(tune.TRIALS[ranks[0]], name="quick") == utils.get_recipe("quick")


def get_means_of_seed(seed):
    trials = {trial for trial, _, s in TRIALS if s == seed}
    return {
        trial: statistics.mean(
            TRIALS[trial, norm, seed]["history"]["validation_acc"][-1] for norm in COMPARED
        )
        for trial in trials
    }


@pytest.mark.cifar10
def test_the_margin_is_two_standard_errors(cifar10_root):
    labels = load_cifar10(cifar10_root).test.tensors[1]

    def get_hits(norm, seed):
        digits = BFLOAT16["onecycle", norm, seed]["test_predictions"]
        return (torch.tensor(list(map(int, digits))) == labels).tolist()

    hits = torch.tensor([[get_hits(norm, seed) for seed in SEEDS] for norm in COMPARED])
    generator = torch.Generator().manual_seed(0)
    halves = [torch.randperm(10_000, generator=generator)[:5_000] for _ in range(100)]
    variances = [hits[:, :, half].double().mean(dim=2).var(dim=1).mean() for half in halves]
    error = 100 * (2 * torch.stack(variances).mean() / 3) ** 0.5  # of a difference of means of 3
    assert f"{2 * error:.1f}" == str(tune.MARGIN)
    assert f"{error / 2**0.5:.1f}" == str(tune.MUON_MARGIN), "one error, with two seeds"
    assert f"of `lr-0.05` by {tune.MARGIN} points to be taken" in LAB_TEXT


def test_the_norms_have_the_same_trials():
    names = {row[0].strip("`") for row in get_rows(LAB, "tuning")}
    bn, gn, ln = ({(t, s) for t, n, s in TRIALS if n == norm and t in names} for norm in COMPARED)
    assert bn == gn == ln


def test_the_gaps_on_training_images_as_they_are_are_those_of_the_results():
    runs = [RESULTS["onecycle", norm, 1] for norm in COMPARED]
    gaps = [run["clean_train_acc"] - run["history"]["test_acc"][-1] for run in runs]
    assert "end {:.1f}, {:.1f} and {:.1f} points (bn, gn, ln) above".format(*gaps) in LAB_TEXT


@pytest.mark.cifar10
def test_the_training_loss_of_bn_is_higher_by_its_batches_statistics(cifar10_root):
    model, data = records.load_model(RESULTS["muon", "bn", 1]).cpu(), load_cifar10(cifar10_root)
    images = torch.utils.data.TensorDataset(*(tensor[:9_984] for tensor in data.train.tensors))
    utils.set_seed(0)
    transforms = utils.get_train_transforms(utils.get_recipe("muon"))
    batches = list(utils.get_loader(images, transforms, 128, shuffle=True))
    losses = []
    with torch.inference_mode():
        for training in (False, True):
            model.train(training)
            outputs = ((model(batch), labels) for batch, labels in batches)
            losses.append(statistics.mean(torch.nn.NLLLoss()(*pair).item() for pair in outputs))
    higher = 0.015
    assert losses[1] - losses[0] == pytest.approx(higher, abs=0.005), "two standard errors"
    assert f"makes its training loss some {higher} higher; those" in LAB_TEXT
    slopes = [
        (history["test_acc"][-1] - history["test_acc"][-4])
        / (history["train_loss"][-4] - history["train_loss"][-1])
        for history in (run["history"] for run in records.pick(RESULTS, "muon", "bn"))
    ]
    assert f"{higher} are worth {higher * statistics.mean(slopes):.1f} points" in LAB_TEXT


@pytest.mark.cifar10
@pytest.mark.parametrize("norm", COMPARED)
def test_the_committed_weights_give_the_accuracies_that_are_said(norm, cifar10_root, evidence):
    result = RESULTS["muon", norm, 1]
    data = load_cifar10(cifar10_root)
    model = records.load_model(result).cpu()
    # On another machine a rounding can tip an image that is on the edge.
    environment = get_environment(CPU, "float32")
    here = all(result["environment"][key] == value for key, value in environment.items())
    said = result["clean_train_acc"], result["history"]["test_acc"][-1]
    for images, accuracy in zip((data.train, data.test), said, strict=True):
        loader = utils.get_loader(images, utils.get_test_transforms(), 128)
        assert utils.test(model, loader, torch.nn.NLLLoss())[1] == pytest.approx(
            accuracy, abs=1e-9 if here else 0.1
        )

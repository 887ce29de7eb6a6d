"""The statistics, tables and figures that the pages show: known values, and no pretence."""

import json
import shutil

import pytest

from common import ROOT, need_packages, read_table, skip_if_changed

need_packages()

import pandas as pd  # noqa: E402

from experiments import claims, evidence  # noqa: E402
from experiments import results as records  # noqa: E402
from experiments.results import COMPARED  # noqa: E402

IGNORED = shutil.ignore_patterns("claims", "tuning", "*.pt")
TEST = {"bn": [80.0, 81.0, 82.0], "gn": [79.0, 81.0, 80.0], "ln": [70.0, 70.5, 70.0]}  # %


def make_results(seeds=(1, 2, 3)):
    """Return made-up results; a train accuracy is 1 point above the test accuracy."""
    return {
        (recipe, norm, seed): {
            "history": {
                "train_acc": [50.0, TEST[norm][seed - 1] + 1],
                "test_acc": [99.0, TEST[norm][seed - 1]],
            },
            "test_predictions": {"bn": "0123", "gn": "0120", "ln": "9993"}[norm],
            **({"clean_train_acc": 90.0 + seed} if recipe == "muon" else {}),
        }
        for recipe in evidence.SHOWN
        for norm in COMPARED
        for seed in seeds
    }


def test_means_are_over_the_seeds_and_of_the_last_epoch():
    frame = evidence.make_frame(make_results())
    numbers = ["3", "82.00", "1.00", "2.48", "81.00", "1.00", "2.48"]
    assert ["onecycle", "Batch (`bn`)", *numbers] in read_table(evidence.make_seeds(frame))
    nan = float("nan")
    rows = [("muon", "none", test) for test in (70.0, 72.0, nan)] + [("muon", "bn", 10.0)]
    baseline = pd.DataFrame(rows, columns=["recipe", "arm", "test"])
    table = read_table(evidence.make_table(frame, baseline))
    assert ["Batch (`bn`)", "78.86", *["81.00 ± 2.48"] * len(evidence.SHOWN)] in table
    assert ["None (`none`)", "–", "–", "–", "71.00 ± 12.71, 1 diverged", "–"] in table


def test_a_seed_or_a_norm_that_the_pages_do_not_name_changes_none_of_their_tables():
    results = make_results()
    expected = evidence.make_seeds(evidence.make_frame(results))
    for norm in COMPARED:
        results["onecycle", norm, 6] = results["onecycle", norm, 1]
        results["mine", norm, 1] = results["onecycle", norm, 1]
        results["onecycle", "none", 1] = results["onecycle", norm, 1]
    assert evidence.make_seeds(evidence.make_frame(results)) == expected


def test_differences_are_in_bold_only_where_they_are_shown():
    rows = read_table(evidence.make_differences(evidence.make_frame(make_results())))
    bn_gn, bn_ln, gn_ln = rows[:3]
    assert bn_gn[:2] == ["`reference`", "bn - gn"]
    # Welch's half width with variances 1 and 1 of 3 seeds each: t for 4 degrees is 2.7764.
    half = 2.7764 * (2 / 3) ** 0.5
    assert bn_gn[3] == f"+1.00 ({1 - half:+.2f} to {1 + half:+.2f})"
    assert bn_ln[3].startswith("**+10.83** (")
    assert {row[4] for row in rows} == {"+0.00 (+0.00 to +0.00)"}, "no p, so not in bold"


def test_the_gap_on_training_images_as_they_are_is_of_the_recipes_that_have_it():
    frame = evidence.make_frame(make_results())  # gaps of bn: 11, 11, 11, and of gn: 12, 11, 13
    assert read_table(evidence.make_gaps(frame)) == [
        ["muon", "Batch (`bn`)", "3", "92.00", "11.00", "0.00"],
        ["muon", "Group (`gn`)", "3", "92.00", "12.00", "2.48"],
        ["muon", "Layer (`ln`)", "3", "92.00", "21.83", "2.59"],
    ]
    differences = read_table(evidence.make_gap_differences(frame))
    assert [row[0] for row in differences] == ["bn - gn", "bn - ln", "gn - ln"]
    assert [row[1].strip("*").split(" ")[0].strip("*") for row in differences] == [
        "-1.00",
        "-10.83",
        "-9.83",
    ]


def test_one_seed_has_no_spread():
    frame = evidence.make_frame(make_results([1]))
    numbers = ["1", "81.00", "–", "–", "80.00", "–", "–"]
    assert ["onecycle", "Batch (`bn`)", *numbers] in read_table(evidence.make_seeds(frame))
    row = ["`onecycle`", "bn - ln", "+10.00", "+10.00", "+0.00"]
    assert row in read_table(evidence.make_differences(frame))


def test_the_precisions_are_compared_norm_by_norm():
    float32, bfloat16 = make_results(), make_results()
    for seed in (1, 2, 3):
        float32["onecycle", "gn", seed]["history"]["test_acc"][-1] += 50
    frames = map(evidence.make_frame, (float32, bfloat16))
    rows = {row[0]: row[2] for row in read_table(evidence.make_precisions(*frames))}
    assert rows["Group (`gn`)"].startswith("**+50.00** (")
    assert rows["Batch (`bn`)"].startswith("+0.00 (-")


def test_mcnemar_takes_the_predictions_of_seed_1():
    rows = read_table(evidence.make_mcnemar(make_results(), [0, 1, 2, 3]))
    assert ["`onecycle`", "bn, gn", "1", "0", "1.000"] in rows
    assert ["`onecycle`", "gn, ln", "3", "1", "0.625"] in rows


def test_the_trials_are_listed_by_their_mean_over_the_norms():
    accuracies = {
        "start": ([80, 82], [81], [82]),
        "lr-0.2": ([83], [83], [84]),
        "crop-1": ([99], [], []),
    }
    results = {
        (trial, norm, seed): {"history": {"train_acc": [1.0], "validation_acc": [0.0, value]}}
        for trial, norms in accuracies.items()
        for norm, values in zip(COMPARED, norms, strict=True)
        for seed, value in enumerate(values, 1)
    }
    assert read_table(evidence.make_tuning(evidence.make_frame(results))) == [
        ["`lr-0.2`", "1", "83.00", "83.00", "84.00", "83.33"],
        ["`start`", "1", "80.00", "81.00", "82.00", "81.00"],  # seed 2 is of bn alone
        ["`crop-1`", "1", "99.00", "–", "–", "–"],
    ]


@pytest.mark.parametrize("name", ["float32/reference-bn-seed2", "bfloat16/onecycle-gn-seed5"])
def test_a_run_that_is_missing_or_of_other_hyperparameters_renews_no_page(name, tmp_path):
    shutil.copytree(ROOT / "results", tmp_path, ignore=IGNORED, dirs_exist_ok=True)
    path = tmp_path / f"{name}.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    result["recipe"]["lr"] *= 2
    path.write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{path} .* hyperparameters"):
        evidence.check({}, tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} is missing: replicate.py makes it"):
        evidence.check({}, tmp_path)


def test_a_claim_without_runs_of_an_arm_renews_no_page():
    skip_if_changed("results")
    claimed = records.load_results(claims.FOLDER / "float32")
    evidence.check(claimed, ROOT / "results")
    for name, arm in (("batches-4", "gn"), ("search-sgd-0.03", "he"), ("baseline", "none")):
        some = {k: run for k, run in claimed.items() if k[1] != arm or not k[0].startswith(name)}
        said = (
            f"no run of '{name}.*' with '{arm}': claims.py {name.split('-')[0]} --arms {arm} makes"
        )
        with pytest.raises(FileNotFoundError, match=said):
            evidence.check(some, ROOT / "results")
    mine = {(name, arm, 6 if "shift" in name else seed): {} for name, arm, seed in claimed}
    with pytest.raises(FileNotFoundError, match="no run of 'shift-0.1'"):
        evidence.check(mine, ROOT / "results")


def test_a_run_of_a_claim_that_is_no_more_renews_no_page():
    with pytest.raises(ValueError, match="claims.py has no 'rates-0.2' .* move its results away"):
        evidence.check({("rates-0.2", "bn", 1): {}}, ROOT / "results")


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3]])
def test_the_figure_shows_the_results_and_how_many_seeds_there_are(seeds):
    figure = evidence.draw_accuracy(make_results(seeds))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[0] == ("Batch, 1 seed" if len(seeds) == 1 else "Batch, 3 seeds")
    line = figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2]
    assert line.get_ydata()[-1] == sum(TEST["bn"][: len(seeds)]) / len(seeds)


def test_a_table_takes_the_place_of_the_one_between_its_markers():
    page = "a\n<!-- one -->\n\nold\n\n<!-- /one -->\nb"
    assert evidence.renew(page, {"one": "new"}) == page.replace("old", "new")
    with pytest.raises(ValueError, match="0 places marked <!-- two -->"):
        evidence.renew(page, {"two": "text"})

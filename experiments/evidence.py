"""Statistics over the runs in results/: renew the README's tables and figures from them.

    pip install -r experiments/requirements.txt
    python experiments/evidence.py

McNemar's test and the misclassified images need CIFAR-10 in the folder CIFAR10_ROOT (default
./data).
"""

import json
import math
import os
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402
from models import Session8Net, get_norm  # noqa: E402

NAMES = {"bn": "Batch", "gn": "Group", "ln": "Layer"}
RECIPES = ("onecycle", "reference")
FLOAT32 = "onecycle-float32"  # runs of `onecycle` where the precision was float32
COMPARED = {
    "onecycle": "`onecycle`",
    FLOAT32: "`onecycle` in float32",
    "reference": "`reference`",
}
PUBLISHED = {"bn": (81.10, 78.86), "gn": (80.30, 77.88), "ln": (79.91, 76.94)}  # train, test (%)

Results = Mapping[tuple[str, str, int], dict]  # by recipe, norm and seed


def load_result(path: Path) -> dict:
    """Return the result in that file. Raises ValueError if it holds something else."""
    try:
        result = json.loads(path.read_text())
        whole = {"recipe", "norm", "seed", "history"} <= result.keys()
    except (ValueError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is not the result of a run. Move it away.")
    return result


def load_results(folder: Path) -> Results:
    """Return the results in `folder`, each under its (recipe, norm, seed)."""
    results = map(load_result, sorted(folder.glob("*.json")))
    return {(r["recipe"]["name"], r["norm"], r["seed"]): r for r in results}


def load_all(folder: Path) -> Results:
    """Return the results in `folder`, and those in its `float32` as of the recipe `FLOAT32`."""
    float32 = load_results(folder / "float32")
    return load_results(folder) | {(FLOAT32, *key[1:]): run for key, run in float32.items()}


def get_accuracy(result: dict) -> tuple[float, float]:
    """Return the final epoch's train and test accuracy in percent, never the best epoch's."""
    return result["history"]["train_acc"][-1], result["history"]["test_acc"][-1]


def get_runs(results: Results, recipe: str, norm: str) -> dict[int, dict]:
    """Return the results of one recipe and one norm by seed, in the order of the seeds."""
    keys = sorted(key for key in results if key[:2] == (recipe, norm))
    return {key[2]: results[key] for key in keys}


# --- Statistics ----------------------------------------------------------------------------------


def get_interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % confidence interval of the mean (Student 1908).

    It is nan for fewer than two values.
    """
    from scipy import stats  # here, since a user of the notebooks needs no scipy

    if len(values) < 2:
        return math.nan
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return float(quantile * statistics.stdev(values) / math.sqrt(len(values)))


def get_hits(result: dict, labels: Sequence[int]) -> list[bool]:
    """Return which test images the run's final network has right."""
    digits = result["test_predictions"]
    return [int(digit) == label for digit, label in zip(digits, labels, strict=True)]


def compare_pairs(one: Sequence[bool], other: Sequence[bool]) -> tuple[int, int, float]:
    """Return McNemar's exact test (1947) of two networks' hits on the same images.

    These are the number of images that only `one` has right, that only `other` has right, and the
    two-sided p-value of the hypothesis that both numbers are equal but for chance.
    """
    from scipy import stats

    pairs = list(zip(one, other, strict=True))
    only_one, only_other = pairs.count((True, False)), pairs.count((False, True))
    if only_one + only_other == 0:
        return 0, 0, 1.0
    return only_one, only_other, float(stats.binomtest(only_one, only_one + only_other).pvalue)


# --- Tables --------------------------------------------------------------------------------------


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Return a Markdown table, whose columns but the first `text_columns` are numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def make_table(results: Results) -> str:
    """Return final accuracy of seed 1, the notebooks' runs, beside what was published."""
    header = ["normalization", "`onecycle` train", "`onecycle` test"]
    header += ["`reference` train", "`reference` test", "published train", "published test"]
    rows = []
    for norm, name in NAMES.items():
        ours = [get_accuracy(results[recipe, norm, 1]) for recipe in RECIPES]
        numbers = [f"{value:.2f}" for pair in (*ours, PUBLISHED[norm]) for value in pair]
        numbers[1] = f"**{numbers[1]}**"
        rows.append([f"{name} (`{norm}`)", *numbers])
    return format_table(header, rows, 1)


def make_seeds(results: Results) -> str:
    """Return mean, standard deviation and 95 % interval over the seeds, by recipe and norm."""
    header = ["recipe", "normalization", "seeds"]
    header += [f"{part} {what}" for part in ("train", "test") for what in ("mean", "s.d.", "95 %")]
    rows = []
    for recipe, label in COMPARED.items():
        for norm, name in NAMES.items():
            runs = get_runs(results, recipe, norm).values()
            row = [label, f"{name} (`{norm}`)", str(len(runs))]
            for values in zip(*map(get_accuracy, runs), strict=True):
                spread = statistics.stdev(values) if len(values) > 1 else math.nan
                row += [f"{statistics.mean(values):.2f}", format_number(spread)]
                row += [format_number(get_interval(values), "± {:.2f}")]
            rows.append(row)
    return format_table(header, rows, 2)


DIFFERENCES = ("seeds", "train", "test", "train minus test")


def make_differences(results: Results) -> str:
    """Return the differences in accuracy between norms, in points, paired by seed."""
    rows = []
    for recipe, label in COMPARED.items():
        for pair in combinations(NAMES, 2):
            runs = (get_runs(results, recipe, norm) for norm in pair)
            rows.append([label, " - ".join(pair), *format_differences(*runs)])
    return format_table(["recipe", "difference", *DIFFERENCES], rows, 2)


def make_precisions(results: Results) -> str:
    """Return how `onecycle` in float32 differs from it in bfloat16, in points, paired by seed."""
    rows = []
    for norm, name in NAMES.items():
        runs = (get_runs(results, recipe, norm) for recipe in (FLOAT32, "onecycle"))
        rows.append([f"{name} (`{norm}`)", *format_differences(*runs)])
    return format_table(["float32 - bfloat16", *DIFFERENCES], rows, 1)


def format_differences(ones: Mapping[int, dict], others: Mapping[int, dict]) -> list[str]:
    """Return the cells under `DIFFERENCES`: mean and 95 % interval of one minus other, by seed."""
    gains = []
    for seed in sorted(ones.keys() & others.keys()):
        pair = zip(get_accuracy(ones[seed]), get_accuracy(others[seed]), strict=True)
        train, test = (one - other for one, other in pair)
        gains.append((train, test, train - test))
    cells = [str(len(gains))]
    for values in zip(*gains, strict=True):
        mean, half = statistics.mean(values), get_interval(values)
        interval = format_number(half, f"{mean - half:+.2f} to {mean + half:+.2f}")
        cells.append(f"{mean:+.2f} ({interval})")
    return cells


def make_mcnemar(results: Results, labels: Sequence[int]) -> str:
    """Return McNemar's test of each two norms, on the test predictions of seed 1."""
    rows = []
    for recipe in RECIPES:
        for one, other in combinations(NAMES, 2):
            hits = (get_hits(results[recipe, norm, 1], labels) for norm in (one, other))
            only_one, only_other, p = compare_pairs(*hits)
            row = [f"`{recipe}`", f"{one}, {other}", str(only_one), str(only_other)]
            rows.append([*row, f"{p:.3f}" if p >= 0.001 else "< 0.001"])
    header = ["recipe", "first, second", "only the first right", "only the second right", "p"]
    return format_table(header, rows, 2)


def make_tuning(results: Results) -> str:
    """Return final accuracy on the held-out images by trial of tune.py and norm, best mean first.

    A number is the mean over the seeds there are. A trial that lacks a norm has no mean, and
    stands at the end.
    """
    rows = []
    for trial in sorted({key[0] for key in results}):
        runs = [get_runs(results, trial, norm).values() for norm in NAMES]
        finals = [[run["history"]["validation_acc"][-1] for run in seeds] for seeds in runs]
        means = [statistics.mean(values) if values else math.nan for values in finals]
        means.append(statistics.mean(means))
        rows.append((-means[-1], [f"`{trial}`", *map(format_number, means)]))
    rows.sort(key=lambda row: (math.isnan(row[0]), row[0]))
    header = ["trial", *(f"`{norm}`" for norm in NAMES), "mean"]
    return format_table(header, [row for _, row in rows], 1)


def make_architecture() -> str:
    """Return the network layer by layer, as read off the model itself.

    A receptive field is the width and height, in pixels, of what one output value can see.
    """
    model, image = Session8Net("bn").eval(), torch.zeros(1, 3, 32, 32)
    rows, field, jump = [], 1, 1  # jump: pixels of the input between two neighbouring outputs
    for name, layer in model.layers.named_children():
        what, kernel, stride = describe(layer, image.shape[-1])
        field, jump = field + (kernel - 1) * jump, jump * stride
        image = layer(image)
        size = " x ".join(map(str, image.shape[1:]))
        rows.append([f"`{name}`", what, size, f"{field} x {field}", count_parameters(layer)])
    rows.append(["", "log-softmax", "10", "", f"**{count_parameters(model)}**"])
    header = ["layer", "what it is", "output (C x H x W)", "receptive field", "parameters"]
    return format_table(header, rows, 2)


def describe(layer: nn.Module, size: int) -> tuple[str, int, int]:
    """Return what a layer is, its kernel size and its stride; `size` is its input's width."""
    if isinstance(layer, nn.Sequential):
        what, kernel, stride = describe(layer.conv, size)
        return f"{what}, ReLU, normalization", kernel, stride
    if isinstance(layer, nn.Conv2d):
        return "{}x{} convolution".format(*layer.kernel_size), layer.kernel_size[0], layer.stride[0]
    if isinstance(layer, nn.MaxPool2d):
        return (
            f"{layer.kernel_size}x{layer.kernel_size} max pooling",
            layer.kernel_size,
            layer.stride,
        )
    return "global average pooling", size, size


def count_parameters(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def format_number(value: float, text: str = "{:.2f}") -> str:
    """Return the number in that format, or a dash where there is none."""
    return "–" if math.isnan(value) else text.format(value)


def renew(text: str, name: str, content: str) -> str:
    """Return `text` with what stands between the markers of `name` replaced by `content`."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    lines = f"\n{content}\n\n"
    renewed, count = re.subn(pattern, lambda m: m[1] + lines + m[2], text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the text has {count} places marked <!-- {name} -->, but must have one")
    return renewed


# --- Figures -------------------------------------------------------------------------------------


def draw_accuracy(results: Results) -> Figure:
    """Return test accuracy by epoch: the mean of the seeds, and a band from lowest to highest."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axis, recipe in zip(figure.subplots(1, 2, sharey=True), RECIPES, strict=True):
        for norm, name in NAMES.items():
            runs = get_runs(results, recipe, norm).values()
            epochs = list(zip(*(run["history"]["test_acc"] for run in runs), strict=True))
            x, means = range(1, len(epochs) + 1), list(map(statistics.mean, epochs))
            style = {**utils.STYLES[norm], "markersize": 4, "linewidth": 1.8}
            axis.plot(x, means, label=f"{name}, {count_seeds(runs)}", **style)
            low, high = list(map(min, epochs)), list(map(max, epochs))
            axis.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
        axis.set(title=f"recipe {recipe}", xlabel="epoch", xticks=range(0, len(epochs) + 1, 5))
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    figure.axes[0].set_ylabel("accuracy on the test images (%)")
    return figure


def draw_gaps(results: Results) -> Figure:
    """Return train minus test accuracy after the last epoch: a point a seed, a line at the mean."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axis, recipe in zip(figure.subplots(1, 2, sharey=True), RECIPES, strict=True):
        for x, norm in enumerate(NAMES):
            runs = get_runs(results, recipe, norm).values()
            gaps = [train - test for train, test in map(get_accuracy, runs)]
            style = {key: utils.STYLES[norm][key] for key in ("color", "marker")}
            places = [x + 0.07 * (i - (len(gaps) - 1) / 2) for i in range(len(gaps))]
            axis.plot(places, gaps, linestyle="none", **style)
            axis.hlines(statistics.mean(gaps), x - 0.2, x + 0.2, color=style["color"])
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=f"recipe {recipe}", xlim=(-0.5, len(NAMES) - 0.5))
        axis.set_xticks(range(len(NAMES)), NAMES.values())
        axis.grid(alpha=0.3, axis="y")
    figure.axes[0].set_ylabel("train minus test accuracy (points)")
    return figure


def draw_normalization(data: utils.Data) -> Figure:
    """Return what each normalization does to the first layer's output, as in the notebooks."""
    utils.set_seed(1)
    block = Session8Net("bn").layers.C1
    images = utils.get_test_transforms()(data.test.tensors[0][:32].cpu())
    with torch.inference_mode():
        before = block.relu(block.conv(images))
        after = {f"after {norm}": get_norm(norm, 16)(before) for norm in NAMES}
    title = "The first layer's activations (C1, untrained), before and after each normalization"
    return utils.post_normalization({"before": before, **after}, title)


def count_seeds(runs: Sequence) -> str:
    """Return how many seeds there are, in words."""
    return f"{len(runs)} seed" + "s" * (len(runs) != 1)


def load_model(result: dict, folder: Path) -> Session8Net:
    """Return the trained network of a result, from the weights beside its JSON."""
    recipe, norm = result["recipe"], result["norm"]
    model = Session8Net(norm, dropout=recipe["dropout"])
    path = folder / f"{recipe['name']}-{norm}-seed{result['seed']}.pt"
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    device = utils.get_device()
    return model.to(device, memory_format=torch.channels_last)


def draw_figures(results: Results, data: utils.Data, folder: Path) -> None:
    """Draw all figures to `folder`; curves and images are those of `onecycle`, seed 1."""
    draw_accuracy(results).savefig(folder / "accuracy.png", dpi=120)
    draw_gaps(results).savefig(folder / "gaps.png", dpi=120)
    draw_normalization(data).savefig(folder / "normalization.png", dpi=100)
    loader = utils.get_loader(data.test, utils.get_test_transforms(), 128)
    for norm, name in NAMES.items():
        result = results["onecycle", norm, 1]
        title = f"{name} normalization, recipe onecycle, seed 1"
        curves = utils.post_accuracyplots(result["history"], title, norm)
        curves.savefig(folder / f"curves-{norm}.png", dpi=120)
        prediction, labels = utils.predict(load_model(result, ROOT / "results"), loader)
        wrong = utils.post_misclassified(data.test, prediction, data.classes, title)
        wrong.savefig(folder / f"misclassified-{norm}.png", dpi=100)
        confusion = utils.post_confusion(prediction, labels, data.classes, title)
        confusion.savefig(folder / f"confusion-{norm}.png", dpi=100)


def main() -> None:
    results = load_all(ROOT / "results")
    root = os.environ.get("CIFAR10_ROOT", ROOT / "data")
    data = utils.get_data(utils.get_recipe("onecycle"), root, utils.get_device())
    tables = {
        "architecture": make_architecture(),
        "results": make_table(results),
        "seeds": make_seeds(results),
        "differences": make_differences(results),
        "precisions": make_precisions(results),
        "mcnemar": make_mcnemar(results, data.test.tensors[1].tolist()),
        "tuning": make_tuning(load_results(ROOT / "results" / "tuning")),
    }
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, table in tables.items():
        text = renew(text, name, table)
    draw_figures(results, data, ROOT / "images")
    readme.write_text(text)


if __name__ == "__main__":
    main()

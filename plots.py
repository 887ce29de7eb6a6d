"""The notebooks' figures: each function takes data and returns a Figure."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch.utils.data import TensorDataset

from runs import LABELS

# For all figures; distinct for colour-blind readers (Okabe and Ito 2008) and in grey print.
STYLES = {
    "bn": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "gn": {"color": "#E69F00", "linestyle": "--", "marker": "s"},
    "ln": {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    "none": {"color": "#444444", "linestyle": ":", "marker": "D"},
    "he": {"color": "#CC79A7", "linestyle": (0, (3, 1, 1, 1)), "marker": "v"},
}


def post_points(x: torch.Tensor, changed: torch.Tensor, axes: Sequence[int]) -> Figure:
    """Return a Figure of numbers before and after normalizing them over `axes`.

    `x` and `changed`, both (images, channels, positions), are the two rows; each image is a column.
    Numbers of the same colour share a mean and a deviation. In the second row those are pale whose
    normalized value stays; dotted lines of the others repeat their lines of the first row.
    """
    sets = torch.arange(x.numel()).view_as(x).amin(axes, keepdim=True).expand_as(x)
    palette = ("#8E44AD", "#16A085", "#C0392B", "#7F8C8D")  # not used by any norm
    colors = dict(zip(sets.unique().tolist(), palette, strict=False))
    after = []
    for numbers in (x, changed):
        mean, deviation = numbers.mean(axes, True), numbers.std(axes, correction=0, keepdim=True)
        after.append((numbers - mean) / deviation.clamp(min=1e-5))
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    rows = figure.subplots(2, len(x), sharey="row", squeeze=False)
    for row, before, values in zip(rows, (x, changed), after, strict=True):
        for image, axis in enumerate(row):
            right = axis.twinx()
            right.set(ylim=(-2.2, 2.2), yticks=[])
            axis.set(xlim=(-0.5, 2.3), yticks=[])
            axis.set_xticks([0, 1], ["number", "normalized"])
            low, high = before.min().item(), before.max().item()
            axis.set(ylim=(low - 0.15 * high, 1.15 * high))
            parts = (before, values, x, after[0], sets)
            ends = zip(*(part[image].flatten().tolist() for part in parts), strict=True)
            for place, (start, end, old_start, old_end, number) in enumerate(ends):
                color, moved = colors[number], abs(end - old_end) > 1e-3
                fade = {"color": color, "alpha": 1 if moved or before is x else 0.4}
                channel = place // 2  # labels of the second stand farther out
                text = fade | {"va": "center", "weight": "bold" if moved else "normal"}
                axis.plot(0, start, "o", **fade)
                axis.annotate(f"{start:g}", (-0.06 - 0.2 * channel, start), ha="right", **text)
                right.plot(1, end, "o", **fade)
                told = f"{old_end:.1f} \N{RIGHTWARDS ARROW} {end:.1f}" if moved else f"{end:.1f}"
                right.annotate(told, (1.06 + 0.6 * channel, end), **text)
                places = {"coordsA": axis.transData, "coordsB": right.transData}
                right.add_artist(ConnectionPatch((0, start), (1, end), **places, **fade))
                if moved:
                    dotted = places | {"color": color, "linestyle": ":", "alpha": 0.6}
                    right.add_artist(ConnectionPatch((0, old_start), (1, old_end), **dotted))
                    right.plot(1, old_end, "o", color=color, markersize=11, fillstyle="none")
            what = "" if before is x else ", same numbers" if image else ", one number changed"
            axis.set_title(f"image {image + 1}{what}")
    figure.supxlabel("below: pale is what stays; dotted, to a ring, what was", fontsize=11)
    return figure


def post_cubes(groups: int = 4) -> Figure:
    """Return a Figure that shows which activations share a mean and a deviation, per norm.

    A block is a layer's output for 4 images with 8 channels. Each cube is an activation, and the
    red ones share their mean and deviation.
    """
    image, channel, _ = torch.meshgrid(*map(torch.arange, (4, 8, 3)), indexing="ij")
    front = image == 0
    sets = {
        "Batch: one channel,\nall images": channel == 7,
        f"Group: one image,\n1 of {groups} groups of channels": front
        & (channel >= 8 - 8 // groups),
        "Layer: one image,\nall channels": front,
    }
    figure = Figure(figsize=(10, 3.0))
    for place, (name, shaded) in enumerate(sets.items(), 1):
        axis = figure.add_subplot(1, 3, place, projection="3d")
        solid = shaded.transpose(0, 1).numpy()
        for part, color in ((~solid, "#DCE6F0"), (solid, "#B03A6F")):
            axis.voxels(part, facecolors=color, edgecolors="#333333", linewidth=0.5)
        axis.set(xticks=[], yticks=[], zticks=[], facecolor="none")  # so that labels show
        axis.set_title(name, fontsize=12, y=1.0)
        for side, label in (("x", "channels"), ("y", "images"), ("z", "height x width")):
            getattr(axis, f"{side}axis").set_label_text(label, fontsize=11)
            getattr(axis, f"{side}axis").labelpad = -12
            getattr(axis, f"{side}axis").set_pane_color((0, 0, 0, 0))
        axis.set_box_aspect((8, 4, 3), zoom=1.0)
        axis.view_init(elev=24, azim=-58)
    figure.subplots_adjust(left=0.0, right=0.96, bottom=0.0, top=0.9, wspace=0.12)
    return figure


def post_lines(
    lines: Mapping, title: str, xlabel: str, ylabel: str, window=1, yscale="linear"
) -> Figure:
    """Return a Figure with one line per name; `lines[name]` maps x to y.

    With a `window` above 1, a line is the moving mean of that many values, which are drawn faint.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    draw_lines(axis, lines, window)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale=yscale)
    return figure


def draw_lines(axis, lines: Mapping[str, Mapping], window=1) -> None:
    """Draw one line per name on the axis, with a legend; see `post_lines`."""
    for i, (name, values) in enumerate(lines.items()):
        x, y = list(values), torch.tensor(list(values.values()), dtype=torch.float64)
        style = STYLES.get(name, {"linestyle": ("-", "--")[i % 2], "marker": "o"})
        style = style | ({"marker": ""} if len(y) > 30 else {})
        means = y.unfold(0, window, 1).mean(1)
        (line,) = axis.plot(x[window - 1 :], means, label=LABELS[name], linewidth=2, **style)
        if window > 1:
            axis.plot(x, y, color=line.get_color(), linewidth=0.8, alpha=0.35)
    axis.margins(y=0.12)
    axis.grid(alpha=0.3)
    axis.legend()


Signals = Mapping[str, Mapping[str, tuple[torch.Tensor, torch.Tensor]]]


def post_signal(signals: Signals) -> Figure:
    """Return a Figure of the standard deviation by block, before and after the normalization.

    `signals[norm][block]` is the pair of activations before and after it.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = zip(figure.subplots(1, 2, sharey=True), ("before", "after"), strict=True)
    for place, (axis, where) in enumerate(panels):
        lines = {
            name: {block: both[place].std().item() for block, both in blocks.items()}
            for name, blocks in signals.items()
        }
        draw_lines(axis, lines)
        axis.set(title=f"{where} the normalization", xlabel="block", yscale="log")
    figure.axes[0].set(ylabel="standard deviation of the activations")
    return figure


def post_histograms(signals: Signals, blocks: Sequence[str] = ("C1", "C5", "C10")) -> Figure:
    """Return a Figure of the first channel's values, before and after the normalization.

    `signals` is as in `post_signal`. Bars end at 15 %; titles give the share of zeros.
    """
    figure = Figure(figsize=(10, 1.9 * len(signals)), layout="constrained")
    rows = figure.subplots(len(signals), len(blocks), sharex=True, sharey=True, squeeze=False)
    edges = [tenth / 10 for tenth in range(-15, 41)]
    for row, (name, signal) in zip(rows, signals.items(), strict=True):
        color = STYLES.get(name, STYLES["none"])["color"]
        for axis, block in zip(row, blocks, strict=True):
            before, after = (part[:, 0].flatten().float().cpu().numpy() for part in signal[block])
            how = {"bins": edges, "weights": [100 / before.size] * before.size}
            axis.hist(before, color="#BBBBBB", label="before", **how)
            axis.hist(after, histtype="step", color=color, linewidth=1.5, label="after", **how)
            zeros = (before == 0).mean()
            axis.set_title(f"{LABELS[name]}: {block}, {zeros:.0%} zeros before", fontsize=11)
        row[0].set_ylabel("% of values")
    rows[0, 0].set_ylim(0, 15)
    rows[0, -1].legend()
    return figure


def post_display(images: torch.Tensor, captions: Sequence[str], title: str, columns=10) -> Figure:
    """Return a Figure of uint8 images (N, 3, H, W) in rows of `columns`, below their captions."""
    rows = max(1, -(-len(images) // columns))
    lines = 1 + max((caption.count("\n") for caption in captions), default=0)
    size = 12 / columns  # inches per image; a line of text takes 0.2
    figure = Figure(figsize=(12, rows * (size + 0.2 * lines) + 0.4), layout="constrained")
    figure.suptitle(title)
    draw_images(figure.subplots(rows, columns, squeeze=False).ravel(), images, captions, 10)
    if not captions:
        figure.set_figheight(0.5)  # the title alone
    return figure


def draw_images(axes, images: torch.Tensor, captions: Sequence[str], fontsize: int) -> None:
    """Draw uint8 images (N, 3, H, W), below their captions, on at least as many axes."""
    for axis in axes:
        axis.axis("off")
    for axis, image, caption in zip(axes, images.cpu(), captions, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy())
        axis.set_title(caption, fontsize=fontsize)


def post_accuracyplots(
    history: Mapping[str, Sequence[float]], title: str, norm: str, committed: Mapping = {}
) -> Figure:
    """Return a Figure of a history by epoch; the test curve has the colour of `norm`.

    `committed` has the histories of other runs by norm. Those of `norm` become a band from lowest
    to highest, those of each other norm a thin line at their mean.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplot_mosaic([["loss", "acc"], ["lr", "acc"]], height_ratios=[3, 1])
    epochs = range(1, len(history["lr"]) + 1)
    for key, label in (("loss", "mean negative log likelihood"), ("acc", "accuracy (%)")):
        axis = axes[key]
        axis.plot(epochs, history[f"clean_train_{key}"], "--", color="black", label="clean train")
        color = STYLES.get(norm, STYLES["none"])["color"]  # your own norms have none
        axis.plot(epochs, history[f"test_{key}"], "-", color=color, linewidth=2, label="test")
        for other, histories in committed.items():
            tests = [run[f"test_{key}"] for run in histories]
            tests = torch.tensor(tests, dtype=torch.float64)  # (runs, epochs)
            x = range(1, tests.shape[1] + 1)
            color = STYLES.get(other, STYLES["none"])["color"]
            what = "range" if other == norm else "mean"
            name = f"{LABELS[other]}: {what} of {len(tests)} runs of the repository"
            if other == norm:
                band = (tests.amin(0).tolist(), tests.amax(0).tolist())
                axis.fill_between(x, *band, color=color, alpha=0.25, linewidth=0, label=name)
            else:
                axis.plot(x, tests.mean(0), color=color, linewidth=0.9, label=name)
        axis.set_ylabel(label)
        axis.legend(fontsize=8, loc="lower right" if key == "acc" else "upper right")
    axes["lr"].plot(epochs, history["lr"], ".-", color="dimgray", linewidth=1)
    axes["lr"].set(ylabel="learning rate", ylim=(0, None))
    for axis in axes.values():
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    return figure


def post_misclassified(
    dataset: TensorDataset, prediction, classes, title, count=10, most_confident=False
) -> Figure:
    """Return a Figure of `count` wrong predictions, either the first or the most confident.

    `prediction` is log-probabilities (N, 10) in the order of `dataset`. Captions give the label,
    the predicted class and its probability.
    """
    images, labels = dataset.tensors
    probability, predicted = prediction.exp().max(dim=1)
    wrong = (predicted != labels).nonzero().flatten()
    if most_confident:
        wrong = wrong[probability[wrong].argsort(descending=True, stable=True)]
    wrong = wrong[:count]
    captions = [
        f"label: {classes[labels[i]]}\npredicted: {classes[predicted[i]]} ({probability[i]:.1%})"
        for i in wrong.tolist()
    ]
    title = title if captions else f"{title} (none)"
    return post_display(images[wrong], captions, title, columns=5)


def post_confusion(prediction, labels, classes: Sequence[str], title: str) -> Figure:
    """Return a Figure of the confusion matrix, true by predicted class, and class accuracies.

    `prediction` is log-probabilities (N, 10) of images with the `labels` (N,). Cells count images;
    those of wrong predictions are coloured.
    """
    size = prediction.shape[1]
    pairs = (labels * size + prediction.argmax(dim=1)).cpu()
    counts = torch.bincount(pairs, minlength=size**2).view(size, size)
    classes = [*classes, *range(len(classes), size)]  # outputs without a name
    errors = counts - counts.diag().diag()
    figure = Figure(figsize=(12, 6), layout="constrained")
    figure.suptitle(title)
    matrix, bars = figure.subplots(1, 2, width_ratios=[2, 1], sharey=True)
    matrix.imshow(errors.numpy(), cmap="Purples", aspect="auto")
    for row, column in counts.nonzero().tolist():
        color = "white" if errors[row, column] > errors.max() / 2 else "black"
        text = str(counts[row, column].item())
        matrix.text(column, row, text, ha="center", va="center", color=color, fontsize=11)
    matrix.set(xlabel="predicted class", ylabel="true class")
    matrix.set_yticks(range(size), classes)
    matrix.set_xticks(range(size), classes, rotation=45, ha="right")
    accuracies = (100 * counts.diag() / counts.sum(dim=1).clamp(min=1)).tolist()
    drawn = bars.barh(range(size), accuracies, color=matrix.images[0].cmap(0.6))
    bars.bar_label(drawn, fmt="%.1f", padding=2, fontsize=9)
    bars.set(xlabel="accuracy of the class (%)", xlim=(0, 112), xticks=range(0, 101, 25))
    return figure

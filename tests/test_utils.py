"""What the notebooks' cells call, in the order of a run: device, data, training, plots."""

import dataclasses
import math
import platform

import numpy as np
import pytest
import torch
from mpl_toolkits.mplot3d import Axes3D
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import utils
from common import CPU, MUON, OUR_NORMS, draw_images, make_dataset, make_run, prepare
from models import Session8Net, get_norm
from runs import PRECISIONS, Recipe, get_recipe

# --- The device


def test_a_precision_is_the_one_asked_for_or_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    for device in (CPU, torch.device("cuda")):
        for name in PRECISIONS:
            assert utils.get_precision(f" {name}\n", device) == name
    with pytest.raises(ValueError, match="PRECISION is 'fp32'.*'native', 'float32'"):
        utils.get_precision("fp32", CPU)


@pytest.mark.parametrize(
    ("has", "precision"),
    [
        ({"avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
        ({"bf16": True}, "bfloat16"),  # ARM
        ({"avx512_f": True, "avx512_bf16": False}, "float32"),
        ((8, 0), "bfloat16"),  # of a GPU
        ((7, 5), "float32"),
    ],
    ids=str,
)
def test_native_is_bfloat16_where_hardware_computes_in_it(has, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: has)
    device = torch.device("cuda" if isinstance(has, tuple) else "cpu")
    assert utils.get_precision("", device) == utils.get_precision("native", device) == precision


def test_float32_is_not_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with utils.autocast(CPU, "float32"):
        assert not torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what keeps the memory is glibc's")
def test_memory_that_was_freed_is_used_again():
    resource = pytest.importorskip("resource")

    def count_page_faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            _ = [torch.ones(2_000_000) for _ in range(4)]  # 32 MB, in pieces
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    utils.keep_memory()
    count_page_faults()
    pages = 32_000_000 / resource.getpagesize()
    assert count_page_faults() < 3 * pages  # else 20 times as many


# --- Transforms and loaders


def test_random_crop_shifts_each_image_and_reflects_its_borders():
    images = draw_images(200, 5, 9)
    torch.manual_seed(3)  # with which each of the 25 shifts is there
    moved = utils.RandomCrop(2)(images)
    padded = F.pad(images.float(), [2] * 4, mode="reflect").to(torch.uint8)
    windows = {(y, x): padded[..., y : y + 5, x : x + 9] for y in range(5) for x in range(5)}
    same = {place: (window == moved).all((1, 2, 3)) for place, window in windows.items()}
    assert (sum(same.values()) == 1).all()  # each image is one of its 25 windows
    assert all(found.any() for found in same.values())


def test_random_flip_mirrors_some_images_and_leaves_the_others():
    images = draw_images(400)
    flipped = utils.RandomFlip(0.25)(images)
    mirrored, untouched = ((one == flipped).all((1, 2, 3)) for one in (images.flip(-1), images))
    assert torch.equal(mirrored, ~untouched)
    assert 60 <= mirrored.sum() <= 140  # 100 expected, standard deviation 8.7
    assert torch.equal(utils.RandomFlip(1.0)(images), images.flip(-1))


def test_random_affine_turns_by_the_angle_and_resizes_by_the_scale(monkeypatch):
    images = draw_images(4)
    monkeypatch.setattr(torch, "rand", torch.ones)  # the largest draw for every image
    turned = utils.RandomAffine(degrees=90, resize=0.0)(images)
    assert any(torch.equal(turned, images.rot90(k, (2, 3))) for k in (1, -1))
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, 1.5))
    enlarged = utils.RandomAffine(degrees=0, resize=0.5)(images)  # twice the size
    expected = F.interpolate(images.float(), scale_factor=2, mode="bilinear")[..., 16:48, 16:48]
    assert (enlarged - expected).abs().max() < 0.51  # rounded, a half either way


def test_random_affine_draws_for_each_image_within_its_bounds():
    ramp = (66 + 4 * torch.arange(32)).to(torch.uint8).expand(100, 3, 32, 32)

    def get_slopes(degrees, resize):
        moved = utils.RandomAffine(degrees, resize)(ramp)[:, 0, 12:20, 12:20].float()
        return (moved.diff(dim=d).mean((1, 2)) for d in (1, 2))  # down and right

    angles = torch.atan2(*get_slopes(10, 0.0)).rad2deg()
    assert -12 < angles.min() < -5 < 5 < angles.max() < 12
    scales = 4 / list(get_slopes(0, 0.1))[1]
    assert 0.85 < scales.min() < 0.97 < 1.03 < scales.max() < 1.15


def test_transforms_are_there_only_where_the_recipe_asks():
    def name(transforms):
        return [type(step).__name__ for step in transforms.transforms]

    def make(**fields):
        return name(utils.get_train_transforms(Recipe("x", **fields)))

    assert make(crop=0, flip=0.0) == name(utils.get_test_transforms()) == ["Normalize"]
    assert make() == ["RandomCrop", "RandomFlip", "Normalize"]
    assert "RandomAffine" in make(rotation=0.1)
    assert "RandomAffine" in make(resize=0.1)


def test_normalization_is_the_formula():
    images = draw_images()
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1)
    normalized = utils.get_test_transforms()(images)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized, (images / 255 - mean) / std)
    assert torch.equal(utils.denormalize(normalized), images)


def test_a_loader_gives_every_image_once_an_epoch_with_its_label():
    dataset = make_dataset(70)
    dataset.tensors[0][:, 0, 0, 0] = torch.arange(70)  # by which to know it again
    loader = utils.Loader(dataset, utils.get_test_transforms(), 16, shuffle=True)
    torch.manual_seed(0)
    first, second = list(loader), list(loader)
    assert [len(labels) for _, labels in first] == [16, 16, 16, 16, 6]
    for epoch in (first, second):
        images = torch.cat([utils.denormalize(images) for images, _ in epoch])
        order = images[:, 0, 0, 0].long()
        assert sorted(order.tolist()) == list(range(70))
        assert torch.equal(images, dataset.tensors[0][order])
        assert torch.equal(torch.cat([labels for _, labels in epoch]), dataset.tensors[1][order])
    assert not torch.equal(first[0][1], second[0][1])


# --- Optimizer and schedule


def get_rates(recipe, steps_per_epoch, group=0):
    """Return the learning rate of every step of a run, for that group of parameters."""
    optimizer = utils.get_optimizer(nn.Sequential(nn.Conv2d(1, 1, 1)), recipe)
    scheduler = utils.get_scheduler(optimizer, recipe, steps_per_epoch)
    rates = []
    for _ in range(recipe.epochs * steps_per_epoch):
        rates.append(optimizer.param_groups[group]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0.2, 1.0])
@pytest.mark.parametrize(("group", "top"), [(0, 0.03), (1, 0.2)], ids=["kernels", "others"])
def test_onecycle_rises_to_its_peak_and_falls_to_almost_nothing(warmup, group, top):
    rates = get_rates(Recipe("x", warmup=warmup, **MUON | {"affine_lr": 0.2}), 40, group)
    peak = min(warmup * 800, 799) - 1  # there is always one step to fall in
    expected = np.interp(range(800), [0, peak, 799], [0.1 * top, top, 1e-5 * top])
    assert rates == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("epochs", "steps", "warmup"), [(5, 1, 0.2), (1, 1, 0.2), (1, 2, 1.0)])
def test_a_warm_up_of_a_step_or_less_is_none(epochs, steps, warmup):
    rates = get_rates(Recipe("x", epochs=epochs, warmup=warmup), steps)
    assert 0.024 < rates[0] < 0.05
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0


def test_the_reference_schedule_drops_by_ten_every_six_epochs():
    rates = get_rates(get_recipe("reference"), 3)
    epochs = [0.04] * 6 + [0.004] * 6 + [4e-4] * 6 + [4e-5] * 2
    assert rates == pytest.approx([rate for rate in epochs for _ in range(3)])


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.95, True), (0.9, False)])
def test_muon_is_pytorch_s_to_the_last_bit(momentum, nesterov):
    """Convolutions move as a matrix does by torch.optim.Muon, all else as by SGD without decay."""

    def as_matrix(kernel):  # (out, all else), the columns in the order of channels_last
        return kernel.movedim(1, -1).flatten(1)

    options = {"momentum": momentum, "nesterov": nesterov}
    torch.manual_seed(0)
    model = Session8Net("gn")
    model.tall = nn.Conv2d(3, 30, 3)  # more rows than columns, and with a bias
    model.scale = nn.Parameter(torch.rand(1, 10, 1, 1))  # of a norm of the user's own
    model = model.to(memory_format=torch.channels_last)
    ours = utils.get_optimizer(model, Recipe("x", **MUON | options, affine_lr=0.02))
    kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    others = [p for p in model.parameters() if not any(p is kernel for kernel in kernels)]
    matrices = [nn.Parameter(as_matrix(kernel.detach()).clone()) for kernel in kernels]
    copies = [nn.Parameter(p.detach().clone()) for p in others]
    muon = torch.optim.Muon(matrices, lr=0.03, weight_decay=0.05, **options)
    sgd = torch.optim.SGD(copies, lr=0.02, **options)
    for _ in range(6):
        for parameter in (*kernels, *others):
            parameter.grad = torch.randn(parameter.shape)
        for matrix, kernel in zip(matrices, kernels, strict=True):
            matrix.grad = as_matrix(kernel.grad)
        for copy, parameter in zip(copies, others, strict=True):
            copy.grad = parameter.grad
        for optimizer in (ours, muon, sgd):
            optimizer.step()
    assert (len(kernels), len(others)) == (12, 18)
    assert all(map(torch.equal, map(as_matrix, kernels), matrices))
    assert all(map(torch.equal, others, copies))


# --- Training and evaluation


def test_the_network_has_the_recipe_s_groups_and_dropout():
    model, *_ = prepare(make_run(norm="gn", groups=2, dropout=0.1))
    assert {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)} == {2}
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.1}


CLEAN = 12  # images, in these tests


@pytest.mark.parametrize(
    ("recipe", "norm"), [*(("onecycle", norm) for norm in OUR_NORMS), ("reference", "bn")]
)
def test_two_epochs_are_those_of_a_loop_out_of_a_textbook(recipe, norm, monkeypatch):
    """Modes, momentum, gradients zeroed, the schedule, order and augmentation go on as they do.

    The loop evaluates at its end alone, so it also shows that `fit`'s measurements change nothing.
    """
    assert utils.CLEAN == 10_000
    monkeypatch.setattr(utils, "CLEAN", CLEAN)
    changes = {"step_epochs": 1} if recipe == "reference" else {}
    run = make_run(recipe, norm, batch_size=8, epochs=2, dropout=0.1, **changes)
    dataset = make_dataset(17)  # a last batch of one image trains, too
    test_dataset = TensorDataset(dataset.tensors[0].flip(2), dataset.tensors[1])
    model, *rest = prepare(run, dataset, test_dataset)
    history = utils.fit(run, model, *rest)

    theirs, train_loader, *_ = prepare(run, dataset)
    fields = dataclasses.asdict(run.recipe)
    options = {name: fields[name] for name in ("lr", "momentum", "nesterov", "weight_decay")}
    optimizer = torch.optim.SGD(theirs.parameters(), **options)
    rates = get_rates(run.recipe, 3)
    torch.manual_seed(run.seed)
    for epoch in range(2):
        loss = correct = 0
        for step, (images, labels) in enumerate(train_loader):
            optimizer.param_groups[0]["lr"] = rates[3 * epoch + step]
            optimizer.zero_grad()
            output = theirs.train()(images)
            F.nll_loss(output, labels).backward()
            optimizer.step()
            loss += F.nll_loss(output, labels, reduction="sum").item() / 17
            correct += (output.argmax(1) == labels).sum().item()
        assert history["lr"][epoch] == rates[3 * epoch]
        assert history["train_loss"][epoch] == pytest.approx(loss)
        assert history["train_acc"][epoch] == pytest.approx(100 * correct / 17)

    theirs.eval()
    clean = dataset[:CLEAN]
    for name, images, labels in (("clean_train", *clean), ("test", *test_dataset.tensors)):
        output = theirs(utils.get_test_transforms()(images))
        loss, right = F.nll_loss(output, labels), output.argmax(1) == labels
        assert history[f"{name}_loss"][1] == pytest.approx(loss.item())
        assert history[f"{name}_acc"][1] == pytest.approx(100 * right.float().mean().item())
    torch.testing.assert_close(dict(model.state_dict()), dict(theirs.state_dict()))


def record(run, dataset, test_dataset=None):
    """Run it; return for each pass through the network whether it trained, and its images."""
    parts, passes = prepare(run, dataset, test_dataset), []
    parts[0].register_forward_pre_hook(lambda m, x: passes.append((m.training, x[0].clone())))
    utils.fit(run, *parts)
    return passes


def test_every_epoch_trains_and_then_evaluates_in_order():
    dataset, test_dataset = make_dataset(20), make_dataset(9)
    test_dataset.tensors[0].neg_()
    passes = record(make_run(batch_size=8, epochs=2), dataset, test_dataset)
    assert [training for training, _ in passes] == ([True] * 3 + [False] * 5) * 2
    clean, tested = (utils.get_test_transforms()(d.tensors[0]) for d in (dataset, test_dataset))
    for start in (0, 8):
        seen = [images for _, images in passes[start : start + 8]]
        assert torch.equal(torch.cat(seen[3:6]), clean)
        assert torch.equal(torch.cat(seen[6:]), tested)


def test_a_second_epoch_has_another_order_and_other_augmentation():
    dataset = make_dataset(20)
    passes = record(make_run(batch_size=20, epochs=2, crop=0, flip=0.0), dataset)
    first, _, test, second, *_ = (images for _, images in passes)
    assert not torch.equal(first, second)
    places = [(image == test).flatten(1).all(1).nonzero().item() for image in second]
    assert torch.equal(second, test[places])  # the same images in another order
    assert sorted(places) == list(range(20))
    one = TensorDataset(draw_images(1).repeat(20, 1, 1, 1), torch.zeros(20, dtype=torch.int64))
    first, _, _, second, *_ = (images for _, images in record(make_run(epochs=2, seed=2), one))
    assert not torch.equal(first, second)  # though all images are the same


def test_the_first_epochs_see_smaller_images():
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(8, 3, 32, 32)  # left to right
    dataset = TensorDataset(ramp, torch.arange(8))
    run = make_run(epochs=3, small_epochs=2, small_size=20, crop=0, flip=0.0)
    trained = [images for training, images in record(run, dataset) if training]
    assert [images.shape[-1] for images in trained] == [20, 20, 32]
    assert trained[0].shape == (8, 3, 20, 20)
    left, right = trained[2][..., :1], trained[2][..., -1:]
    places = (torch.arange(20) + 0.5) * 32 / 20 - 0.5  # of the new pixels among the old ones
    expected = left + (right - left) / 31 * places
    torch.testing.assert_close(trained[0][..., 2:-2], expected[..., :20, 2:-2], atol=0.03, rtol=0)


def test_another_seed_gives_other_weights_order_and_augmentation():
    def start(seed):
        model, train_loader, *_ = prepare(make_run(seed=seed))
        utils.set_seed(seed)
        images, labels = next(iter(train_loader))
        return model.layers.C1.conv.weight, labels, images[labels.argsort(stable=True)]

    for one, same, other in zip(start(1), start(1), start(2), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_a_history_has_one_number_an_epoch_in_each_column(capsys):
    run = make_run(batch_size=8, epochs=2)
    history = utils.fit(run, *prepare(run, make_dataset(8)))
    columns = "lr train_loss train_acc clean_train_loss clean_train_acc test_loss test_acc seconds"
    assert list(history) == columns.split()
    assert all(len(values) == 2 for values in history.values())
    header, first, last = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["epoch", *columns.split()]
    assert first[-2:] == ["min", "left"]
    expected = [2, *(values[1] for values in history.values())]
    assert [float(cell) for cell in last] == pytest.approx(expected, abs=0.051)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_convolutions_are_computed_in_the_run_s_precision_everywhere(precision):
    run = make_run(precision=precision, batch_size=8, epochs=1)
    model, train_loader, test_loader, *rest = prepare(run, make_dataset(8))
    computed = set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *args: computed.add(args[2].dtype))
    utils.fit(run, model, train_loader, test_loader, *rest)
    assert computed == {getattr(torch, precision)}
    computed.clear()
    assert utils.predict(model, test_loader, precision)[0].dtype == torch.float32
    assert computed == {getattr(torch, precision)}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# --- The plots


def get_texts(figure):
    titles = [axis.get_title() for axis in figure.axes]
    return figure.get_suptitle(), [title for title in titles if title]


def test_sample_images_stand_under_their_captions():
    captions = [f"image {k}" for k in range(12)]
    figure = utils.post_display(draw_images(12), captions, "Samples")
    assert get_texts(figure) == ("Samples", captions)
    assert sum(bool(axis.images) for axis in figure.axes) == 12


def test_the_curves_are_the_history_with_labels_and_units():
    history = {"lr": [0.1, 0.2], "clean_train_loss": [2.0, 1.0], "test_loss": [2.1, 1.1]}
    history |= {"clean_train_acc": [40.0, 60.0], "test_acc": [41.0, 61.0]}
    figure = utils.post_accuracyplots(history, "Curves", "gn")
    axes = {axis.get_label(): axis for axis in figure.axes}
    assert all(axis.get_xlabel() == "epoch" for axis in axes.values())
    drawn = {
        (key, line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for key in ("loss", "acc")
        for line in axes[key].lines
    }
    assert drawn == {
        (key, part): ([1, 2], history[f"{column}_{key}"])
        for key in ("loss", "acc")
        for part, column in (("clean train", "clean_train"), ("test", "test"))
    }
    assert "likelihood" in axes["loss"].get_ylabel()
    assert "%" in axes["acc"].get_ylabel()
    assert axes["acc"].lines[1].get_color() == utils.STYLES["gn"]["color"]
    assert list(axes["lr"].lines[0].get_ydata()) == history["lr"]
    assert utils.post_accuracyplots(history, "Curves", "a norm of one's own").axes


def test_the_norms_are_told_apart_in_grey_too():
    styles = utils.STYLES.values()
    for key in ("color", "linestyle", "marker"):
        assert len({style[key] for style in styles}) == len(styles)
    parts = ((0.3, 1), (0.59, 3), (0.11, 5))  # of red, green and blue
    greys = [sum(w * int(s["color"][k : k + 2], 16) for w, k in parts) for s in styles]
    assert np.diff(sorted(greys)).min() > 9  # of 255


FIRST = {3: "label: d\npredicted: f (60.0%)", 17: "label: h\npredicted: a (90.0%)"}
SUREST = {17: FIRST[17], 29: "label: j\npredicted: b (75.0%)"}


@pytest.mark.parametrize(("most_confident", "expected"), [(False, FIRST), (True, SUREST)])
def test_misclassified_images_stand_under_both_classes(most_confident, expected):
    dataset = make_dataset(30)
    prediction = F.one_hot(dataset.tensors[1], 10).float().log()
    for index, wrong, probability in ((3, 5, 0.6), (17, 0, 0.9), (29, 1, 0.75)):
        prediction[index] = math.log((1 - probability) / 9)
        prediction[index, wrong] = math.log(probability)
    options = {"count": 2, "most_confident": most_confident}
    figure = utils.post_misclassified(dataset, prediction, "abcdefghij", "Wrong", **options)
    assert get_texts(figure) == ("Wrong", list(expected.values()))
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    for image, index in zip(shown, expected, strict=True):
        assert (image == dataset.tensors[0][index].permute(1, 2, 0).numpy()).all()
    right = TensorDataset(*dataset[:3])
    figure = utils.post_misclassified(right, prediction[:3], "abcdefghij", "Wrong")
    assert get_texts(figure) == ("Wrong (none)", [])


def test_the_confusion_matrix_counts_true_by_predicted_class():
    labels = torch.tensor([0] * 4 + [1] * 2 + [4] * 2)
    prediction = F.one_hot(torch.tensor([0, 0, 0, 7, 1, 2, 4, 4]), 10).float().log()
    figure = utils.post_confusion(prediction, labels, "abcdefgh", "Confusion")
    matrix, bars = figure.axes
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted class", "true class")
    assert "%" in bars.get_xlabel()
    cells = {text.get_position()[::-1]: text.get_text() for text in matrix.texts}  # row, column
    assert cells == {(0, 0): "3", (0, 7): "1", (1, 1): "1", (1, 2): "1", (4, 4): "2"}
    coloured = matrix.images[0].get_array().nonzero()
    assert [*zip(*coloured, strict=True)] == [(0, 7), (1, 2)], "the errors"
    shares = ["75.0", "50.0", "0.0", "0.0", "100.0", *["0.0"] * 5]
    assert [text.get_text() for text in bars.texts] == shares
    for ticks in (matrix.get_xticklabels(), matrix.get_yticklabels()):
        assert "".join(text.get_text() for text in ticks) == "abcdefgh89"  # two are no class


def test_a_cube_shows_what_is_normalized_together(monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes3D, "voxels", lambda _, filled, **style: drawn.append(filled))
    utils.post_cubes(groups=4)
    x = 3 + torch.randn(4, 8, 3, 1)
    for norm, rest, filled in zip(("bn", "gn", "ln"), drawn[::2], drawn[1::2], strict=True):
        together = get_norm(norm, 8, groups=4)(x)[..., 0].transpose(0, 1)[torch.from_numpy(filled)]
        assert together.mean().item() == pytest.approx(0, abs=1e-4)
        assert together.var(correction=0).item() == pytest.approx(1, abs=1e-3)
        assert (rest ^ filled).all()


def test_lines_have_the_style_and_the_name_of_their_norm():
    lines = {"gn": {"C1": 1.0, "C2": 0.1}, "mine": {"C1": 2.0}}
    (axis,) = utils.post_lines(lines, "Title", "layer", "deviation", log=True).axes
    texts = axis.get_xlabel(), axis.get_ylabel(), axis.get_yscale()
    assert texts == ("layer", "deviation", "log")
    first, second = axis.lines
    assert (first.get_label(), first.get_color()) == ("Group", utils.STYLES["gn"]["color"])
    assert list(first.get_ydata()) == [1.0, 0.1]
    assert second.get_label() == "mine"

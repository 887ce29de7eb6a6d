"""What the notebooks' cells call, in the order of a run: device, data, training, plots."""

import dataclasses
import functools
import itertools
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
from common import MUON, OUR_NORMS, draw_images, make_dataset, make_run, prepare
from models import Session8Net, get_norm
from runs import PRECISIONS, Recipe, get_recipe

# --- The device


CPUS = [({"avx512_bf16": False, "amx_bf16": True}, "bfloat16"), ({"bf16": True}, "bfloat16")]
CPUS += [({"avx512_f": True, "avx512_bf16": False}, "float32")]  # the one before is ARM's
GPUS = [((8, 0), "bfloat16"), ((7, 5), "float32")]


@pytest.mark.parametrize(("has", "native"), CPUS + GPUS, ids=str)
def test_native_is_bfloat16_where_hardware_computes_in_it(has, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: has)
    device = torch.device("cuda" if isinstance(has, tuple) else "cpu")
    asked = {"": native, "native": native, " float32\n": "float32", "bfloat16": "bfloat16"}
    assert {name: utils.get_precision(name, device) for name in asked} == asked
    with pytest.raises(ValueError, match="PRECISION is 'fp32'.*'native', 'float32'"):
        utils.get_precision("fp32", device)


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


OFF = {"crop": 0, "rotation": 0.0, "resize": 0.0, "flip": 0.0}


def augment(images, **fields):
    """Return the uint8 images as a recipe of these fields changes them, and no other."""
    torch.manual_seed(0)
    return utils.denormalize(utils.get_train_transforms(Recipe("x", **OFF | fields))(images))


def test_a_crop_shifts_each_image_and_reflects_its_borders():
    images = draw_images(400, 5, 9)  # so many that each of the 25 shifts is there
    moved = augment(images, crop=2)
    padded = F.pad(images.float(), [2] * 4, mode="reflect").to(torch.uint8)
    windows = {(y, x): padded[..., y : y + 5, x : x + 9] for y in range(5) for x in range(5)}
    same = {place: (window == moved).all((1, 2, 3)) for place, window in windows.items()}
    assert (sum(same.values()) == 1).all()  # each image is one of its 25 windows
    assert all(found.any() for found in same.values())


def test_a_flip_mirrors_some_images_and_leaves_the_others():
    images = draw_images(400)
    flipped = augment(images, flip=0.25)
    mirrored, untouched = ((one == flipped).all((1, 2, 3)) for one in (images.flip(-1), images))
    assert torch.equal(mirrored, ~untouched)
    assert 60 <= mirrored.sum() <= 140  # 100 expected, standard deviation 8.7
    assert torch.equal(augment(images, flip=1.0), images.flip(-1))
    assert torch.equal(augment(images), images), "what is off is off"


def warp(image, matrix):
    """Return the image (32, 32) whose point p is the old one's `matrix` @ p, from the centre."""
    padded = np.pad(image, 16, mode="symmetric")
    points = matrix @ (np.indices((32, 32)).reshape(2, -1) - 15.5) + 31.5
    low = np.floor(points).astype(int)
    bottom, right = points - low
    warped = 0
    for down, across in itertools.product((0, 1), repeat=2):
        weight = (bottom if down else 1 - bottom) * (right if across else 1 - right)
        warped += weight * padded[low[0] + down, low[1] + across]
    return warped.reshape(32, 32)


def test_rotation_and_resizing_are_an_affine_map_with_reflected_borders():
    """Two channels are ramps, by which to know how an image was moved, and one is noise."""
    ramp = (4 + 8 * torch.arange(32)).to(torch.uint8)
    images = draw_images(100)
    images[:, 0], images[:, 1] = ramp[:, None], ramp
    moved = augment(images, rotation=10.0, resize=0.1).double().numpy()
    middle = slice(4, 28)  # which comes from within the image
    points = (np.indices((32, 32))[:, middle, middle] - 15.5).reshape(2, -1)
    sources = (moved[:, :2, middle, middle].reshape(100, 2, -1) - 4) / 8 - 15.5  # of those points
    assert np.abs(sources.mean(axis=2)).max() < 0.05, "about the centre"
    matrices = sources @ np.linalg.pinv(points)
    for image, noise, matrix in zip(images[:, 2].numpy(), moved[:, 2], matrices, strict=True):
        error = noise - warp(image, matrix)  # of 255
        assert np.abs(error).max() < 8
        assert np.abs(error.mean()) < 0.2  # rounded, not cut
    scales = np.linalg.det(matrices) ** -0.5
    angles = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    turns = np.radians(angles)
    rotations = np.array([[np.cos(turns), -np.sin(turns)], [np.sin(turns), np.cos(turns)]])
    np.testing.assert_allclose(matrices.T, rotations.swapaxes(0, 1) / scales, atol=0.01)
    draws = angles / 10, (scales - 1) / 0.1
    for draw in draws:  # uniform from -1 to 1
        assert -1.02 < draw.min() < -0.8
        assert 0.8 < draw.max() < 1.02
        assert draw.mean() == pytest.approx(0, abs=0.25)  # four deviations
    assert abs(np.corrcoef(*draws)[0, 1]) < 0.4
    for alone in ({"rotation": 10.0}, {"resize": 0.1}):
        assert not torch.equal(augment(images, **alone), images)


def test_a_loader_gives_every_image_once_an_epoch_normalized_with_its_label():
    dataset = make_dataset(70)
    dataset.tensors[0][:, 0, 0, 0] = torch.arange(70)  # by which to know it again
    loader = utils.Loader(dataset, utils.get_test_transforms(), 16, shuffle=True)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1)
    torch.manual_seed(0)
    first, second = list(loader), list(loader)
    assert [len(labels) for _, labels in first] == [16, 16, 16, 16, 6]
    for epoch in (first, second):
        normalized, labels = map(torch.cat, zip(*epoch, strict=True))
        images = utils.denormalize(normalized)
        order = images[:, 0, 0, 0].long()
        assert sorted(order.tolist()) == list(range(70))
        assert all(map(torch.equal, (images, labels), dataset[order]))
        assert normalized.dtype == torch.float32
        torch.testing.assert_close(normalized, (images / 255 - mean) / std)
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
    options = {"momentum": momentum, "nesterov": nesterov}
    torch.manual_seed(0)
    model = Session8Net("gn")
    model.tall = nn.Conv2d(3, 30, 3)  # more rows than columns, and with a bias
    model.scale = nn.Parameter(torch.rand(1, 10, 1, 1))  # of a norm of the user's own
    model = model.to(memory_format=torch.channels_last)
    kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    others = [p for p in model.parameters() if not any(p is kernel for kernel in kernels)]
    assert (len(kernels), len(others)) == (12, 18)
    gradients = [[torch.randn(p.shape) for p in (*kernels, *others)] for _ in range(6)]

    def move(parameters, make, change=torch.clone, start=0):
        """Return the parameters, as changed, after steps along gradients that are changed so."""
        optimizer = make(parameters)
        for step in gradients:
            for parameter, gradient in zip(parameters, step[start:], strict=False):
                parameter.grad = change(gradient)
            optimizer.step()
        return parameters

    orders = (  # of a matrix's columns; it does not matter which, but for rounding
        lambda kernel: kernel.flatten(1),
        lambda kernel: kernel.movedim(1, -1).flatten(1),
    )
    make = functools.partial(torch.optim.Muon, lr=0.03, weight_decay=0.05, **options)
    copies = [[nn.Parameter(order(k.detach()).clone()) for k in kernels] for order in orders]
    matrices = [move(copy, make, order) for copy, order in zip(copies, orders, strict=True)]
    sgd = functools.partial(torch.optim.SGD, lr=0.02, **options)
    moved = move([nn.Parameter(p.detach().clone()) for p in others], sgd, start=12)
    recipe = Recipe("x", **MUON | options, affine_lr=0.02)
    move([*kernels, *others], lambda _: utils.get_optimizer(model, recipe))
    ours = [map(order, kernels) for order in orders]
    assert any(all(map(torch.equal, *pair)) for pair in zip(ours, matrices, strict=True))
    assert all(map(torch.equal, others, moved))


def test_a_gradient_of_zero_moves_nothing_under_muon():
    conv = nn.Conv2d(3, 8, 3)
    before = conv.weight.detach().clone()
    optimizer = utils.get_optimizer(conv, Recipe("x", **MUON | {"weight_decay": 0.0}))
    conv(torch.zeros(1, 3, 4, 4)).sum().mul(0).backward()
    optimizer.step()
    assert torch.equal(conv.weight, before)


# --- Training and evaluation


ON = {"norm": "gn", "epochs": 2, "batch_size": 8, "dropout": 0.1, "rotation": 5.0, "resize": 0.1}
ON |= {"small_epochs": 1}  # so that each field below does something
STEP = {"scheduler": "step", "step_epochs": 1}
CHANGES = {"epochs": 3, "batch_size": 6, "optimizer": "muon", "lr": 0.06, "momentum": 0.8}
CHANGES |= {"nesterov": False, "weight_decay": 1e-3, "scheduler": "step", "warmup": 0.5}
CHANGES |= {"start_factor": 0.2, "groups": 2, "dropout": 0.2, "crop": 1, "rotation": 9.0}
CHANGES |= {"resize": 0.2, "flip": 0.25, "small_epochs": 2, "small_size": 20}
CHANGES |= {"affine_lr": 0.06, "step_epochs": 2, "step_factor": 0.2}
NEEDED = {"affine_lr": MUON, "step_epochs": STEP, "step_factor": STEP}


@functools.cache
def get_losses(**fields):
    """Return the training losses of a run with these fields, which is deterministic."""
    run = make_run(**ON | fields)
    parts = prepare(run, make_dataset(20))
    folder = "-".join(map(str, fields.values()))  # no checkpoint is another's
    return tuple(utils.fit(run, parts, folder)["train_loss"])


FIELDS = [f.name for f in dataclasses.fields(Recipe) if f.name not in ("name", "data", "loss")]


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_of_a_recipe_is_ignored(field):
    others = NEEDED.get(field, {})
    assert get_losses(**others) != get_losses(**others | {field: CHANGES[field]})


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
    training = prepare(run, dataset, test_dataset)
    model, history = training.model, utils.fit(run, training)

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


def test_the_first_epochs_see_smaller_images():
    image, trained = draw_images(1), []
    run = make_run(epochs=3, batch_size=8, small_epochs=2, small_size=20, crop=0, flip=0.0)
    training = prepare(run, TensorDataset(image.repeat(8, 1, 1, 1), torch.arange(8)))
    keep = {True: trained.append, False: lambda _: None}
    training.model.register_forward_pre_hook(lambda m, x: keep[m.training](x[0]))
    utils.fit(run, training)
    assert [images.shape for images in trained] == [(8, 3, n, n) for n in (20, 20, 32)]
    whole = utils.get_test_transforms()(image)
    small = F.interpolate(whole, (20, 20), mode="bilinear", antialias=True)
    torch.testing.assert_close(trained[0], small.expand(8, -1, -1, -1), atol=0.02, rtol=0)


def test_another_seed_gives_other_weights_order_and_augmentation():
    def start(seed):
        model, train_loader, *_ = prepare(make_run(seed=seed))
        images, labels = next(iter(train_loader))
        return model.layers.C1.conv.weight, labels, images[labels.argsort(stable=True)]

    for one, same, other in zip(start(1), start(1), start(2), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_a_history_has_one_number_an_epoch_in_each_column(capsys, monkeypatch):
    run = make_run(batch_size=8, epochs=3)
    training, now, minutes = prepare(run, make_dataset(8)), [0.0], iter([1, 3, 4])
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def pass_time(model, _):
        now[0] += 60 * next(minutes) if model.training else 30  # two evaluations an epoch

    training.model.register_forward_pre_hook(pass_time)
    history = utils.fit(run, training)
    assert {len(values) for values in history.values()} == {3}
    assert history["seconds"] == [120, 240, 300]
    header, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["epoch", *history]
    assert [" ".join(line[9:]) for line in lines] == ["4.0 min left", "3.0 min left", ""]
    expected = [3, *(values[2] for values in history.values())]
    assert [float(cell) for cell in lines[2]] == pytest.approx(expected, abs=0.051)


@pytest.mark.parametrize("norm", OUR_NORMS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_is_computed_in_its_precision_in_channels_last_and_kept_memory(
    norm, precision, monkeypatch
):
    run = make_run("reference", norm, precision=precision, batch_size=8, epochs=1)
    parts, computed, kept = prepare(run, make_dataset(8)), [], []
    model, train_loader, test_loader, *rest = parts
    monkeypatch.setattr(utils, "keep_memory", lambda: kept.append(1))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *args: computed.append(args[2]))
    for compute in (
        lambda: utils.fit(run, parts),
        lambda: utils.train(model, train_loader, *rest, precision),
        lambda: utils.predict(model, test_loader, precision),
    ):
        compute()
        assert {x.dtype for x in computed} == {getattr(torch, precision)}
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in computed)
        assert kept
        computed.clear(), kept.clear()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.allow_tf32
    prediction, _ = utils.predict(model, test_loader, precision)
    assert (prediction.dtype, prediction.requires_grad) == (torch.float32, False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# --- The plots


def test_the_curves_are_the_history_with_labels_and_units():
    history = {"lr": [0.1, 0.2], "clean_train_loss": [2.0, 1.0], "test_loss": [2.1, 1.1]}
    history |= {"clean_train_acc": [40.0, 60.0], "test_acc": [41.0, 61.0]}
    figure = utils.post_accuracyplots(history, "Curves", "gn")
    axes = {axis.get_label(): axis for axis in figure.axes}
    assert all(axis.get_xlabel() == "epoch" for axis in axes.values())
    for key, unit in (("loss", "likelihood"), ("acc", "%")):
        assert unit in axes[key].get_ylabel()
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axes[key].lines}
        parts = {"clean train": "clean_train", "test": "test"}
        expected = {k: [*map(list, enumerate(history[f"{v}_{key}"], 1))] for k, v in parts.items()}
        assert drawn == expected
    assert axes["acc"].lines[1].get_color() == utils.STYLES["gn"]["color"]
    assert list(axes["lr"].lines[0].get_ydata()) == history["lr"]
    assert utils.post_accuracyplots(history, "Curves", "a norm of one's own").axes


FIRST = {3: "label: d\npredicted: f (60.0%)", 17: "label: h\npredicted: a (90.0%)"}
SUREST = {17: FIRST[17], 29: "label: j\npredicted: b (75.0%)"}


@pytest.mark.parametrize(("most_confident", "expected"), [(False, FIRST), (True, SUREST)])
def test_misclassified_images_stand_under_both_classes(most_confident, expected):
    dataset = make_dataset(30)
    prediction = F.one_hot(dataset.tensors[1], 10).float().log()
    for index, wrong, probability in ((3, 5, 0.6), (17, 0, 0.9), (29, 1, 0.75)):
        prediction[index] = math.log((1 - probability) / 9)
        prediction[index, wrong] = math.log(probability)
    post = functools.partial(utils.post_misclassified, classes="abcdefghij", title="Wrong")
    figure = post(dataset, prediction, count=2, most_confident=most_confident)
    shown = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in shown] == list(expected.values())
    for axis, index in zip(shown, expected, strict=True):
        image = torch.tensor(axis.images[0].get_array())
        assert torch.equal(image, dataset.tensors[0][index].permute(1, 2, 0))
    figure = post(TensorDataset(*dataset[:3]), prediction[:3])
    assert figure.get_suptitle() == "Wrong (none)"


def test_the_confusion_matrix_counts_true_by_predicted_class():
    labels = torch.tensor([0] * 4 + [1] * 2 + [4] * 2)
    prediction = F.one_hot(torch.tensor([0, 0, 0, 7, 1, 2, 4, 4]), 10).float().log()
    matrix, bars = utils.post_confusion(prediction, labels, "abcdefgh", "Confusion").axes
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted class", "true class")
    cells = {text.get_position()[::-1]: text.get_text() for text in matrix.texts}  # row, column
    assert cells == {(0, 0): "3", (0, 7): "1", (1, 1): "1", (1, 2): "1", (4, 4): "2"}
    coloured = matrix.images[0].get_array().nonzero()
    assert [*zip(*coloured, strict=True)] == [(0, 7), (1, 2)], "the errors"
    shares = ["75.0", "50.0", "0.0", "0.0", "100.0", *["0.0"] * 5]
    assert [text.get_text() for text in bars.texts] == shares
    ticks = "".join(text.get_text() for text in matrix.get_yticklabels())
    assert ticks == "abcdefgh89", "two are no class"


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


def test_points_lead_from_numbers_to_normalized_numbers():
    x = torch.tensor([[[0.0, 8.0], [2.0, 18.0]], [[6.0, 14.0], [12.0, 20.0]]])
    changed = x.where(x != 8, 80.0)
    axes = utils.post_points(x, changed, (0, 2)).axes
    numbers = [line.get_ydata()[0] for line in axes[1].lines]
    assert numbers == [6, 14, 12, 20]
    for row, norms in enumerate((x, changed)):
        expected = F.batch_norm(norms, None, None, training=True, eps=1e-12)
        for image in (0, 1):
            drawn = axes[4 + 2 * row + image].lines
            dots = [line for line in drawn if line.get_fillstyle() != "none"]  # not the rings
            ends = [line.get_ydata()[0] for line in dots]
            assert ends == pytest.approx(expected[image].flatten().tolist(), abs=1e-5)
    assert [dot.get_alpha() < 1 for dot in dots] == [False, False, True, True], "what stays is pale"


def test_histograms_are_of_one_channel_and_name_its_zeros():
    before = torch.tensor([[[[0.0, 0.0], [0.05, 1.05]], [[9.0, 9.0], [9.0, 9.0]]]])
    signals = {"bn": {"C1": (before, before - 1)}}
    (axis,) = utils.post_histograms(signals, ["C1"]).axes
    assert axis.get_title() == "Batch: C1, 50% zeros before"
    bars = {round(bar.get_x(), 1): bar.get_height() for bar in axis.patches[:-1]}
    assert {x: height for x, height in bars.items() if height} == {0.0: 75, 1.0: 25}


def test_lines_have_the_style_and_the_name_of_their_norm():
    lines = {"gn": {"C1": 1.0, "C2": 0.1}, "mine": {"C1": 2.0}}
    first, second = utils.post_lines(lines, "Title", "layer", "deviation").axes[0].lines
    assert (first.get_label(), first.get_color()) == ("Group", utils.STYLES["gn"]["color"])
    assert list(first.get_ydata()) == [1.0, 0.1]
    assert second.get_label() == "mine"
    lines = {"mine": {1: 0.0, 2: 4.0, 3: 6.0}}
    means, values = utils.post_lines(lines, "", "", "", window=2).axes[0].lines
    assert means.get_xydata().tolist() == [[2, 2], [3, 5]]
    assert values.get_xydata().tolist() == [[1, 0], [2, 4], [3, 6]]


def test_a_signal_is_drawn_before_and_after_its_normalization():
    before = torch.tensor([1.0, 3.0])
    axes = utils.post_signal({"bn": {"C1": (before, before / 4)}}).axes
    drawn = {axis.get_title(): axis.lines[0].get_ydata()[0] for axis in axes}
    scale = before.std().item()
    assert drawn == {"before the normalization": scale, "after the normalization": scale / 4}


def test_a_run_is_compared_with_the_five_that_are_committed():
    stats = pytest.importorskip("scipy.stats", reason="needs experiments/requirements.txt")
    run = make_run("muon", "gn")
    committed = utils.load_committed(run)
    assert {norm: len(runs) for norm, runs in committed.items()} == {"bn": 5, "gn": 5, "ln": 5}
    ends = [history["test_acc"][-1] for history in committed["gn"]]
    half = stats.t.ppf(0.975, 4) * np.std(ends, ddof=1) * 1.2**0.5  # of one further run
    for share, said in ((0.99, "inside"), (-0.99, "inside"), (1.01, "outside"), (-1.01, "outside")):
        accuracy = np.mean(ends) + share * half
        assert f"is {said} " in utils.compare_with_committed(run, accuracy, committed)
    figure = utils.post_accuracyplots(committed["gn"][0], "Curves", "gn", committed)
    axis = next(a for a in figure.axes if a.get_ylabel() == "accuracy (%)")
    lasts = [line.get_ydata()[-1].item() for line in axis.lines]
    for norm in ("bn", "ln"):
        mean = np.mean([history["test_acc"][-1] for history in committed[norm]])
        assert any(last == pytest.approx(mean) for last in lasts)
    (band,) = axis.collections
    assert {min(ends), max(ends)} <= {*band.get_paths()[0].vertices[:, 1].tolist()}
    for other in (make_run("smoke"), make_run("muon", lr=0.02)):
        assert utils.load_committed(other) == {}
        assert "no five committed runs" in utils.compare_with_committed(other, 50, {})

import dataclasses
import platform

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

import utils
from conftest import CPU, draw_images, make_dataset, make_run, prepare
from models import Session8Net, get_norm
from utils import RECIPES, get_recipe

norms = pytest.mark.parametrize("norm", ["bn", "gn", "ln"])


# --- The recipe


def test_the_reference_recipe_is_the_published_one_to_the_letter():
    published = {
        "data": "CIFAR-10",
        "epochs": 20,
        "batch_size": 128,
        "optimizer": "sgd",
        "lr": 0.04,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "scheduler": "step",
        "step_epochs": 6,
        "step_factor": 0.1,
        "loss": "nll",
        "dropout": 0.05,
        "crop": 0,
        "rotation": 0.0,
        "resize": 0.0,
        "flip": 0.1,
    }
    recipe = dataclasses.asdict(get_recipe("reference"))
    assert {name: recipe[name] for name in published} == published


def test_recipes_are_known_by_their_names_and_cannot_be_changed():
    assert list(RECIPES) == ["onecycle", "reference", "smoke"]
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_recipe("onecycle").lr = 1.0


def test_unknown_names_are_refused_with_the_known_ones():
    def replace(**fields):
        return dataclasses.replace(get_recipe("onecycle"), **fields)

    model = torch.nn.Linear(2, 2)
    optimizer = utils.get_optimizer(model, replace())
    with pytest.raises(ValueError, match="'onecycle', 'reference', 'smoke'"):
        get_recipe("one-cycle")
    with pytest.raises(ValueError, match="optimizer is 'adam'.*'sgd'"):
        utils.get_optimizer(model, replace(optimizer="adam"))
    with pytest.raises(ValueError, match="scheduler is 'cosine'.*'onecycle', 'step'"):
        utils.get_scheduler(optimizer, replace(scheduler="cosine"), 10)
    with pytest.raises(ValueError, match="loss is 'mse'.*'nll'"):
        utils.get_loss(replace(loss="mse"))
    with pytest.raises(ValueError, match="data is 'MNIST'.*'CIFAR-10', 'stand-in gratings"):
        utils.get_data(replace(data="MNIST"), "nowhere", CPU)


@pytest.mark.parametrize(("text", "seed"), [("0", 0), ("1", 1), (" 42 ", 42)])
def test_a_seed_is_a_whole_number(text, seed):
    assert utils.get_seed(text) == seed


@pytest.mark.parametrize("text", ["", "one", "1.5", "-1", "1e3", str(2**63)])
def test_another_seed_is_refused(text):
    with pytest.raises(ValueError, match="SEED is .* whole number"):
        utils.get_seed(text)


# --- The device


def test_bfloat16_is_used_only_where_it_is_native(monkeypatch):
    def precision(capabilities):
        monkeypatch.setattr(utils, "_cpu_capabilities", lambda: capabilities)
        return utils.get_precision(CPU)

    assert precision({"avx512_bf16": True}) == torch.bfloat16
    assert precision({"avx512_bf16": False, "amx_bf16": True}) == torch.bfloat16
    assert precision({"avx512_f": True, "avx512_bf16": False}) == torch.float32
    assert precision({}) == torch.float32
    for capability, dtype in (((7, 5), torch.float32), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert utils.get_precision(torch.device("cuda")) == dtype


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


@pytest.mark.parametrize("size", [(32, 32), (5, 9)])
def test_random_crop_shifts_each_image_and_reflects_its_borders(size):
    images = draw_images(200, *size)
    torch.manual_seed(3)
    moved = utils.RandomCrop(2)(images)
    padded = F.pad(images.float(), [2] * 4, mode="reflect").to(torch.uint8)
    shifts = []
    for image, result in zip(padded, moved, strict=True):  # the slow way: try all 25 windows
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(image[:, y : y + size[0], x : x + size[1]], result)
        ]
        assert len(found) == 1, "the result is not the input's pixels moved by up to 2"
        shifts += found
    assert set(shifts) == {(y, x) for y in range(5) for x in range(5)}


def test_random_flip_mirrors_some_images_and_leaves_the_others():
    images = draw_images(400)
    flipped = utils.RandomFlip(0.25)(images)
    mirrored = [torch.equal(a.flip(-1), b) for a, b in zip(images, flipped, strict=True)]
    untouched = [torch.equal(a, b) for a, b in zip(images, flipped, strict=True)]
    assert all(a != b for a, b in zip(mirrored, untouched, strict=True))
    assert 60 <= sum(mirrored) <= 140  # 100 expected, standard deviation 8.7
    assert torch.equal(utils.RandomFlip(1.0)(images), images.flip(-1))


def test_random_affine_turns_by_the_angle_and_resizes_by_the_scale(monkeypatch):
    images = draw_images(4)
    monkeypatch.setattr(torch, "rand", torch.ones)  # the largest draw for every image
    turned = utils.RandomAffine(degrees=90, resize=0.0)(images)
    assert any(torch.equal(turned, images.rot90(k, (2, 3))) for k in (1, -1))
    enlarged = utils.RandomAffine(degrees=0, resize=1.0)(images)  # twice the size
    expected = F.interpolate(images.float(), scale_factor=2, mode="bilinear")[..., 16:48, 16:48]
    assert torch.equal(enlarged, expected.round().to(torch.uint8))


def test_random_affine_draws_for_each_image_within_its_bounds():
    x = torch.arange(32.0) - 15.5
    ramp = (128 + 4 * x).to(torch.uint8).expand(100, 3, 32, 32)
    turned = utils.RandomAffine(degrees=10, resize=0.0)(ramp)[:, 0, 12:20, 12:20].float()
    down, right = (turned.diff(dim=d).mean((1, 2)) for d in (1, 2))
    angles = torch.atan2(down, right).rad2deg()
    assert angles.abs().max() < 12
    assert angles.min() < -5
    assert angles.max() > 5
    resized = utils.RandomAffine(degrees=0, resize=0.1)(ramp)[:, 0, 12:20, 12:20].float()
    scales = 4 / resized.diff(dim=2).mean((1, 2))
    assert 0.85 < scales.min() < 0.97
    assert 1.03 < scales.max() < 1.15
    assert torch.equal(utils.RandomAffine(0, 0.0)(ramp), ramp)


def test_transforms_are_there_only_where_the_recipe_asks_for_them():
    def steps(**fields):
        recipe = dataclasses.replace(get_recipe("onecycle"), **fields)
        return [type(step).__name__ for step in utils.get_train_transforms(recipe).transforms]

    plain = [type(step).__name__ for step in utils.get_test_transforms().transforms]
    assert plain == ["CheckBatch", "ToDtype", "Normalize"]
    assert steps(crop=0, flip=0.0) == plain
    assert steps() == ["CheckBatch", "RandomCrop", "RandomFlip", "ToDtype", "Normalize"]
    for field in ("rotation", "resize"):
        assert "RandomAffine" in steps(**{field: 0.1})


def test_normalization_is_the_formula():
    images = draw_images()
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1)
    normalized = utils.get_test_transforms()(images)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized, (images / 255 - mean) / std)
    scaled = v2.functional.to_dtype(images, torch.float32, scale=True)
    assert torch.equal(normalized, v2.functional.normalize(scaled, utils.MEAN, utils.STD))
    assert torch.equal(utils.denormalize(normalized), images)


@pytest.mark.parametrize(
    "batch",
    [
        torch.rand(4, 3, 32, 32),
        torch.zeros(4, 1, 32, 32, dtype=torch.uint8),
        torch.zeros(4, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(4, 3, 32, 32, dtype=torch.int64),
    ],
)
def test_a_batch_of_the_wrong_shape_or_type_is_refused(batch):
    for transforms in (
        utils.get_test_transforms(),
        utils.get_train_transforms(get_recipe("onecycle")),
    ):
        with pytest.raises(ValueError, match=r"uint8 images of shape \(N, 3, H, W\)"):
            transforms(batch)


def test_a_loader_gives_every_image_once_an_epoch_with_its_label():
    dataset = make_dataset(70)
    dataset.tensors[0][:, 0, 0, 0] = torch.arange(70)  # by which to know it again
    loader = utils.get_loader(dataset, utils.get_test_transforms(), 16, shuffle=True)
    torch.manual_seed(0)
    first, second = list(loader), list(loader)
    assert [len(labels) for _, labels in first] == [16, 16, 16, 16, 6]
    assert len(loader) == 5
    for epoch in (first, second):
        images = torch.cat([utils.denormalize(images) for images, _ in epoch])
        order = images[:, 0, 0, 0].long()
        assert sorted(order.tolist()) == list(range(70))
        assert torch.equal(images, dataset.tensors[0][order])
        assert torch.equal(torch.cat([labels for _, labels in epoch]), dataset.tensors[1][order])
    assert not torch.equal(first[0][1], second[0][1])


def test_a_loader_without_shuffle_keeps_order_and_images():
    dataset = make_dataset(70)
    loader = utils.get_loader(dataset, utils.get_test_transforms(), 32)
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(utils.denormalize(images), dataset.tensors[0])


# --- Training and evaluation


def get_rates(recipe, steps_per_epoch):
    """Return the learning rate of every step of a run."""
    optimizer = utils.get_optimizer(torch.nn.Linear(1, 1), recipe)
    scheduler = utils.get_scheduler(optimizer, recipe, steps_per_epoch)
    rates = []
    for _ in range(recipe.epochs * steps_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_onecycle_rises_to_its_peak_and_falls_to_almost_nothing():
    recipe = get_recipe("onecycle")
    rates, peak = get_rates(recipe, 391), recipe.lr
    assert len(rates) == 20 * 391
    assert rates[0] == pytest.approx(peak / 10)
    assert max(rates) == pytest.approx(peak, rel=1e-3)
    assert rates.index(max(rates)) == pytest.approx(0.2 * 20 * 391, abs=2)
    assert 0 < rates[-1] < 1e-4
    assert rates[782] == pytest.approx(peak * (0.1 + 0.9 * 782 / 1563), rel=1e-3)  # half way up


def test_the_reference_schedule_drops_by_ten_every_six_epochs():
    rates = get_rates(get_recipe("reference"), 3)
    epochs = [0.04] * 6 + [0.004] * 6 + [4e-4] * 6 + [4e-5] * 2
    assert rates == pytest.approx([rate for rate in epochs for _ in range(3)])


def test_the_optimizer_is_the_recipe_s_sgd():
    model = Session8Net("bn")
    group = utils.get_optimizer(model, get_recipe("onecycle")).param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 5e-4)
    assert len(group["params"]) == len(list(model.parameters()))
    group = utils.get_optimizer(model, get_recipe("reference")).param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 0.0)


def test_the_number_correct_is_counted_on_the_device():
    prediction = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]).log()
    correct = utils.GetCorrectPredCount(prediction, torch.tensor([1, 1, 1]))
    assert isinstance(correct, torch.Tensor)  # not a number: nobody waited for it
    assert correct.item() == 2


@norms
def test_the_loss_is_the_mean_over_images_also_with_a_short_last_batch(norm, monkeypatch):
    monkeypatch.setattr(utils, "get_precision", lambda device: torch.float32)
    dataset = make_dataset(70)  # batches of 32, 32 and 6
    run = make_run(norm=norm, batch_size=32, lr=0.0, crop=0, flip=0.0)
    model, train_loader, test_loader, optimizer, scheduler, criterion = prepare(run, dataset)
    log_probs = model.eval()(utils.get_test_transforms()(dataset.tensors[0]))
    accuracy = (log_probs.argmax(1) == dataset.tensors[1]).float().mean() * 100
    loss = F.nll_loss(log_probs, dataset.tensors[1])
    expected = pytest.approx((loss.item(), accuracy.item()), rel=1e-5)
    assert utils.test(model, test_loader, criterion) == expected
    if norm != "bn":  # which sees other averages in training
        assert utils.train(model, train_loader, optimizer, scheduler, criterion) == expected


def test_training_updates_the_weights_and_evaluation_changes_nothing():
    model, train_loader, test_loader, *rest = prepare(make_run("smoke"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    utils.train(model, train_loader, *rest)
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert model.training
    assert not any(torch.equal(before[name], trained[name]) for name in before)
    utils.test(model, test_loader, rest[-1])
    assert not model.training
    assert all(torch.equal(trained[name], tensor) for name, tensor in model.state_dict().items())


def test_a_step_sends_nothing_to_the_device_and_reads_nothing_back(monkeypatch):
    """On CUDA each of these would wait for the device: only the end of an epoch may do so."""
    waits = []

    def watch(owner, name):
        original = getattr(owner, name)

        def counting(*args, **options):
            waits.append(name)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, counting)

    for name in ("item", "cpu", "tolist", "numpy", "__float__", "__int__", "__bool__"):
        watch(torch.Tensor, name)
    for name in ("tensor", "as_tensor", "from_numpy"):
        watch(torch, name)

    def count(images):
        run = make_run(batch_size=16, rotation=5, resize=0.1)
        model, train_loader, _, *rest = prepare(run, make_dataset(images))
        waits.clear()
        utils.train(model, train_loader, *rest)
        return len(waits)

    assert count(32) == count(96) > 0  # 2 steps and 6


@norms
def test_the_smoke_recipe_learns_its_data(norm):
    run = make_run("smoke", norm)
    data = utils.get_data(run.recipe, "nowhere", CPU)
    history = utils.fit(run, *prepare(run, data.train, data.test))
    assert history["test_acc"][-1] > 60  # chance is 10


def fit(seed=1, **changes):
    """Return the history, without its times, and the weights of a small run."""
    run = make_run(seed=seed, batch_size=32, epochs=2, dropout=0.1, **changes)
    prepared = prepare(run, make_dataset(96))
    history = utils.fit(run, *prepared, folder=f"checkpoints-{torch.rand(1).item()}")
    del history["seconds"]
    return history, prepared[0].state_dict()


def is_same(weights, others):
    return all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_same_seed_gives_the_same_digits_whatever_was_drawn_before():
    history, weights = fit()
    torch.rand(7)
    images = make_dataset().tensors[0]
    utils.get_train_transforms(get_recipe("onecycle"))(images)  # as the plots' cells do
    again, same = fit()
    assert history == again
    assert is_same(weights, same)


def test_another_seed_gives_other_weights_another_order_and_another_augmentation():
    def start(seed):
        model, train_loader, *_ = prepare(make_run(seed=seed, crop=2, flip=0.5))
        utils.set_seed(seed)
        images, labels = next(iter(train_loader))
        return model.layers.C1.conv.weight, labels, images[labels.argsort(stable=True)]

    for one, same, other in zip(start(1), start(1), start(2), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_a_history_has_one_number_an_epoch_in_each_column(capsys):
    run = make_run(batch_size=32, epochs=3)
    history = utils.fit(run, *prepare(run))
    columns = ["lr", "train_loss", "train_acc", "test_loss", "test_acc", "seconds"]
    assert list(history) == columns
    assert all(len(values) == 3 for values in history.values())
    assert history["lr"][0] == pytest.approx(0.1 * run.recipe.lr)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["epoch", *columns]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]


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
    history = {
        "lr": [0.1, 0.2],
        "train_loss": [2.0, 1.0],
        "test_loss": [2.1, 1.1],
        "train_acc": [40.0, 60.0],
        "test_acc": [41.0, 61.0],
    }
    figure = utils.post_accuracyplots(history, "Curves", "gn")
    assert figure.get_suptitle() == "Curves"
    axes = {axis.get_label(): axis for axis in figure.axes}
    assert all(axis.get_xlabel() == "epoch" for axis in axes.values())
    for key, unit in (("loss", "likelihood"), ("acc", "%")):
        assert unit in axes[key].get_ylabel()
        labels = [text.get_text() for text in axes[key].get_legend().get_texts()]
        assert labels == ["train", "test"]
        for line in axes[key].lines:
            assert list(line.get_xdata()) == [1, 2]
            assert list(line.get_ydata()) == history[f"{line.get_label()}_{key}"]
        assert axes[key].lines[1].get_color() == utils.STYLES["gn"]["color"]
    assert utils.post_accuracyplots(history, "Curves", "a norm of one's own").axes
    assert axes["lr"].get_ylabel() == "learning rate"
    assert list(axes["lr"].lines[0].get_ydata()) == history["lr"]


def test_the_norms_are_told_apart_in_grey_too():
    for key in ("color", "linestyle", "marker"):
        assert len({style[key] for style in utils.STYLES.values()}) == 3
    greys = sorted(
        sum(w * int(style["color"][k : k + 2], 16) for w, k in ((0.3, 1), (0.59, 3), (0.11, 5)))
        for style in utils.STYLES.values()
    )
    assert all(b - a > 15 for a, b in zip(greys, greys[1:], strict=False))  # of 255


def test_misclassified_images_are_the_first_wrong_ones_with_both_classes():
    dataset = make_dataset(30)
    prediction = F.one_hot(dataset.tensors[1], 10).float().mul(0.9).add(0.01).log()
    for index, wrong in ((3, 5), (17, 0), (29, 1)):
        prediction[index] = torch.full((10,), 0.02).log()
        prediction[index, wrong] = torch.tensor(0.82).log()
    figure = utils.post_misclassified(dataset, prediction, "abcdefghij", "Wrong", count=2)
    assert get_texts(figure) == (
        "Wrong",
        ["true: d\npredicted: f (82.0%)", "true: h\npredicted: a (82.0%)"],
    )
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert torch.equal(torch.from_numpy(shown[0].data), dataset.tensors[0][3].permute(1, 2, 0))


def test_the_most_confident_errors_come_first_when_asked_for():
    dataset = make_dataset(30)
    prediction = F.one_hot(dataset.tensors[1], 10).float().log()
    for index, probability in ((3, 0.6), (17, 0.9), (29, 0.75)):
        prediction[index] = torch.tensor([probability] + [(1 - probability) / 9] * 9).log()
    figure = utils.post_misclassified(
        dataset, prediction, "abcdefghij", "Wrong", count=2, most_confident=True
    )
    captions = ["true: h\npredicted: a (90.0%)", "true: j\npredicted: a (75.0%)"]
    assert get_texts(figure) == ("Wrong", captions)


def test_no_misclassified_image_is_said_in_the_figure():
    dataset = make_dataset(10)
    prediction = F.one_hot(dataset.tensors[1], 10).float().log()
    figure = utils.post_misclassified(dataset, prediction, "abcdefghij", "Wrong")
    assert get_texts(figure) == ("Wrong (none)", [])


def test_the_confusion_matrix_counts_true_by_predicted_class():
    labels = torch.tensor([0] * 4 + [1] * 2 + [9] * 2)
    predicted = torch.tensor([0, 0, 0, 7, 1, 2, 9, 9])
    prediction = F.one_hot(predicted, 10).float().log()
    figure = utils.post_confusion(prediction, labels, "abcdefghij", "Confusion")
    matrix, bars = figure.axes
    assert figure.get_suptitle() == "Confusion"
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted class", "true class")
    assert "%" in bars.get_xlabel()
    cells = {text.get_position()[::-1]: text.get_text() for text in matrix.texts}  # row, column
    assert cells == {(0, 0): "3", (0, 7): "1", (1, 1): "1", (1, 2): "1", (9, 9): "2"}
    assert [text.get_text() for text in bars.texts] == ["75.0", "50.0", *["0.0"] * 7, "100.0"]
    names = [
        [text.get_text() for text in labels()]
        for labels in (matrix.get_xticklabels, matrix.get_yticklabels)
    ]
    assert names == [list("abcdefghij")] * 2


@norms
def test_the_maps_show_what_a_normalization_makes_even(norm):
    torch.manual_seed(0)
    channel, image = 3 * torch.rand(16, 1, 1), 3 * torch.rand(8, 1, 1, 1)
    before = torch.rand(8, 16, 5, 5) + channel + image
    after = get_norm(norm, 16)(before).detach()
    figure = utils.post_normalization({"before": before, "after": after}, "Maps")
    axes = figure.axes[:4]  # then the colour bars
    assert [axis.get_title() for axis in axes[:2]] == ["before", "after"]
    maps = [torch.from_numpy(axis.images[0].get_array().data) for axis in axes]
    torch.testing.assert_close(maps[0], before.mean((2, 3)))
    torch.testing.assert_close(maps[3], after.std((2, 3)))
    assert maps[0].shape == (8, 16)
    columns, blocks, rows = (
        float(line.split()[-1]) for line in axes[3].get_xlabel().split("\n")[-3:]
    )
    assert (columns == 0) == (norm == "bn")
    assert (blocks == 0) == (norm == "gn")
    assert (rows == 0) == (norm != "bn")
    assert [axis.get_ylabel() for axis in figure.axes[4:]] == ["mean", "standard deviation"]


# --- On the real data


@pytest.mark.cifar10
@norms
def test_one_epoch_on_the_real_data_reaches_45_percent(norm, cifar10_root):
    run = make_run(norm=norm, epochs=1)
    data = utils.get_data(run.recipe, cifar10_root, CPU)
    history = utils.fit(run, *prepare(run, data.train, data.test))
    assert history["test_acc"][-1] >= 45

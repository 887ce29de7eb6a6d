"""What the notebooks' cells call, in the order of a run: from the recipe to the plots."""

import dataclasses
import math
import platform

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import cifar10
import utils
from common import CPU, MUON, OUR_NORMS, draw_images, make_dataset, make_run, prepare
from models import Session8Net, get_norm
from utils import RECIPES, Recipe, get_recipe

norms = pytest.mark.parametrize("norm", OUR_NORMS)


# --- Bad input, wherever it comes in


def load(images=None, labels=None, batch_size=4):
    images = draw_images(4) if images is None else images
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    dataset = TensorDataset(images, labels)
    return list(utils.get_loader(dataset, utils.get_test_transforms(), batch_size))


def display(images):
    return utils.post_display(images, ["caption"] * len(images), "title")


UINT8 = r"uint8 images of shape \(N, 3, H, W\)"
BAD = {
    # images, in each place that takes them
    "float images to load": (lambda: load(torch.rand(4, 3, 32, 32)), UINT8),
    "float images to show": (lambda: display(torch.rand(4, 3, 32, 32)), UINT8),
    "one image to show": (lambda: display(draw_images()[0]), UINT8),
    # labels and loaders
    "label 10": (lambda: load(labels=torch.tensor([0, 1, 2, 10])), "from 0 to 10"),
    "label -1": (lambda: load(labels=torch.tensor([0, 1, 2, -1])), "from -1 to 2"),
    "float labels": (lambda: load(labels=torch.zeros(4)), "but are torch.float32"),
    "one-hot labels": (
        lambda: load(labels=torch.zeros(4, 10, dtype=torch.int64)),
        r"of shape \(4, 10\)",
    ),
    "no images": (lambda: load(draw_images(0)), "data set is empty"),
    "a batch of 0": (lambda: load(batch_size=0), "batch_size is 0"),
    "a batch of -1": (lambda: load(batch_size=-1), "batch_size is -1"),
    "a batch of 2.5": (lambda: load(batch_size=2.5), "batch_size is 2.5"),
    "a batch of True": (lambda: load(batch_size=True), "batch_size is True"),
    # augmentation
    "a crop of 32": (lambda: utils.RandomCrop(32), "padding is 32, but must be from 0 to 31"),
    "a flip of nan": (lambda: utils.RandomFlip(math.nan), "p is nan, but must be from 0 to 1"),
    "a turn of nan": (lambda: utils.RandomAffine(math.nan, 0), "degrees is nan"),
    "a resize by all": (lambda: utils.RandomAffine(0, 1), "resize is 1, but .* to 0.99"),
    # names, each with the known ones
    "recipe": (lambda: get_recipe("One"), "'muon', 'quick', 'onecycle', 'reference', .*'smoke'"),
    "a recipe of 5": (lambda: get_recipe(5), "RECIPE is '5', but must be one of 'muon'"),
    "a precision of 32": (lambda: utils.get_precision(32, CPU), "PRECISION is '32', but must be"),
    "three groups": (lambda: Recipe("x", groups=3), "groups is 3, but must be one of 1, 2, 4, 8"),
    "a long name": (lambda: Recipe("x" * 101), "must be fit for the name of a file"),
    "a batch of 10^19": (lambda: Recipe("x", batch_size=10**19), "batch_size is 1000"),
    "a start without warm-up": (
        lambda: Recipe("x", warmup=0.0, start_factor=0.01),
        "start_factor is 0.01, but has no effect with warmup 0",
    ),
    "optimizer": (lambda: Recipe("x", optimizer="adam"), "optimizer is 'adam'.*'sgd', 'muon'"),
    "scheduler": (
        lambda: Recipe("x", scheduler="cosine"),
        "scheduler is 'cosine'.*'onecycle', 'step'",
    ),
    "loss": (lambda: Recipe("x", loss="mse"), "loss is 'mse'.*'nll'"),
    "data": (lambda: Recipe("x", data="MNIST"), "data is 'MNIST'.*'CIFAR-10', 'stand-in gratings"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gives_an_error_that_says_what_is_wrong(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_fewer_labels_than_images_are_refused():
    with pytest.raises(AssertionError, match="Size mismatch"):
        load(labels=torch.zeros(3, dtype=torch.int64))


def test_labels_are_checked_before_anything_is_trained():
    dataset = make_dataset(8)
    dataset.tensors[1][3] = 11
    with pytest.raises(ValueError, match="from 0 to 11"):
        prepare(make_run(), dataset)


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
    assert {"onecycle", "reference", "smoke"} <= set(RECIPES)
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_recipe("onecycle").lr = 1.0


BAD_FIELDS = [
    # the wrong kind
    *({"epochs": value} for value in (1.5, 3.0, True, "3", None, math.inf)),
    *({"batch_size": value} for value in (2.5, True, "128")),
    *({"crop": value} for value in (1.5, True)),
    *({"step_epochs": value} for value in (1.5, False)),
    *({"lr": value} for value in ("0.1", True, None, 1j)),
    *({"nesterov": value} for value in (1, 0, "yes", None)),
    *({"flip": value} for value in (True, "0.5")),
    *({name: 3} for name in ("data", "optimizer", "scheduler", "loss")),
    # out of range
    *({"epochs": value} for value in (0, -1)),
    *({"batch_size": value} for value in (0, -1)),
    *({"step_epochs": value} for value in (0, -1)),
    *({"lr": value} for value in (-0.1, math.inf, math.nan, 10**400, 1e39)),
    *({"affine_lr": value} for value in (-1, math.nan)),
    *({"weight_decay": value} for value in (-1, math.inf, math.nan)),
    *({"momentum": value} for value in (-0.1, 1, 1.5, math.nan)),
    *({"warmup": value} for value in (-0.1, 2, math.nan)),
    *({"start_factor": value} for value in (0, 2)),
    *({"step_factor": value} for value in (0, 2)),
    *({"dropout": value} for value in (-0.1, 1, 1.1)),
    *({"flip": value} for value in (-0.5, 1.1)),
    *({"crop": value} for value in (-1, 32)),
    *({"rotation": value} for value in (-1, 200)),
    *({"resize": value} for value in (-0.1, 1.0)),
    # no name of a file
    *({"name": value} for value in ("", "a/b", "a b", "../x", "x\n", "-x", ".x", "ä", "a\\b", 3)),
    # together
    {"nesterov": True, "momentum": 0},
    {"nesterov": True, "momentum": 0.0, "optimizer": "muon"},
    # without effect
    {"affine_lr": 0.2},
    {"step_epochs": 3},
    {"step_factor": 0.5, "scheduler": "onecycle"},
    {"warmup": 0.1, "scheduler": "step"},
    {"start_factor": 0.2, "scheduler": "step"},
]


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=repr)
def test_a_value_that_cannot_be_meant_is_refused_and_its_field_is_named(fields):
    name, value = next(iter(fields.items()))
    with pytest.raises(ValueError, match=f"^{name} is ") as error:
        Recipe(**{"name": "x"} | fields)
    assert repr(value) in str(error.value)


def test_values_at_the_edge_are_taken():
    Recipe("a.b_c+d-1", epochs=1, batch_size=1, lr=0, momentum=0, nesterov=False, weight_decay=0)
    Recipe("x", warmup=0, dropout=0.99, crop=31, rotation=180, flip=1)
    Recipe("x", warmup=1, scheduler="onecycle", lr=3e38)
    Recipe("x", scheduler="step", step_epochs=1, step_factor=1)
    Recipe("x", optimizer="muon", momentum=0, nesterov=False, affine_lr=0)


# --- The device


def test_a_precision_asked_for_is_the_one_that_is_had(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    for device in (CPU, torch.device("cuda")):
        for name in ("float32", "bfloat16"):
            assert utils.get_precision(name, device) == name
    assert utils.get_precision(" float32\n", CPU) == "float32"


@pytest.mark.parametrize("name", ["float16", "Native", "fp32", "torch.bfloat16"])
def test_another_precision_is_refused_with_the_known_ones(name):
    known = f"PRECISION is '{name}', but must be one of 'native', 'float32', 'bfloat16'"
    with pytest.raises(ValueError, match=known):
        utils.get_precision(name, CPU)


@pytest.mark.parametrize("native", ["native", " native ", "", None])
def test_native_is_bfloat16_only_where_the_hardware_computes_in_it(native, monkeypatch):
    def choose(**capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        return utils.get_precision(native, CPU)

    assert choose(avx512_bf16=True) == "bfloat16"
    assert choose(avx512_bf16=False, amx_bf16=True) == "bfloat16"
    assert choose(avx512_f=True, avx512_bf16=False) == "float32"
    assert choose() == "float32"
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older versions
    assert utils.get_precision(native, CPU) == "float32"
    for capability, precision in (((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert utils.get_precision(native, torch.device("cuda")) == precision


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
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, 1.5))
    enlarged = utils.RandomAffine(degrees=0, resize=0.5)(images)  # twice the size
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
    assert plain == ["CheckBatch", "Normalize"]
    assert steps(crop=0, flip=0.0) == plain
    assert steps() == ["CheckBatch", "RandomCrop", "RandomFlip", "Normalize"]
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
    assert torch.equal(normalized, v2.functional.normalize(scaled, cifar10.MEAN, cifar10.STD))
    assert torch.equal(utils.denormalize(normalized), images)


@pytest.mark.parametrize(
    "batch",
    [
        torch.rand(4, 3, 32, 32),
        torch.full((4, 3, 32, 32), math.nan),
        draw_images().long(),
        draw_images()[:, :1],  # grey
        draw_images()[:, [0, 1, 2, 0]],  # RGBA
        draw_images().permute(0, 2, 3, 1),
        draw_images()[0],
        draw_images()[None],
        draw_images(0),
    ],
    ids=lambda batch: f"{batch.dtype} {tuple(batch.shape)}",
)
def test_a_batch_of_the_wrong_shape_or_type_is_refused(batch):
    for transforms in (
        utils.get_test_transforms(),
        utils.get_train_transforms(Recipe("x", rotation=5, resize=0.1)),
    ):
        with pytest.raises(ValueError, match=UINT8 if len(batch) else "with N > 0"):
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


def test_a_batch_larger_than_the_data_set_is_the_data_set():
    (images, labels), *others = load(draw_images(3), batch_size=1000)
    assert images.shape == (3, 3, 32, 32)
    assert labels.shape == (3,)
    assert others == []


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_loader_draws_the_numbers_that_pytorch_s_draws(shuffle):
    dataset = make_dataset(70)

    class Indices:
        def __iter__(self):
            order = torch.randperm(70) if shuffle else torch.arange(70)
            yield from order.split(16)

    theirs = DataLoader(dataset, batch_size=None, sampler=Indices())
    ours = utils.get_loader(dataset, lambda images: images, 16, shuffle)
    drawn = []
    for loader in (theirs, ours):
        torch.manual_seed(3)
        drawn.append(list(loader) + list(loader))
        drawn[-1].append([torch.rand(5)])  # what is drawn after
    for one, other in zip(*drawn, strict=True):
        assert all(map(torch.equal, one, other))


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


def test_the_recipe_s_groups_are_those_of_the_network():
    for groups in (2, 4):
        model, *_ = prepare(make_run(norm="gn", groups=groups))
        assert {n.num_groups for n in model.modules() if isinstance(n, nn.GroupNorm)} == {groups}


def test_a_run_of_one_step_takes_it_at_a_rate_that_trains():
    assert get_rates(Recipe("x", epochs=1), 1) == pytest.approx([0.025], rel=1e-3)


def test_without_warm_up_the_rate_falls_from_its_peak():
    rates = get_rates(Recipe("x", epochs=4, warmup=0.0), 5)
    assert max(rates) == rates[0] == pytest.approx(0.05, rel=0.06)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("warmup", [0.5, 0.9, 1.0])
def test_with_a_long_warm_up_the_rate_rises_for_as_long(warmup):
    rates = get_rates(Recipe("x", epochs=4, warmup=warmup), 5)
    rise = min(round(warmup * 20), 19)  # there is always one step to fall in
    assert rates[:rise] == sorted(rates[:rise])
    assert rates[0] == pytest.approx(0.005)
    assert rates[rise - 1] == max(rates) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("epochs", "steps", "warmup"),
    [(5, 1, 0.2), (1, 4, 0.25), (2, 1, 0.5), (3, 1, 0.2), (1, 1, 0.2), (1, 2, 1.0), (2, 1, 0.7)],
)
def test_a_warm_up_of_a_step_or_less_is_none(epochs, steps, warmup):
    rates = get_rates(Recipe("x", epochs=epochs, warmup=warmup), steps)
    assert len(rates) == epochs * steps
    assert all(0 < rate <= 0.05 for rate in rates)
    assert rates == sorted(rates, reverse=True)


@norms
def test_a_run_whose_warm_up_is_one_step_trains(norm):
    run = utils.Run(Recipe("x", epochs=5, batch_size=128, warmup=0.2), norm, 1, "float32")
    model, *rest = prepare(run, make_dataset(128))
    before = [parameter.clone() for parameter in model.parameters()]
    history = utils.fit(run, model, *rest)
    assert history["lr"][0] == max(history["lr"]) == pytest.approx(0.04, rel=0.01)
    assert not any(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize(
    ("norm", "changes"),
    [
        ("bn", {"lr": 0.1}),
        *((norm, MUON | {"lr": 0.1}) for norm in OUR_NORMS),
    ],
)
def test_a_network_learns_one_batch_by_heart(norm, changes):
    changes = changes | {"warmup": 1 / 30, "weight_decay": 0.0}  # a warm-up of one step
    run = make_run(norm=norm, epochs=30, batch_size=16, crop=0, flip=0.0, **changes)
    losses = utils.fit(run, *prepare(run, make_dataset(16)))["train_loss"]
    assert losses[0] == pytest.approx(math.log(10), abs=0.2)
    assert losses[-1] < 0.5


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
def test_the_loss_is_the_mean_over_images_also_with_a_short_last_batch(norm):
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
@pytest.mark.parametrize("images", [1, 33], ids=["a batch of one", "a last batch of one"])
def test_a_batch_of_one_image_trains_with_every_norm(images, norm):
    run = make_run(norm=norm, batch_size=32, epochs=2)
    model, *rest = prepare(run, make_dataset(images))
    history = utils.fit(run, model, *rest)
    assert all(math.isfinite(loss) for loss in history["train_loss"] + history["test_loss"])
    assert all(weight.isfinite().all() for weight in model.state_dict().values())


@norms
def test_a_rate_of_0_changes_no_weight(norm):
    run = make_run(norm=norm, batch_size=32, epochs=1, lr=0.0)
    model, *rest = prepare(run)
    before = [parameter.clone() for parameter in model.parameters()]
    utils.fit(run, model, *rest)
    assert all(map(torch.equal, before, model.parameters()))


# A run of two epochs: what of the second only such a run can show


@norms
@pytest.mark.parametrize("recipe", ["onecycle", "reference"])
def test_two_epochs_are_those_of_a_loop_out_of_a_textbook(norm, recipe):
    """Modes, momentum, gradients zeroed, the schedule, order and augmentation go on as they do."""
    changes = {"step_epochs": 1} if recipe == "reference" else {}
    run = make_run(recipe, norm, batch_size=32, epochs=2, dropout=0.1, **changes)
    model, *rest = prepare(run)
    history = utils.fit(run, model, *rest)
    theirs, train_loader, test_loader, *_ = prepare(run)
    fields = dataclasses.asdict(run.recipe)
    options = {name: fields[name] for name in ("lr", "momentum", "nesterov", "weight_decay")}
    optimizer = torch.optim.SGD(theirs.parameters(), **options)
    rates = get_rates(run.recipe, len(train_loader))
    torch.manual_seed(run.seed)
    losses = []
    for epoch in range(2):
        theirs.train()
        for step, (images, labels) in enumerate(train_loader):
            optimizer.param_groups[0]["lr"] = rates[epoch * len(train_loader) + step]
            optimizer.zero_grad()
            F.nll_loss(theirs(images), labels).backward()
            optimizer.step()
        theirs.eval()
        with torch.no_grad():
            parts = [(theirs(images), labels) for images, labels in test_loader]
        outputs, labels = map(torch.cat, zip(*parts, strict=True))
        losses.append(F.nll_loss(outputs, labels).item())
    assert history["lr"] == [rates[0], rates[len(train_loader)]]
    assert history["test_loss"] == pytest.approx(losses)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)


def record(run, dataset=None):
    """Run it; return for each pass through the network whether it trained, and its images."""
    model, *rest = prepare(run, dataset)
    passes = []
    model.register_forward_pre_hook(
        lambda model, inputs: passes.append((model.training, inputs[0].clone()))
    )
    utils.fit(run, model, *rest)
    return passes


@norms
def test_every_step_of_every_epoch_trains_in_training_mode_and_tests_in_the_other(norm):
    passes = record(make_run(norm=norm, batch_size=32, epochs=3))
    assert [training for training, _ in passes] == ([True] * 3 + [False] * 3) * 3


def test_a_second_epoch_has_another_order_and_other_augmentation():
    dataset = make_dataset(70)
    plain = [images for _, images in record(make_run(batch_size=70, epochs=2, crop=0, flip=0.0))]
    first, test, second, _ = plain
    assert not torch.equal(first, second)
    places = [(image == test).flatten(1).all(1).nonzero().item() for image in second]
    assert torch.equal(second, test[places])  # the same images in another order
    assert sorted(places) == list(range(70))
    one = TensorDataset(*(tensor[:1].repeat(70, *[1] * (tensor.ndim - 1)) for tensor in dataset[:]))
    first, _, second, _ = (images for _, images in record(make_run(batch_size=70, epochs=2), one))
    assert not torch.equal(first, second)  # though all images are the same


def test_running_averages_move_in_the_second_epoch():
    run = make_run(batch_size=32, epochs=2, lr=0.0)
    model, train_loader, test_loader, *rest = prepare(run)
    averages = model.layers.C1.norm
    seen = []
    for _ in range(2):
        utils.train(model, train_loader, *rest)
        utils.test(model, test_loader, rest[-1])
        seen.append((averages.running_mean.clone(), averages.running_var.clone()))
        assert averages.num_batches_tracked == 3 * len(seen)
    assert not any(map(torch.equal, *seen))


def test_gradients_do_not_add_up_from_step_to_step_or_epoch_to_epoch(monkeypatch):
    gradients, step = [], torch.optim.SGD.step

    def look(self, *args):
        gradients.append([p.grad.clone() for p in self.param_groups[0]["params"]])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", look)
    dataset = TensorDataset(draw_images(1).repeat(8, 1, 1, 1), torch.full((8,), 3))
    run = make_run(norm="gn", batch_size=4, epochs=2, lr=0.0, crop=0, flip=0.0)
    utils.fit(run, *prepare(run, dataset))
    assert len(gradients) == 4
    for others in gradients[1:]:  # of the same weights and images
        torch.testing.assert_close(others, gradients[0])


# Precision


@norms
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_convolutions_are_computed_in_the_run_s_precision_everywhere(norm, precision):
    run = make_run(norm=norm, precision=precision, batch_size=32, epochs=1)
    model, train_loader, test_loader, *rest = prepare(run)
    computed = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *args: computed.append(args[2].dtype))
    expected = {getattr(torch, precision)}
    calls = (
        lambda: utils.train(model, train_loader, *rest, precision),
        lambda: utils.test(model, test_loader, rest[-1], precision),
        lambda: utils.predict(model, test_loader, precision),
    )
    for call in calls:
        computed.clear()
        call()
        assert len(computed) == 11 * 3
        assert set(computed) == expected
    assert utils.predict(model, test_loader, precision)[0].dtype == torch.float32
    computed.clear()
    model, *rest = prepare(run)
    for module in (model.layers.C1.conv, model.layers.c11):
        module.register_forward_hook(lambda *args: computed.append(args[2].dtype))
    utils.fit(run, model, *rest)
    assert len(computed) == 2 * (3 + 3)
    assert set(computed) == expected
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_without_a_precision_all_is_computed_in_float32():
    model, train_loader, test_loader, *rest = prepare(make_run())
    computed = []
    model.layers.C2.conv.register_forward_hook(lambda *args: computed.append(args[2].dtype))
    utils.train(model, train_loader, *rest)
    utils.test(model, test_loader, rest[-1])
    utils.predict(model, test_loader)
    assert set(computed) == {torch.float32}


# Muon


def draw_gradients(model):
    """Give every parameter a gradient of full rank, the same each time in each memory format."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 4 and not parameter.is_contiguous():
            drawn = drawn.contiguous(memory_format=torch.channels_last)
        parameter.grad = drawn


def make_muon(memory_format=torch.channels_last, norm="gn", **changes):
    """Return a network and its optimizer, before its first step."""
    torch.manual_seed(0)
    model = Session8Net(norm).to(memory_format=memory_format)
    return model, utils.get_optimizer(model, Recipe("x", **MUON | changes))


def move(steps=1, **options):
    """Return by how much those steps move each parameter, and the parameters before."""
    model, optimizer = make_muon(**options)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(steps):
        draw_gradients(model)
        optimizer.step()
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    return moved, before


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("memory_format", FORMATS)
def test_muon_moves_a_convolution_by_an_almost_orthogonal_matrix(memory_format):
    moved, before = move(memory_format=FORMATS[memory_format])
    convolutions = [name for name in moved if moved[name].ndim == 4]
    assert len(convolutions) == 11
    for name in convolutions:
        values = torch.linalg.svdvals(moved[name].flatten(1)) / MUON["lr"]
        assert 0.5 < values.min() <= values.max() < 1.5, name
        decay = MUON["lr"] * MUON["weight_decay"] * before[name]  # decoupled
        undecayed = move(memory_format=FORMATS[memory_format], weight_decay=0.0)[0][name]
        torch.testing.assert_close(moved[name], undecayed - decay, atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_muon_moves_scales_and_shifts_as_sgd_does_without_decay(steps):
    options = {"momentum": 0.9, "nesterov": True, "affine_lr": 0.02}
    model, optimizer = make_muon(**options)
    theirs, _ = make_muon()
    affine = [parameter for parameter in theirs.parameters() if parameter.ndim == 1]
    sgd = torch.optim.SGD(affine, lr=0.02, momentum=0.9, nesterov=True)
    for _ in range(steps):
        draw_gradients(model)
        draw_gradients(theirs)
        optimizer.step()
        sgd.step()
    ours = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    assert len(ours) == len(affine) == 16
    assert all(map(torch.equal, ours, affine))


@pytest.mark.parametrize("steps", [1, 2])
def test_muon_moves_the_same_way_in_each_memory_format(steps):
    ours, theirs = (move(steps, memory_format=format)[0] for format in FORMATS.values())
    for name in ours:  # Muon computes in bfloat16
        torch.testing.assert_close(ours[name], theirs[name], atol=0.03 * MUON["lr"], rtol=0)


def test_muon_trains_on_the_gradient_of_the_last_batch_alone():
    model, optimizer = make_muon()
    draw_gradients(model)
    optimizer.step()
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer.step()  # without a gradient
    assert all(map(torch.equal, before, model.parameters()))


def test_muon_calls_a_closure_with_gradients_on_and_returns_its_loss():
    model, optimizer = make_muon()
    before = [parameter.clone() for parameter in model.parameters()]

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3, 32, 32))[:, 3].sum()
        loss.backward()
        return loss

    expected = model(torch.ones(2, 3, 32, 32))[:, 3].sum().item()
    assert optimizer.step(closure).item() == pytest.approx(expected)
    assert not all(map(torch.equal, before, model.parameters()))


def test_the_schedule_moves_both_of_muon_s_rates():
    recipe = Recipe("x", epochs=4, warmup=0.5, **MUON | {"affine_lr": 0.2})
    model = Session8Net("gn")
    optimizer = utils.get_optimizer(model, recipe)
    scheduler = utils.get_scheduler(optimizer, recipe, 5)
    rates = []
    for _ in range(20):
        rates.append([group["lr"] for group in optimizer.param_groups])
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        draw_gradients(model)
        optimizer.step()
        scheduler.step()
        changed = model.layers.C2.conv.weight - before["layers.C2.conv.weight"]
        assert 0.5 < torch.linalg.svdvals(changed.flatten(1)).max() / rates[-1][0] < 1.5
    assert rates[0] == pytest.approx([0.003, 0.02])
    assert rates[9] == pytest.approx([0.03, 0.2])
    assert max(rates[-1]) < 1e-4
    for muon, affine in rates:
        assert affine / muon == pytest.approx(0.2 / 0.03)


@pytest.mark.parametrize("change", ["memory format", "data"])
def test_muon_refuses_a_model_that_was_changed_behind_its_back(change):
    model, optimizer = make_muon()
    if change == "data":
        model.layers.C4.conv.weight.data = model.layers.C4.conv.weight.data.clone()
    else:
        model.to(memory_format=torch.contiguous_format)
    draw_gradients(model)
    with pytest.raises(RuntimeError, match="Make the optimizer after model.to"):
        optimizer.step()


def test_muon_takes_a_model_of_convolutions_alone_but_none_without_any():
    recipe = Recipe("x", **MUON)
    with pytest.raises(ValueError, match="'muon', but the model has no convolution"):
        utils.get_optimizer(nn.Linear(2, 2), recipe)
    model = nn.Conv2d(3, 4, 3, bias=False)
    before = model.weight.detach().clone()
    optimizer = utils.get_optimizer(model, recipe)
    utils.get_scheduler(optimizer, recipe, 5)
    draw_gradients(model)
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_a_pytorch_without_muon_is_told_which_has_it(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(RuntimeError, match="'x' needs the optimizer Muon of PyTorch 2.9 or later"):
        utils.get_optimizer(Session8Net("bn"), Recipe("x", **MUON))


def test_muon_without_momentum_forgets_the_last_gradient():
    options = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    model, optimizer = make_muon(**options)
    moves = []
    for scale in (100.0, 1.0):  # of a gradient that is forgotten, or else outweighs the next
        weight = model.layers.C2.conv.weight
        before = weight.detach().clone()
        draw_gradients(model)
        weight.grad = scale * (weight.grad if scale == 1 else weight.grad.flip(0))
        optimizer.step()
        moves.append(weight.detach() - before)
    alone = move(**options)[0]["layers.C2.conv.weight"]
    torch.testing.assert_close(moves[1], alone, atol=0.03 * MUON["lr"], rtol=0)
    assert not torch.allclose(moves[0], alone, atol=0.03 * MUON["lr"])


def test_muon_at_a_rate_of_0_leaves_the_convolutions_alone():
    moved, _ = move(lr=0.0)
    for name, change in moved.items():
        assert bool(change.any()) == (change.ndim == 1), name


@pytest.mark.parametrize(
    ("norm", "changes"),
    # SGD would need more than these few epochs without a normalization
    [("bn", {}), ("gn", {}), ("ln", {}), ("none", MUON)],
)
def test_the_smoke_recipe_learns_its_data(norm, changes):
    run = make_run("smoke", norm, **changes)
    data = utils.get_data(run.recipe, "nowhere", CPU)
    history = utils.fit(run, *utils.assemble(run, data))
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
    assert set(OUR_NORMS) <= set(utils.STYLES)
    for key in ("color", "linestyle", "marker"):
        assert len({style[key] for style in utils.STYLES.values()}) == len(utils.STYLES)
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
    assert (rows == 0) == (norm in ("gn", "ln"))
    assert [axis.get_ylabel() for axis in figure.axes[4:]] == ["mean", "standard deviation"]


@pytest.mark.filterwarnings("error")
def test_the_maps_of_one_image_have_rows_that_differ_by_nothing():
    figure = utils.post_normalization({"before": torch.rand(1, 16, 5, 5)}, "Maps")
    assert figure.axes[1].get_xlabel().endswith("rows differ by 0.00")


# --- On the real data


@pytest.mark.cifar10
@pytest.mark.parametrize("norm", ["bn", "gn", "ln"])  # without one, an epoch of SGD is too short
def test_one_epoch_on_the_real_data_reaches_45_percent(norm, cifar10_root):
    run = make_run(norm=norm, epochs=1)
    data = utils.get_data(run.recipe, cifar10_root, CPU)
    history = utils.fit(run, *utils.assemble(run, data))
    assert history["test_acc"][-1] >= 45

"""What the notebooks' cells call, in the order of a run: device, data, training, plots."""

import copy
import dataclasses
import math
import pickle
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

norms = pytest.mark.parametrize("norm", OUR_NORMS)


# --- The device


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="PRECISION is 'fp32', but must be one of 'native', 'f"):
        utils.get_precision("fp32", CPU)


def test_a_precision_asked_for_is_the_one_that_is_had(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    for device in (CPU, torch.device("cuda")):
        for name in PRECISIONS:
            assert utils.get_precision(f" {name}\n", device) == name


@pytest.mark.parametrize("native", ["native", "", None])
def test_native_is_bfloat16_only_where_the_hardware_computes_in_it(native, monkeypatch):
    def choose(**capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        return utils.get_precision(native, CPU)

    assert choose(avx512_bf16=True) == "bfloat16"
    assert choose(avx512_bf16=False, amx_bf16=True) == "bfloat16"
    assert choose(bf16=True) == "bfloat16"  # ARM
    assert choose(avx512_f=True, avx512_bf16=False) == "float32"
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older versions
    assert utils.get_precision(native, CPU) == "float32"
    for capability, precision in (((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert utils.get_precision(native, torch.device("cuda")) == precision


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
    assert (enlarged - expected).abs().max() < 0.51  # rounded, a half either way


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
    assert plain == ["Normalize"]
    assert steps(crop=0, flip=0.0) == plain
    assert steps() == ["RandomCrop", "RandomFlip", "Normalize"]
    for field in ("rotation", "resize"):
        assert "RandomAffine" in steps(**{field: 0.1})


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
    assert len(loader) == 5
    for epoch in (first, second):
        images = torch.cat([utils.denormalize(images) for images, _ in epoch])
        order = images[:, 0, 0, 0].long()
        assert sorted(order.tolist()) == list(range(70))
        assert torch.equal(images, dataset.tensors[0][order])
        assert torch.equal(torch.cat([labels for _, labels in epoch]), dataset.tensors[1][order])
    assert not torch.equal(first[0][1], second[0][1])


# --- Schedules


def get_rates(recipe, steps_per_epoch):
    """Return the learning rate of every step of a run."""
    optimizer = utils.get_optimizer(nn.Linear(1, 1), recipe)
    scheduler = utils.get_scheduler(optimizer, recipe, steps_per_epoch)
    rates = []
    for _ in range(recipe.epochs * steps_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0.2, 0.9, 1.0])
def test_onecycle_rises_to_its_peak_and_falls_to_almost_nothing(warmup):
    rates = get_rates(Recipe("x", warmup=warmup), 40)
    peak = min(warmup * 800, 799) - 1  # there is always one step to fall in
    expected = np.interp(range(800), [0, peak, 799], [0.005, 0.05, 5e-7])
    assert rates == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("epochs", "steps", "warmup"),
    [(4, 5, 0.0), (5, 1, 0.2), (1, 4, 0.25), (1, 1, 0.2), (1, 2, 1.0), (2, 1, 0.7)],
)
def test_a_warm_up_of_a_step_or_less_is_none(epochs, steps, warmup):
    rates = get_rates(Recipe("x", epochs=epochs, warmup=warmup), steps)
    assert len(rates) == epochs * steps
    assert 0.024 < rates[0] < 0.05
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0


def test_the_reference_schedule_drops_by_ten_every_six_epochs():
    rates = get_rates(get_recipe("reference"), 3)
    epochs = [0.04] * 6 + [0.004] * 6 + [4e-4] * 6 + [4e-5] * 2
    assert rates == pytest.approx([rate for rate in epochs for _ in range(3)])


# --- The optimizer


@pytest.mark.parametrize("recipe", ["onecycle", "reference"])
def test_the_optimizer_is_the_recipe_s_sgd(recipe):
    model, fields = Session8Net("bn"), dataclasses.asdict(get_recipe(recipe))
    (group,) = utils.get_optimizer(model, get_recipe(recipe)).param_groups
    for name in ("lr", "momentum", "nesterov", "weight_decay"):
        assert group[name] == fields[name]
    assert group["params"] == list(model.parameters())


def as_matrix(kernel):
    """Return (out, all else), the columns in the order of channels_last."""
    return kernel.movedim(1, -1).flatten(1)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
@pytest.mark.parametrize("shape", [(8, 27), (27, 8), (8, 3, 3, 3)], ids=["wide", "tall", "kernel"])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.95, True), (0.9, False), (0.0, False)])
def test_muon_is_pytorch_s_to_the_last_bit(shape, momentum, nesterov):
    options = {"lr": 0.03, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.05}
    start, *gradients = torch.randn(13, *shape, generator=torch.Generator().manual_seed(0))
    ours = nn.Parameter(start.clone())
    if len(shape) == 4:
        ours.data = ours.data.contiguous(memory_format=torch.channels_last)
    theirs = nn.Parameter(as_matrix(start).clone())
    optimizers = utils.Muon([ours], **options), torch.optim.Muon([theirs], **options)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient, as_matrix(gradient)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(as_matrix(ours), theirs)


def make_muon(seed=0, **changes):
    """Return a network, with a scale of four dimensions as a user's norm may have, and its Muon."""
    torch.manual_seed(seed)
    model = Session8Net("gn").to(memory_format=torch.channels_last)
    model.scale = nn.Parameter(torch.rand(1, 10, 1, 1))
    return model, utils.get_optimizer(model, Recipe("x", **MUON | changes))


def find_kernels(model):
    return [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]


def draw_gradients(model, seed=1):
    """Give every parameter a gradient of full rank."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def take_steps(model, optimizer, seeds):
    for seed in seeds:
        draw_gradients(model, seed)
        optimizer.step()


def is_same(model, other):
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_muon_moves_a_convolution_by_an_almost_orthogonal_matrix():
    model, optimizer = make_muon()
    before = copy.deepcopy(model)
    take_steps(model, optimizer, [1])
    assert len(find_kernels(model)) == 11
    for kernel, start in zip(find_kernels(model), find_kernels(before), strict=True):
        decayed = start * (1 - MUON["lr"] * MUON["weight_decay"])
        values = torch.linalg.svdvals(as_matrix(kernel - decayed).detach()) / MUON["lr"]
        assert 0.5 < values.min() <= values.max() < 1.5


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_moves_all_else_as_sgd_does_without_decay(nesterov):
    model, optimizer = make_muon(affine_lr=0.02, nesterov=nesterov)
    theirs = copy.deepcopy(model)
    others = [p for p in theirs.parameters() if not any(p is k for k in find_kernels(theirs))]
    sgd = torch.optim.SGD(others, lr=0.02, momentum=0.95, nesterov=nesterov)
    take_steps(model, optimizer, range(3))
    take_steps(theirs, sgd, range(3))
    assert len(others) == 17
    kernels = set(find_kernels(model))
    for ours, other in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, other) == (ours not in kernels)


def test_muon_s_state_and_groups_hold_every_parameter():
    model, optimizer = make_muon()
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert set(held) == set(model.parameters())
    assert len(held) == 28
    take_steps(model, optimizer, [1])
    assert set(optimizer.state) == set(held)
    draw_gradients(model)
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    torch.testing.assert_close(nn.utils.clip_grad_norm_(held, 1.0), norm)


def copy_state(pair):
    others = make_muon(seed=5)
    for other, part in zip(others, copy.deepcopy(pair), strict=True):
        other.load_state_dict(part.state_dict())
    return others


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "state_dict": copy_state,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_muon_goes_on_to_the_same_digits(how):
    pair = make_muon()
    take_steps(*pair, range(2))
    other = COPIES[how](pair)
    assert is_same(pair[0], other[0])
    take_steps(*pair, range(2, 4))
    assert not is_same(pair[0], other[0])
    take_steps(*other, range(2, 4))
    assert is_same(pair[0], other[0])


def test_muon_trains_a_group_that_is_added():
    model, optimizer = make_muon()
    model.added = nn.Linear(4, 4)
    before = copy.deepcopy(model.added)
    optimizer.add_param_group({"params": [model.added.weight]})
    optimizer.add_param_group({"params": [model.added.bias], "orthogonal": False})
    take_steps(model, optimizer, [1])
    assert not any(map(torch.equal, before.parameters(), model.added.parameters()))


def test_a_scaled_gradient_gives_muon_the_same_step():
    (model, optimizer), (theirs, plain) = make_muon(), make_muon()
    take_steps(theirs, plain, [1])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    draw_gradients(model)
    for parameter in model.parameters():
        parameter.grad = scaler.scale(parameter.grad)
    scaler.step(optimizer)
    assert is_same(model, theirs)


def test_muon_calls_a_closure_and_leaves_alone_what_has_no_gradient():
    model, optimizer = make_muon()
    before = copy.deepcopy(model)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3, 32, 32))[:, 3].sum()
        loss.backward()
        return loss

    expected = closure().item()
    assert optimizer.step(closure).item() == pytest.approx(expected)
    assert not any(map(torch.equal, find_kernels(model), find_kernels(before)))
    assert torch.equal(model.scale, before.scale)  # which the loss does not depend on


def test_the_schedule_moves_both_of_muon_s_rates():
    recipe = Recipe("x", epochs=4, warmup=0.5, **MUON | {"affine_lr": 0.2})
    optimizer = utils.get_optimizer(Session8Net("gn"), recipe)
    scheduler = utils.get_scheduler(optimizer, recipe, 5)
    rates = []
    for _ in range(20):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx([0.003, 0.02])
    assert rates[9] == pytest.approx([0.03, 0.2])
    assert max(rates[-1]) < 1e-4


# --- Training and evaluation


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
def test_a_last_batch_of_one_image_trains_with_every_norm(norm):
    run = make_run(norm=norm, batch_size=4, epochs=1)
    history = utils.fit(run, *prepare(run, make_dataset(5)))
    assert all(math.isfinite(number) for values in history.values() for number in values)


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
    dataset = make_dataset(20)
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
            loss += F.nll_loss(output, labels, reduction="sum").item() / 20
            correct += (output.argmax(1) == labels).sum().item()
        assert history["lr"][epoch] == rates[3 * epoch]
        assert history["train_loss"][epoch] == pytest.approx(loss)
        assert history["train_acc"][epoch] == pytest.approx(100 * correct / 20)

    theirs.eval()
    for name, images, labels in (
        ("clean_train", *dataset[:CLEAN]),
        ("test", *test_dataset.tensors),
    ):
        output = theirs(utils.get_test_transforms()(images))
        loss, right = F.nll_loss(output, labels), output.argmax(1) == labels
        assert history[f"{name}_loss"][1] == pytest.approx(loss.item())
        assert history[f"{name}_acc"][1] == pytest.approx(100 * right.float().mean().item())
    torch.testing.assert_close(dict(model.state_dict()), dict(theirs.state_dict()))


def record(run, dataset, test_dataset=None):
    """Run it; return for each pass through the network whether it trained, and its images."""
    model, *rest = prepare(run, dataset, test_dataset)
    passes = []
    model.register_forward_pre_hook(
        lambda model, inputs: passes.append((model.training, inputs[0].clone()))
    )
    utils.fit(run, model, *rest)
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


def fit(folder, seed=1, **changes):
    """Return the history, without its times, and the network of a small run."""
    run = make_run(seed=seed, batch_size=8, epochs=2, dropout=0.1, **changes)
    parts = prepare(run, make_dataset(20))
    history = utils.fit(run, *parts, folder=folder)
    del history["seconds"]
    return history, parts[0]


def test_another_seed_gives_other_weights_another_order_and_another_augmentation():
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
    assert first[0] == "1"
    assert first[-2:] == ["min", "left"]
    assert [float(cell) for cell in last] == pytest.approx(
        [2, *(values[1] for values in history.values())], abs=0.051
    )


def test_a_trained_model_is_not_trained_again():
    run = make_run(batch_size=8, epochs=1)
    parts = prepare(run, make_dataset(8))
    utils.fit(run, *parts)
    with pytest.raises(RuntimeError, match="trained already.* from block 5 on"):
        utils.fit(run, *parts, folder="elsewhere")


@pytest.mark.parametrize("step", [1, 5])  # of three an epoch
def test_an_interrupted_run_is_refused_or_ends_in_the_same_digits(step):
    history, model = fit("whole")
    run = make_run(batch_size=8, epochs=2, dropout=0.1)
    parts = prepare(run, make_dataset(20))
    steps = []

    def interrupt(module, inputs):
        steps.extend([0] * module.training)
        if len(steps) == step:
            raise KeyboardInterrupt

    hook = parts[0].layers.c11.register_forward_pre_hook(interrupt)  # the averages have moved
    with pytest.raises(KeyboardInterrupt):
        utils.fit(run, *parts)
    hook.remove()
    if step == 1:  # in the first epoch: there is no checkpoint
        with pytest.raises(RuntimeError, match="trained already"):
            utils.fit(run, *parts)
        parts = prepare(run, make_dataset(20))
    again = utils.fit(run, *parts)
    assert {name: again[name] for name in history} == history
    assert is_same(model, parts[0])


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


@pytest.mark.parametrize(
    ("norm", "changes"), [("bn", {}), *((norm, MUON) for norm in ("bn", "gn", "ln", "he"))]
)
def test_a_network_learns_one_batch(norm, changes):
    changes = changes | {"warmup": 0.0}
    run = make_run(norm=norm, epochs=12, batch_size=8, crop=0, flip=0.0, **changes)
    model, train_loader, _, *rest = prepare(run, make_dataset(8))
    first, *_, last = (utils.train(model, train_loader, *rest)[0] for _ in range(12))
    assert (
        last < 0.67 * first
    )  # at most 0.36 with ten seeds, three kinds of kernels, 1 or 2 threads


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
        "clean_train_loss": [2.0, 1.0],
        "test_loss": [2.1, 1.1],
        "clean_train_acc": [40.0, 60.0],
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
            column = {"train": "clean_train", "test": "test"}[line.get_label()]
            assert list(line.get_ydata()) == history[f"{column}_{key}"]
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
    assert all(b - a > 9 for a, b in zip(greys, greys[1:], strict=False))  # of 255


@pytest.mark.parametrize(
    ("options", "indices", "captions"),
    [
        ({"count": 2}, [3, 17], ["true: d\npredicted: f (60.0%)", "true: h\npredicted: a (90.0%)"]),
        (
            {"count": 2, "most_confident": True},
            [17, 29],
            ["true: h\npredicted: a (90.0%)", "true: j\npredicted: b (75.0%)"],
        ),
    ],
    ids=["the first", "the most confident"],
)
def test_misclassified_images_stand_under_both_classes(options, indices, captions):
    dataset = make_dataset(30)
    prediction = F.one_hot(dataset.tensors[1], 10).float().log()
    for index, wrong, probability in ((3, 5, 0.6), (17, 0, 0.9), (29, 1, 0.75)):
        prediction[index] = math.log((1 - probability) / 9)
        prediction[index, wrong] = math.log(probability)
    figure = utils.post_misclassified(dataset, prediction, "abcdefghij", "Wrong", **options)
    assert get_texts(figure) == ("Wrong", captions)
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    for image, index in zip(shown, indices, strict=True):
        assert (image == dataset.tensors[0][index].permute(1, 2, 0).numpy()).all()
    right = TensorDataset(dataset.tensors[0][:3], dataset.tensors[1][:3])
    figure = utils.post_misclassified(right, prediction[:3], "abcdefghij", "Wrong")
    assert get_texts(figure) == ("Wrong (none)", [])


@pytest.mark.parametrize("classes", ["abcdefghij", "abcde"], ids=["ten", "five of ten outputs"])
def test_the_confusion_matrix_counts_true_by_predicted_class(classes):
    labels = torch.tensor([0] * 4 + [1] * 2 + [4] * 2)
    predicted = torch.tensor([0, 0, 0, 7, 1, 2, 4, 4])
    prediction = F.one_hot(predicted, 10).float().log()
    figure = utils.post_confusion(prediction, labels, classes, "Confusion")
    matrix, bars = figure.axes
    assert figure.get_suptitle() == "Confusion"
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted class", "true class")
    assert "%" in bars.get_xlabel()
    cells = {text.get_position()[::-1]: text.get_text() for text in matrix.texts}  # row, column
    assert cells == {(0, 0): "3", (0, 7): "1", (1, 1): "1", (1, 2): "1", (4, 4): "2"}
    shares = ["75.0", "50.0", "0.0", "0.0", "100.0", *["0.0"] * 5]
    assert [text.get_text() for text in bars.texts] == shares
    names = [*classes, *"56789"[: 10 - len(classes)]]
    for labels in (matrix.get_xticklabels(), matrix.get_yticklabels()):
        assert [text.get_text() for text in labels] == names


def test_a_cube_shows_what_is_normalized_together(monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes3D, "voxels", lambda _, filled, **style: drawn.append(filled))
    utils.post_cubes(groups=4)
    x = 3 + torch.randn(6, 8, 4, 1)
    for norm, rest, filled in zip(("bn", "gn", "ln"), drawn[::2], drawn[1::2], strict=True):
        together = get_norm(norm, 8, groups=4)(x)[..., 0].transpose(0, 1)[torch.from_numpy(filled)]
        assert together.mean().item() == pytest.approx(0, abs=1e-4)
        assert together.var(correction=0).item() == pytest.approx(1, abs=1e-3)
        assert (rest ^ filled).all()


def test_lines_have_the_style_and_the_name_of_their_norm():
    lines = {"gn": {"C1": 1.0, "C2": 0.1}, "mine": {"C1": 2.0}}
    (axis,) = utils.post_lines(lines, "Title", "layer", "deviation", log=True).axes
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_yscale()) == (
        "layer",
        "deviation",
        "log",
    )
    first, second = axis.lines
    assert (first.get_label(), first.get_color()) == ("Group", utils.STYLES["gn"]["color"])
    assert list(first.get_ydata()) == [1.0, 0.1]
    assert second.get_label() == "mine"

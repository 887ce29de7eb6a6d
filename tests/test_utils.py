import dataclasses
import hashlib
import http.server
import json
import pickle
import tarfile
import threading

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision.datasets import CIFAR10

import utils
from models import Session8Net
from utils import RECIPES, get_recipe

CPU = torch.device("cpu")
norms = pytest.mark.parametrize("norm", ["bn", "gn", "ln"])


def draw_images(n=16, height=32, width=32):
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8)


def make_dataset(n=70):
    return TensorDataset(draw_images(n), torch.arange(n) % 10)


def make_run(recipe, norm="bn", dataset=None, seed=1):
    """Return everything that `utils.fit` takes, but the number of epochs."""
    dataset = dataset or make_dataset()
    transforms = utils.get_train_transforms(recipe)
    train_loader = utils.get_loader(dataset, transforms, recipe.batch_size, shuffle=True)
    test_loader = utils.get_loader(dataset, utils.get_test_transforms(), recipe.batch_size)
    utils.set_seed(seed)
    model = Session8Net(norm, dropout=recipe.dropout)
    optimizer = utils.get_optimizer(model, recipe)
    scheduler = utils.get_scheduler(optimizer, recipe, len(train_loader))
    utils.set_seed(seed)
    return model, train_loader, test_loader, optimizer, scheduler, utils.get_loss(recipe)


# --- The recipe


def test_the_reference_recipe_is_the_published_one_to_the_letter():
    recipe = dataclasses.asdict(get_recipe("reference"))
    assert (
        recipe
        | {
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
        == recipe
    )


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
    with pytest.raises(ValueError, match="data is 'MNIST'.*'CIFAR-10', 'gratings'"):
        utils.get_data(replace(data="MNIST"), "nowhere", CPU)


@pytest.mark.parametrize(("text", "seed"), [("0", 0), ("1", 1), (" 42 ", 42)])
def test_a_seed_is_a_whole_number(text, seed):
    assert utils.get_seed(text) == seed


@pytest.mark.parametrize("text", ["", "one", "1.5", "-1", "1e3"])
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


# --- The data


def write_cifar10(root, monkeypatch):
    """Write a tiny data set in CIFAR-10's format, and make its checksums the expected ones."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def write_batch(name, n):
        return write(name, {"data": draw_images(n).flatten(1).numpy(), "labels": [*range(n)]})

    classes = {"label_names": [f"class {k}" for k in range(10)]}
    meta = CIFAR10.meta | {"md5": write(CIFAR10.meta["filename"], classes)}
    train_list = [[name, write_batch(name, 4)] for name, _ in CIFAR10.train_list]
    test_list = [[name, write_batch(name, 3)] for name, _ in CIFAR10.test_list]
    monkeypatch.setattr(CIFAR10, "train_list", train_list)
    monkeypatch.setattr(CIFAR10, "test_list", test_list)
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return folder


def test_cifar10_is_read_as_one_tensor_of_images_and_one_of_labels(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, monkeypatch)
    data = utils.get_data(get_recipe("onecycle"), tmp_path, CPU)
    assert data.name == "CIFAR-10"
    assert data.classes == tuple(f"class {k}" for k in range(10))
    images, labels = data.train.tensors
    assert images.shape == (20, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2, 3] * 5
    raw = torch.tensor(pickle.loads((folder / "test_batch").read_bytes())["data"])
    assert torch.equal(data.test.tensors[0], raw.view(3, 3, 32, 32))


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_missing_or_damaged_file_is_named_with_its_remedy(name, tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, monkeypatch)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path} is damaged.* Delete the folder {folder}"):
        utils.load_cifar10(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} is missing. Delete the folder {folder}"):
        utils.load_cifar10(tmp_path)


@pytest.fixture
def mirrors(tmp_path, monkeypatch):
    """The folder that a server on loopback serves, and a way to name its files as mirrors."""
    served = tmp_path / "served"
    folder = write_cifar10(served, monkeypatch)
    with tarfile.open(served / "right", "w:gz") as tar:
        tar.add(folder, CIFAR10.base_folder)
    md5 = hashlib.md5((served / "right").read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=served)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def use(*names):
        urls = [f"http://127.0.0.1:{server.server_port}/{name}" for name in names]
        monkeypatch.setattr(utils, "MIRRORS", urls)

    yield served, use
    server.shutdown()
    server.server_close()


def test_a_mirror_that_fails_or_serves_another_file_is_passed_over(tmp_path, mirrors):
    served, use = mirrors
    (served / "wrong").write_bytes(b"x" * (served / "right").stat().st_size)
    use("absent", "wrong", "right")
    root = tmp_path / "data"
    assert len(utils.load_cifar10(root).train) == 20
    assert [path.name for path in root.iterdir()] == [CIFAR10.base_folder]


def test_an_archive_put_there_by_hand_is_used(tmp_path, mirrors):
    served, use = mirrors
    use()
    root = tmp_path / "data"
    root.mkdir()
    (served / "right").rename(root / CIFAR10.filename)
    assert len(utils.load_cifar10(root).test) == 3
    (root / CIFAR10.filename).write_bytes(b"half")
    for path in (root / CIFAR10.base_folder).iterdir():
        path.unlink()
    (root / CIFAR10.base_folder).rmdir()
    with pytest.raises(ValueError, match=f"{root / CIFAR10.filename} is damaged.*Delete it"):
        utils.load_cifar10(root)


def test_no_network_is_an_error_that_says_what_to_do_and_leaves_nothing(tmp_path, mirrors):
    _, use = mirrors
    use("absent", "nor-here")
    with pytest.raises(ConnectionError) as error:
        utils.get_data(get_recipe("onecycle"), tmp_path / "data", CPU)
    for said in (
        "absent: ",
        "nor-here: ",
        CIFAR10.filename,
        "data",
        "CIFAR10_ROOT",
        "RECIPE=smoke",
    ):
        assert said in str(error.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_the_mirrors_end_with_the_data_set_s_own_host():
    assert utils.MIRRORS[-1] == CIFAR10.url
    assert all(url.startswith("https://") for url in utils.MIRRORS)


def test_the_stand_in_says_that_it_is_not_cifar10_and_is_the_same_each_time():
    data = utils.get_data(get_recipe("smoke"), "nowhere", CPU)
    again = utils.get_data(get_recipe("smoke"), "nowhere", CPU)
    assert "NOT CIFAR-10" in data.name
    assert len(data.classes) == 10
    for part, same in ((data.train, again.train), (data.test, again.test)):
        images, labels = part.tensors
        assert images.shape == (len(part), 3, 32, 32)
        assert images.dtype == torch.uint8
        assert labels.bincount().tolist() == [len(part) // 10] * 10
        assert torch.equal(images, same.tensors[0])


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
    dataset = TensorDataset(draw_images(70), torch.arange(70))
    loader = utils.get_loader(dataset, utils.get_test_transforms(), 16, shuffle=True)
    torch.manual_seed(0)
    first, second = list(loader), list(loader)
    assert [len(labels) for _, labels in first] == [16, 16, 16, 16, 6]
    assert len(loader) == 5
    for epoch in (first, second):
        labels = torch.cat([labels for _, labels in epoch])
        assert sorted(labels.tolist()) == list(range(70))
        images = torch.cat([utils.denormalize(images) for images, _ in epoch])
        assert torch.equal(images, dataset.tensors[0][labels])
    assert not torch.equal(first[0][1], second[0][1])


def test_a_loader_without_shuffle_keeps_the_order_and_chance_out():
    dataset = make_dataset(70)
    loader = utils.get_loader(dataset, utils.get_test_transforms(), 32)
    state = torch.get_rng_state()
    images = torch.cat([images for images, _ in loader])
    torch.set_rng_state(state)
    assert torch.equal(utils.denormalize(images), dataset.tensors[0])


# --- Training and evaluation


def test_onecycle_rises_to_its_peak_and_falls_to_almost_nothing():
    recipe = get_recipe("onecycle")
    optimizer = utils.get_optimizer(torch.nn.Linear(1, 1), recipe)
    scheduler = utils.get_scheduler(optimizer, recipe, 391)
    rates = []
    for _ in range(20 * 391):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(0.2, rel=1e-3)
    assert rates.index(max(rates)) == pytest.approx(0.2 * 20 * 391, abs=2)
    assert 0 < rates[-1] < 1e-4
    assert rates[782] == pytest.approx(0.02 + 0.18 * 782 / 1563, rel=1e-3)  # half way up


def test_the_reference_schedule_drops_by_ten_every_six_epochs():
    recipe = get_recipe("reference")
    optimizer = utils.get_optimizer(torch.nn.Linear(1, 1), recipe)
    scheduler = utils.get_scheduler(optimizer, recipe, 3)
    rates = []
    for step in range(20 * 3):
        if step % 3 == 0:
            rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.04] * 6 + [0.004] * 6 + [4e-4] * 6 + [4e-5] * 2)


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
    recipe = dataclasses.replace(get_recipe("onecycle"), batch_size=32, lr=0.0, crop=0, flip=0.0)
    dataset = make_dataset(70)  # batches of 32, 32 and 6
    model, train_loader, test_loader, optimizer, scheduler, criterion = make_run(
        recipe, norm, dataset
    )
    log_probs = model.eval()(utils.get_test_transforms()(dataset.tensors[0]))
    accuracy = (log_probs.argmax(1) == dataset.tensors[1]).float().mean() * 100
    loss = F.nll_loss(log_probs, dataset.tensors[1])
    expected = pytest.approx((loss.item(), accuracy.item()), rel=1e-5)
    assert utils.test(model, test_loader, criterion) == expected
    if norm != "bn":  # which sees other averages in training
        assert utils.train(model, train_loader, optimizer, scheduler, criterion) == expected


def test_training_updates_the_weights_and_evaluation_changes_nothing():
    model, train_loader, test_loader, *rest = make_run(get_recipe("smoke"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    utils.train(model, train_loader, *rest)
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert model.training
    assert not any(torch.equal(before[name], trained[name]) for name in before)
    utils.test(model, test_loader, rest[-1])
    assert not model.training
    assert all(torch.equal(trained[name], tensor) for name, tensor in model.state_dict().items())


def test_a_step_reads_nothing_back_from_the_device(monkeypatch):
    """On CUDA each of these would wait for the device: only the end of an epoch may do so."""
    waits = []
    for name in ("item", "cpu", "tolist", "numpy", "__float__", "__int__", "__bool__"):
        original = getattr(torch.Tensor, name)

        def counting(self, *args, name=name, original=original, **kwargs):
            waits.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counting)

    def count(images):
        recipe = dataclasses.replace(get_recipe("onecycle"), batch_size=16)
        model, train_loader, _, *rest = make_run(recipe, dataset=make_dataset(images))
        waits.clear()
        utils.train(model, train_loader, *rest)
        return len(waits)

    assert count(32) == count(96)  # 2 steps and 6


@norms
def test_the_smoke_recipe_learns_its_data(norm):
    recipe = get_recipe("smoke")
    data = utils.get_data(recipe, "nowhere", CPU)
    model, train_loader, _, *rest = make_run(recipe, norm, data.train)
    test_loader = utils.get_loader(data.test, utils.get_test_transforms(), recipe.batch_size)
    history = utils.fit(model, train_loader, test_loader, *rest, recipe.epochs)
    assert history["test_acc"][-1] > 60  # chance is 10


def test_the_same_seed_gives_the_same_digits_and_another_seed_others():
    recipe = dataclasses.replace(get_recipe("onecycle"), batch_size=32, epochs=2, dropout=0.1)
    dataset = make_dataset(96)

    def fit(seed):
        run = make_run(recipe, "bn", dataset, seed)
        history = utils.fit(*run, recipe.epochs)
        return {name: history[name] for name in history if name != "seconds"}, run[0].state_dict()

    (history, weights), (again, same), (other, _) = fit(1), fit(1), fit(2)
    assert history == again
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert history["train_loss"] != other["train_loss"]


def test_a_history_has_one_number_an_epoch_in_each_column(capsys):
    recipe = dataclasses.replace(get_recipe("onecycle"), batch_size=32, epochs=3)
    history = utils.fit(*make_run(recipe), recipe.epochs)
    columns = ["lr", "train_loss", "train_acc", "test_loss", "test_acc", "seconds"]
    assert list(history) == columns
    assert all(len(values) == 3 for values in history.values())
    assert history["lr"][0] == pytest.approx(0.02)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["epoch", *columns]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]


# --- The result


def save(folder, recipe="onecycle"):
    recipe = get_recipe(recipe)
    dataset = make_dataset(20)
    data = utils.Data(recipe.data, tuple("abcdefghij"), dataset, dataset)
    prediction = F.one_hot(dataset.tensors[1], 10).float()
    history = {"test_acc": [10.0]}
    model = Session8Net("gn")
    said = utils.save_result(recipe, "gn", 7, data, model, history, prediction, folder)
    return model, said


def test_a_result_says_what_ran_and_what_came_out(tmp_path):
    model, said = save(tmp_path / "results")
    path = tmp_path / "results" / "onecycle-gn-seed7.json"
    assert path.name in said
    result = json.loads(path.read_text())
    assert result["recipe"] == dataclasses.asdict(get_recipe("onecycle"))
    assert (result["norm"], result["seed"], result["parameters"]) == ("gn", 7, 48_448)
    assert result["data"] == {"name": "CIFAR-10", "train_size": 20, "test_size": 20}
    assert result["test_predictions"] == "01234567890123456789"
    assert set(result["environment"]) == {"torch", "device", "precision", "threads"}
    weights = torch.load(path.with_suffix(".pt"), weights_only=True)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert {path.name for path in path.parent.iterdir()} == {
        "onecycle-gn-seed7.json",
        "onecycle-gn-seed7.pt",
    }


def test_a_run_on_stand_in_data_writes_nothing(tmp_path):
    _, said = save(tmp_path / "results", "smoke")
    assert said.startswith("Nothing was written")
    assert not (tmp_path / "results").exists()


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args, **options):
        raise OSError("no space left")

    monkeypatch.setattr(json, "dumps", fail)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


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
    figure = utils.post_accuracyplots(history, "Curves")
    assert figure.get_suptitle() == "Curves"
    for axis, key, unit in zip(figure.axes, ("loss", "acc"), ("likelihood", "%"), strict=True):
        assert axis.get_xlabel() == "epoch"
        assert unit in axis.get_ylabel()
        labels = [text.get_text() for text in axis.get_legend().get_texts()]
        assert labels == ["train", "test"]
        for line in axis.lines:
            assert list(line.get_xdata()) == [1, 2]
            assert list(line.get_ydata()) == history[f"{line.get_label()}_{key}"]


def test_misclassified_images_are_the_first_wrong_ones_with_both_classes():
    dataset = make_dataset(30)
    prediction = F.one_hot(dataset.tensors[1], 10).float().mul(0.9).add(0.01).log()
    for index, wrong in ((3, 5), (17, 0), (29, 1)):
        prediction[index] = torch.full((10,), 0.02).log()
        prediction[index, wrong] = torch.tensor(0.82).log()
    figure = utils.post_misclassified(dataset, prediction, "abcdefghij", "Wrong", count=2)
    assert get_texts(figure) == (
        "Wrong",
        ["true: d\npredicted: f (82%)", "true: h\npredicted: a (82%)"],
    )
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert torch.equal(torch.from_numpy(shown[0].data), dataset.tensors[0][3].permute(1, 2, 0))


def test_no_misclassified_image_is_said_in_the_figure():
    dataset = make_dataset(10)
    prediction = F.one_hot(dataset.tensors[1], 10).float().log()
    figure = utils.post_misclassified(dataset, prediction, "abcdefghij", "Wrong")
    assert get_texts(figure) == ("Wrong (none)", [])


# --- On the real data


@pytest.mark.cifar10
def test_the_real_data_are_50_000_and_10_000_images_of_ten_classes(cifar10_root):
    data = utils.get_data(get_recipe("onecycle"), cifar10_root, CPU)
    assert data.classes[0] == "airplane"
    for part, size in ((data.train, 5000), (data.test, 1000)):
        assert part.tensors[1].bincount().tolist() == [size] * 10
    pixels = data.train.tensors[0].double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(utils.MEAN, abs=1e-3)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(utils.STD, abs=1e-3)


@pytest.mark.cifar10
@norms
def test_one_epoch_on_the_real_data_reaches_45_percent(norm, cifar10_root):
    recipe = dataclasses.replace(get_recipe("onecycle"), epochs=1)
    data = utils.get_data(recipe, cifar10_root, CPU)
    model, train_loader, _, *rest = make_run(recipe, norm, data.train)
    test_loader = utils.get_loader(data.test, utils.get_test_transforms(), recipe.batch_size)
    history = utils.fit(model, train_loader, test_loader, *rest, epochs=1)
    assert history["test_acc"][-1] >= 45

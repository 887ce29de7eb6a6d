"""Input that lies or stands at the edge: the error that each must give, or the result it has."""

import math
import os

import pytest
import torch
from torch.utils.data import TensorDataset

import utils
from conftest import CPU, draw_images, make_dataset, make_run, prepare
from models import Session8Net, get_norm
from utils import Recipe, get_loader, get_test_transforms, get_train_transforms

LOADER = {"transforms": get_test_transforms(), "batch_size": 4}


def load(images=None, labels=None, **options):
    images = draw_images(4) if images is None else images
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    return list(get_loader(TensorDataset(images, labels), **(LOADER | options)))


def augment(images):
    return get_train_transforms(Recipe("x", rotation=5, resize=0.1))(images)


def display(images):
    return utils.post_display(images, ["caption"] * len(images), "title")


UINT8 = r"uint8 images of shape \(N, 3, H, W\)"
BAD = {
    # images, in each place that takes them
    "float images": (lambda: augment(torch.rand(4, 3, 32, 32)), ValueError, UINT8),
    "nan images": (lambda: augment(torch.full((4, 3, 32, 32), math.nan)), ValueError, UINT8),
    "int64 images": (lambda: augment(draw_images().long()), ValueError, UINT8),
    "grey images": (lambda: augment(draw_images()[:, :1]), ValueError, UINT8),
    "RGBA images": (lambda: augment(draw_images()[:, [0, 1, 2, 0]]), ValueError, UINT8),
    "channels last": (lambda: augment(draw_images().permute(0, 2, 3, 1)), ValueError, UINT8),
    "an empty batch": (lambda: augment(draw_images(0)), ValueError, "with N > 0"),
    "one image, no batch": (lambda: augment(draw_images()[0]), ValueError, UINT8),
    "a batch of batches": (lambda: augment(draw_images()[None]), ValueError, UINT8),
    "float images to load": (lambda: load(torch.rand(4, 3, 32, 32)), ValueError, UINT8),
    "float images to show": (lambda: display(torch.rand(4, 3, 32, 32)), ValueError, UINT8),
    "one image to show": (lambda: display(draw_images()[0]), ValueError, UINT8),
    "images too small": (
        lambda: Session8Net("bn")(torch.rand(2, 3, 8, 8)),
        RuntimeError,
        "[Kk]ernel size|too small",
    ),
    "grey images to the network": (
        lambda: Session8Net("bn")(torch.rand(2, 1, 32, 32)),
        RuntimeError,
        "3 channels",
    ),
    # labels and loaders
    "label 10": (lambda: load(labels=torch.tensor([0, 1, 2, 10])), ValueError, "from 0 to 10"),
    "label -1": (lambda: load(labels=torch.tensor([0, 1, 2, -1])), ValueError, "from -1 to 2"),
    "float labels": (lambda: load(labels=torch.zeros(4)), ValueError, "but are torch.float32"),
    "one-hot labels": (
        lambda: load(labels=torch.zeros(4, 10, dtype=torch.int64)),
        ValueError,
        r"of shape \(4, 10\)",
    ),
    "no images": (lambda: load(draw_images(0)), ValueError, "data set is empty"),
    "a batch of 0": (lambda: load(batch_size=0), ValueError, "batch_size is 0"),
    "a batch of -1": (lambda: load(batch_size=-1), ValueError, "batch_size is -1"),
    "fewer labels than images": (
        lambda: load(labels=torch.zeros(3, dtype=torch.int64)),
        AssertionError,
        "Size mismatch",
    ),
    # hyperparameters
    "0 epochs": (lambda: Recipe("x", epochs=0), ValueError, "epochs is 0, but must be from 1"),
    "-1 epochs": (lambda: Recipe("x", epochs=-1), ValueError, "epochs is -1"),
    "batch size 0": (lambda: Recipe("x", batch_size=0), ValueError, "batch_size is 0"),
    "negative rate": (lambda: Recipe("x", lr=-0.1), ValueError, "lr is -0.1, but must be from 0"),
    "infinite rate": (lambda: Recipe("x", lr=math.inf), ValueError, "lr is inf"),
    "nan rate": (lambda: Recipe("x", lr=math.nan), ValueError, "lr is nan"),
    "negative decay": (lambda: Recipe("x", weight_decay=-1), ValueError, "weight_decay is -1"),
    "momentum 1.5": (lambda: Recipe("x", momentum=1.5), ValueError, "momentum is 1.5"),
    "warm-up 2": (lambda: Recipe("x", warmup=2), ValueError, "warmup is 2"),
    "start factor 0": (lambda: Recipe("x", start_factor=0), ValueError, "start_factor is 0"),
    "step factor 2": (lambda: Recipe("x", step_factor=2), ValueError, "step_factor is 2"),
    "steps of 0 epochs": (lambda: Recipe("x", step_epochs=0), ValueError, "step_epochs is 0"),
    "dropout 1.1": (lambda: Recipe("x", dropout=1.1), ValueError, "dropout is 1.1"),
    "flip -0.5": (lambda: Recipe("x", flip=-0.5), ValueError, "flip is -0.5"),
    "crop of the image": (lambda: Recipe("x", crop=32), ValueError, "crop is 32"),
    "resize 1": (lambda: Recipe("x", resize=1.0), ValueError, "resize is 1.0"),
    "rotation 200": (lambda: Recipe("x", rotation=200), ValueError, "rotation is 200"),
    # names
    "norm": (lambda: get_norm("instance", 8), ValueError, "'bn', 'gn', 'ln'"),
    "recipe": (lambda: utils.get_recipe("One"), ValueError, "'onecycle', 'reference', 'smoke'"),
    "seed": (lambda: utils.get_seed("x"), ValueError, "SEED is 'x'"),
    "optimizer": (
        lambda: utils.get_optimizer(Session8Net("bn"), Recipe("x", optimizer="adam")),
        ValueError,
        "'sgd'",
    ),
    "scheduler": (
        lambda: utils.get_scheduler(None, Recipe("x", scheduler="cosine"), 1),
        ValueError,
        "'onecycle', 'step'",
    ),
    "loss": (lambda: utils.get_loss(Recipe("x", loss="mse")), ValueError, "'nll'"),
    "data": (lambda: utils.get_data(Recipe("x", data="MNIST"), ".", CPU), ValueError, "CIFAR-10"),
    "no such data folder to read": (
        lambda: utils.load_cifar10(os.devnull),
        OSError,
        f"the folder {os.devnull} .* CIFAR10_ROOT",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gives_an_error_that_says_what_is_wrong(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("norm", ["bn", "gn", "ln"])
@pytest.mark.parametrize("images", [1, 33], ids=["a batch of one", "a last batch of one"])
def test_a_batch_of_one_image_trains_with_every_norm(images, norm):
    run = make_run(norm=norm, batch_size=32, epochs=2)
    model, *rest = prepare(run, make_dataset(images))
    history = utils.fit(run, model, *rest)
    assert all(math.isfinite(loss) for loss in history["train_loss"] + history["test_loss"])
    assert all(weight.isfinite().all() for weight in model.state_dict().values())


def test_a_batch_larger_than_the_data_set_is_the_data_set():
    (images, labels), *others = load(draw_images(3), batch_size=1000)
    assert images.shape == (3, 3, 32, 32)
    assert labels.shape == (3,)
    assert others == []


def test_a_rate_of_0_changes_no_weight():
    run = make_run(norm="gn", batch_size=32, epochs=1, lr=0.0)
    model, *rest = prepare(run)
    before = [parameter.clone() for parameter in model.parameters()]
    utils.fit(run, model, *rest)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("norm", ["bn", "gn", "ln"])
def test_a_huge_rate_ends_in_an_error_or_in_finite_numbers(norm):
    run = make_run(norm=norm, batch_size=16, epochs=2, lr=1e30)
    with pytest.raises(FloatingPointError, match="diverged in epoch 1, step .* lower learning"):
        utils.fit(run, *prepare(run))


def test_labels_are_checked_before_anything_is_trained():
    dataset = make_dataset(8)
    dataset.tensors[1][3] = 11
    with pytest.raises(ValueError, match="from 0 to 11"):
        prepare(make_run(), dataset)


def test_a_folder_that_cannot_be_made_is_named():
    utils.Path("results").write_text("a file")
    with pytest.raises(OSError, match="results.x could not be written .* unchanged. Make room"):
        utils._write_whole({utils.Path("results/x"): lambda file: file.write(b"x")})
    assert utils.Path("results").read_text() == "a file"

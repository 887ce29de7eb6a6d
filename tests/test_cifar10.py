"""CIFAR-10 from a folder, an archive or a mirror: the right data, or an error that helps."""

import functools
import hashlib
import http.server
import os
import pickle
import shutil
import socket
import threading
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10

import cifar10
import utils
from common import CPU, draw_images, make_run
from runs import get_recipe

ARCHIVE, FOLDER = CIFAR10.filename, CIFAR10.base_folder


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder with 15 and 3 images in CIFAR-10's format and their archive; their md5s count."""
    root = tmp_path / "served"
    (root / FOLDER).mkdir(parents=True)

    def write(name, n):
        content = {"data": draw_images(n).flatten(1).numpy(), "labels": [*range(n)]}
        content["label_names"] = [f"class {k}" for k in range(10)]
        (root / FOLDER / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((root / FOLDER / name).read_bytes()).hexdigest()]

    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{k}", k) for k in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", 3)])
    monkeypatch.setitem(CIFAR10.meta, "md5", write("batches.meta", 1)[1])
    shutil.make_archive(root / "cifar-10-python", "gztar", root, FOLDER)
    md5 = hashlib.md5((root / ARCHIVE).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5)
    return root


@pytest.fixture
def mirrors(served, monkeypatch):
    """Urls on loopback by what they serve; the only mirror is the right one at first."""
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cifar10, "STALL", 0.3)
    handler, address = http.server.SimpleHTTPRequestHandler, ("127.0.0.1", 0)
    handler = functools.partial(handler, directory=served)
    with http.server.ThreadingHTTPServer(address, handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        with socket.create_server(address) as silent:
            url, stall = (f"http://127.0.0.1:{s.getsockname()[1]}" for s in (server.socket, silent))
            right, other = f"{url}/{ARCHIVE}", f"{url}/{FOLDER}/test_batch"
            monkeypatch.setattr(cifar10, "MIRRORS", [right])
            yield {"right": right, "other": other, "missing": f"{url}/none", "stall": stall}
        server.shutdown()


def test_root_is_absolute_however_it_is_spelled(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    spelled = {" '~/x y'\n": "home/x y", "$HOME/x/cifar-10-batches-py/": "home/x"}
    spelled |= {"x/cifar-10-python.tar.gz": "x", " ''\n": "a $HOME/data"}
    for text, folder in spelled.items():
        assert cifar10.get_root(text, "a $HOME/data") == tmp_path / folder


@pytest.mark.parametrize(
    "place", ["served", pytest.param("cifar10_root", marks=pytest.mark.cifar10)]
)
def test_tensors_are_what_torchvision_reads(place, request):
    root = request.getfixturevalue(place)
    data = cifar10.load_cifar10(root)
    for part, train in ((data.test, False), (data.train, True)):
        theirs, (images, labels) = CIFAR10(root, train=train), part.tensors
        assert torch.equal(images, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
        assert torch.equal(labels, torch.tensor(theirs.targets))
    assert data.classes == tuple(theirs.classes)
    if place == "cifar10_root":
        deviation, mean = torch.std_mean(images / 255, (0, 2, 3))
        assert mean.tolist() == pytest.approx(cifar10.MEAN, abs=1e-4)
        assert deviation.tolist() == pytest.approx(cifar10.STD, abs=1e-4)


def test_bad_file_is_named_with_its_remedy(served):
    path = served / FOLDER / "data_batch_3"
    for spoil in (lambda: path.write_bytes(b"x"), path.unlink):
        spoil()
        with pytest.raises(ValueError, match=f"{path.parent} is .* damaged: delete it and run"):
            cifar10.load_cifar10(served)


def test_bad_mirrors_are_passed_over_for_the_next(tmp_path, mirrors, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", "elsewhere")  # from which files can't be moved
    bad = [mirrors[way] for way in ("other", "missing", "stall")]
    monkeypatch.setattr(cifar10, "MIRRORS", bad)
    with pytest.raises(ConnectionError) as error:
        utils.get_data(get_recipe("onecycle"), None, CPU)
    advice = (f"Put {ARCHIVE} into {tmp_path / 'data'}", "CIFAR10_ROOT", "RECIPE=smoke")
    assert all(words in str(error.value) for words in (*bad, *advice))
    assert os.listdir("data") == []
    monkeypatch.setattr(cifar10, "MIRRORS", [*bad, mirrors["right"]])
    assert len(cifar10.load_cifar10("data").train) == 15
    assert f"in {tmp_path / 'data'}: downloading 170 MB" in capsys.readouterr().out
    assert os.listdir("data") == [FOLDER]
    assert socket.getdefaulttimeout() is None


def test_archive_in_the_folder_is_used_if_whole(served, mirrors, monkeypatch):
    content = (served / ARCHIVE).read_bytes()
    for folder, archive, ways in (("a", content, []), ("b", content[:-1], ["right"])):
        monkeypatch.setattr(cifar10, "MIRRORS", [mirrors[way] for way in ways])
        Path(folder).mkdir()
        Path(folder, ARCHIVE).write_bytes(archive)
        assert len(cifar10.load_cifar10(folder).test) == 3


# --- The sample


def test_sample_is_whole_and_moves_to_a_device():
    data = cifar10.load_sample()
    assert " ".join(data.classes[2:8]) == "bird cat deer dog frog horse"
    moved = data.to(torch.device("meta"))
    for name, size in (("train", 200), ("test", 50)):
        images, labels = getattr(data, name).tensors
        assert (images.shape, images.dtype) == ((10 * size, 3, 32, 32), torch.uint8)
        assert labels.tolist() == [*range(10)] * size
        assert len(images.unique(dim=0)) == 10 * size
        assert {tensor.device.type for tensor in getattr(moved, name).tensors} == {"meta"}


@pytest.mark.cifar10
def test_sample_is_the_first_images_of_each_class(cifar10_root):
    sample, whole = cifar10.load_sample(), cifar10.load_cifar10(cifar10_root)
    assert sample.classes == whole.classes
    for part, original in ((sample.train, whole.train), (sample.test, whole.test)):
        for k in range(10):
            ours, theirs = (p.tensors[0][p.tensors[1] == k] for p in (part, original))
            assert torch.equal(ours, theirs[: len(ours)])


@pytest.mark.parametrize("content", [None, bytes(1000)], ids=["missing", "other"])
def test_bad_sample_is_named_with_its_remedy(content, tmp_path, monkeypatch):
    path = tmp_path / "sample.png"
    if content:
        path.write_bytes(cifar10.SHEET.read_bytes()[:-1000] + content)
    monkeypatch.setattr(cifar10, "SHEET", path)
    with pytest.raises(ValueError, match=f"{path} is missing or damaged: restore it .*sample.png"):
        utils.get_data(get_recipe("smoke"), "nowhere", CPU)


def test_smoke_run_learns_the_sample_and_writes_nothing():
    run = make_run("smoke", "none", epochs=3)  # which learns it least
    data = utils.get_data(run.recipe, "nowhere", CPU)
    training = utils.assemble(run, data)
    history = utils.fit(run, training)
    assert history["test_acc"][-1] >= 20  # chance is 10, and many seeds are at 27 or more
    said = utils.save_result(run, data, training, history, 50.0, torch.zeros(500, 10))
    total = f"{len(data.train) + len(data.test):,} of CIFAR-10's 60,000 images"
    assert said == f"Nothing was written: this run was on {total}."
    assert run.title.endswith(total)
    assert not Path("runs").exists()

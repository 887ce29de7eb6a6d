"""CIFAR-10 from a folder, an archive or a mirror: the right data, or an error that helps."""

import errno
import hashlib
import http.server
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import warnings
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10

import cifar10
import utils
from common import CPU, draw_images
from utils import get_recipe


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


not_on_windows = pytest.mark.skipif(os.name == "nt", reason="is a path there")


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("{home}/x", "{home}/x"),
        ("~", "{home}"),
        ("~/x", "{home}/x"),
        ("$HOME/x", "{home}/x"),
        ("'~/x'", "{home}/x"),
        ('"{home}/a b"', "{home}/a b"),
        (" {home}/x\n", "{home}/x"),
        ("x/y", "{here}/x/y"),
        (".", "{here}"),
        ("{home}/x/cifar-10-batches-py", "{home}/x"),
        ("~/x/cifar-10-batches-py/", "{home}/x"),
        ("cifar-10-batches-py", "{here}"),
        ("{home}/x/cifar-10-python.tar.gz", "{home}/x"),
        ("{home}/x/cifar-10-batches-py/data_batch_1", "{home}/x"),
        ("", "{here}/data"),
        (" \n", "{here}/data"),
        ("''", "{here}/data"),
        (None, "{here}/data"),
    ],
)
def test_a_data_folder_is_absolute_however_it_is_spelled(text, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    places = {"home": tmp_path / "home", "here": tmp_path}
    expected = Path(folder.format(**places))
    assert cifar10.get_root(text and text.format(**places)) == expected
    assert cifar10.get_root(expected) == expected


@pytest.mark.parametrize("text", ["$NO_SUCH_VARIABLE/x", "${NO_SUCH_VARIABLE}/x", "~/$NO_SUCH_1"])
def test_a_data_folder_of_a_variable_that_is_not_set_is_refused(text):
    with pytest.raises(ValueError, match=r"CIFAR10_ROOT is .*\$\{?NO_SUCH_\w+ is not set"):
        cifar10.get_root(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("%NO_SUCH%/x", "the variable %NO_SUCH% is not set"),
        ("~nosuchuser/x", "there is no home folder of that user"),
        ("file:///x/y", "must be the path of a folder"),
        ("https://host/x", "must be the path of a folder"),
        pytest.param("C:\\x", "must be the path of a folder", marks=not_on_windows),
        ("user@host:/x", "must be the path of a folder"),
        ("$(pwd)/x", "must be the path of a folder"),
        pytest.param(r"\\server\x", "must be the path of a folder", marks=not_on_windows),
        pytest.param("D:/x", "must be the path of a folder", marks=not_on_windows),
    ],
)
def test_what_is_no_path_of_this_system_is_refused(text, said):
    with pytest.raises(ValueError, match=re.escape(f"CIFAR10_ROOT is {text!r}, but {said}")):
        cifar10.get_root(text)


def test_a_folder_in_the_data_s_own_is_not_a_file_of_it(tmp_path):
    folder = tmp_path / "cifar-10-batches-py" / "mine"
    folder.mkdir(parents=True)
    assert cifar10.get_root(folder) == folder


@pytest.mark.parametrize("name", ["a$b", "%a%", "${c}"])
def test_a_folder_that_is_there_is_taken_whatever_its_name(name, tmp_path):
    (tmp_path / name).mkdir()
    assert cifar10.get_root(name) == tmp_path / name


def test_the_default_folder_is_taken_whatever_its_name(tmp_path):
    assert cifar10.get_root(None, tmp_path / "a$b" / "data") == tmp_path / "a$b" / "data"


def test_a_name_that_is_too_long_is_left_to_whoever_writes_there(tmp_path):
    assert cifar10.get_root("x" * 300) == tmp_path / ("x" * 300)


def test_cifar10_in_a_folder_of_another_name_is_not_downloaded_again(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, monkeypatch)
    monkeypatch.setattr(cifar10, "download_cifar10", None)
    with pytest.raises(
        ValueError, match="holds CIFAR-10's files themselves: rename it to cifar-10"
    ):
        cifar10.load_cifar10(folder.rename(tmp_path / "mine"))


@pytest.mark.parametrize("below", ["", CIFAR10.base_folder])
def test_the_folder_itself_is_read_as_the_folder_that_holds_it(below, tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    assert len(cifar10.load_cifar10(f" {tmp_path / below}\n").test) == 3


def test_unset_the_data_folder_is_data_beside_the_notebook(tmp_path, monkeypatch):
    write_cifar10(tmp_path / "data", monkeypatch)
    for unset in ("", None):
        assert len(utils.get_data(get_recipe("onecycle"), unset, CPU).test) == 3


def test_cifar10_is_read_as_one_tensor_of_images_and_one_of_labels(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, monkeypatch)
    data = utils.get_data(get_recipe("onecycle"), tmp_path, CPU)
    assert data.classes == tuple(f"class {k}" for k in range(10))
    images, labels = data.train.tensors
    assert images.shape == (20, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2, 3] * 5
    raw = torch.tensor(pickle.loads((folder / "test_batch").read_bytes())["data"])
    assert torch.equal(data.test.tensors[0], raw.view(3, 3, 32, 32))
    assert not data.stand_in


def test_reading_warns_of_nothing_even_if_unpickling_does(tmp_path, monkeypatch, recwarn):
    """As NumPy 2.4.0 to 2.4.4 does."""
    write_cifar10(tmp_path, monkeypatch)
    load, loaded = pickle.load, []

    def load_and_warn(file, **options):
        loaded.append(file)
        warnings.warn("dtype(): align should be passed as Python or NumPy boolean", stacklevel=2)
        return load(file, **options)

    monkeypatch.setattr(pickle, "load", load_and_warn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(cifar10.load_cifar10(tmp_path).train) == 20
        with pytest.raises(UserWarning, match="later"):  # what comes after is not silenced
            warnings.warn("later", stacklevel=1)
    assert len(loaded) >= 6
    assert not recwarn


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_missing_or_damaged_file_is_named_with_its_remedy(name, tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, monkeypatch)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path} is damaged.* Delete the folder {folder}"):
        cifar10.load_cifar10(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} is missing. Delete the folder {folder}"):
        cifar10.load_cifar10(tmp_path)


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serve `archive` in the way, good or bad, that the last part of the path names."""

    archive = b""

    def log_message(self, *args):
        pass

    def do_GET(self):
        way = self.path.strip("/")
        if way == "busy":
            return self.send_error(503)
        if way in ("moved", "loop"):
            self.send_response(302)
            self.send_header("Location", "/right" if way == "moved" else "/loop")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.archive)))
        self.end_headers()
        half = len(self.archive) // 2
        if way == "other":
            self.wfile.write(bytes(len(self.archive)))
        elif way == "half":
            self.wfile.write(self.archive[:half])
        elif way == "stall":
            self.wfile.write(self.archive[:half])
            self.wfile.flush()
            time.sleep(3)
        elif way == "trickle":
            for k in range(half):
                self.wfile.write(self.archive[k : k + 1])
                time.sleep(0.05)
        else:
            self.wfile.write(self.archive)
        return None


@pytest.fixture
def mirrors(tmp_path, monkeypatch):
    """A function that makes ways of a server on loopback, in that order, the mirrors."""
    folder = write_cifar10(tmp_path / "served", monkeypatch)
    with tarfile.open(tmp_path / "archive", "w:gz") as tar:
        tar.add(folder, CIFAR10.base_folder)
    archive = (tmp_path / "archive").read_bytes()
    monkeypatch.setattr(Mirror, "archive", archive)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(cifar10, "STALL", 0.5)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def use(*ways):
        urls = [f"http://127.0.0.1:{server.server_port}/{way}" for way in ways]
        monkeypatch.setattr(cifar10, "MIRRORS", urls)

    yield use
    server.shutdown()


@pytest.mark.parametrize("way", ["busy", "half", "stall", "trickle", "other", "loop"])
def test_a_bad_mirror_is_passed_over_for_the_next_in_bounded_time(way, tmp_path, mirrors):
    mirrors(way, "right")
    start = time.monotonic()
    assert len(cifar10.load_cifar10(tmp_path / "data").train) == 20
    assert time.monotonic() - start < 10
    assert [path.name for path in (tmp_path / "data").iterdir()] == [CIFAR10.base_folder]


@pytest.mark.parametrize("way", ["busy", "half", "stall", "trickle", "other", "loop"])
def test_with_bad_mirrors_alone_nothing_is_left_and_the_error_says_what_to_do(
    way, tmp_path, mirrors
):
    mirrors(way)
    with pytest.raises(ConnectionError) as error:
        utils.get_data(get_recipe("onecycle"), tmp_path / "data", CPU)
    for said in (f"/{way}: ", CIFAR10.filename, "data", "CIFAR10_ROOT", "RECIPE=smoke"):
        assert said in str(error.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_redirect_is_followed_and_what_it_leads_to_is_checked(tmp_path, mirrors):
    mirrors("moved")
    assert len(cifar10.load_cifar10(tmp_path / "data").train) == 20


def test_a_refused_connection_is_an_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "MIRRORS", ["http://127.0.0.1:9/none"])
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="RECIPE=smoke"):
        cifar10.load_cifar10(tmp_path / "data")
    assert time.monotonic() - start < 5


def load_with_the_default_bar(root):
    return cifar10.load_cifar10(root)


def load_with_the_notebooks_bar(root):
    return utils.get_data(get_recipe("onecycle"), root, CPU)


@pytest.mark.parametrize("load", [load_with_the_default_bar, load_with_the_notebooks_bar])
def test_a_download_says_first_which_folder_has_no_data(load, tmp_path, mirrors, capsys):
    mirrors("busy", "right")
    assert len(load("data").train) == 20  # relative, but said in full
    said, *downloads = capsys.readouterr().out.splitlines()
    assert said == f"No CIFAR-10 in {tmp_path / 'data'}: it is downloaded there (170 MB)."
    expected = [f"Downloading {url}" for url in cifar10.MIRRORS if url.endswith("right")]
    assert downloads == (expected if load is load_with_the_notebooks_bar else [])
    load("data")
    assert capsys.readouterr().out == ""


def test_that_a_download_begins_is_said_before_it_does(tmp_path, monkeypatch, capsys):
    def fail(*args, **options):
        raise OSError(f"so far: {capsys.readouterr().out}")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(ConnectionError, match=f"so far: No CIFAR-10 in {tmp_path / 'data'}: "):
        cifar10.load_cifar10()


def test_an_archive_put_there_by_hand_is_used_if_it_is_whole(tmp_path, mirrors):
    mirrors()
    root = tmp_path / "data"
    root.mkdir()
    (root / CIFAR10.filename).write_bytes(Mirror.archive[:-1])
    with pytest.raises(ValueError, match=f"{root / CIFAR10.filename} is damaged.* Delete it"):
        cifar10.load_cifar10(root)
    assert [path.name for path in root.iterdir()] == [CIFAR10.filename]
    (root / CIFAR10.filename).write_bytes(Mirror.archive)
    assert len(cifar10.load_cifar10(root).test) == 3


def test_two_downloads_at_once_both_end_well(tmp_path, mirrors, monkeypatch):
    mirrors("right")
    root, data = tmp_path / "data", []
    barrier = threading.Barrier(2, timeout=10)
    unpack = tarfile.open

    def together(*args):
        barrier.wait()  # both have the archive before either unpacks it
        return unpack(*args)

    monkeypatch.setattr(tarfile, "open", together)
    threads = [
        threading.Thread(target=lambda: data.append(cifar10.load_cifar10(root))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(part.train) for part in data] == [20, 20]
    assert [path.name for path in root.iterdir()] == [CIFAR10.base_folder]


@pytest.mark.parametrize("root", [os.devnull, "/dev/null/x"])
def test_a_data_folder_that_cannot_be_made_is_named_with_the_remedy(root):
    with pytest.raises(OSError, match=f"the folder {root} .* CIFAR10_ROOT"):
        cifar10.load_cifar10(root)


def test_a_data_folder_that_is_a_file_is_named_with_the_remedy(tmp_path, mirrors):
    mirrors("right")
    (tmp_path / "data").write_text("a file")
    with pytest.raises(OSError, match=f"the folder {tmp_path / 'data'} .* CIFAR10_ROOT"):
        cifar10.load_cifar10(tmp_path / "data")
    assert (tmp_path / "data").read_text() == "a file"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize(
    ("owner", "function"),
    [(Path, "open"), (tarfile.TarFile, "extractall")],
    ids=["writing", "unpacking"],
)
def test_a_full_or_read_only_disk_is_named_with_the_remedy(
    code, owner, function, tmp_path, mirrors, monkeypatch
):
    mirrors("right", "right")
    calls = []

    def fail(*args, **options):
        calls.append(args)
        raise OSError(code, "stand-in for the disk")

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, fail)
        said = f"the folder {tmp_path / 'data'} .stand-in.*350 MB"
        with pytest.raises(OSError, match=said) as error:
            cifar10.load_cifar10(tmp_path / "data")
    assert error.value.errno == code
    assert len(calls) == 1  # another mirror would not help
    assert list((tmp_path / "data").iterdir()) == []


def test_a_file_system_without_room_is_an_error_that_names_it(tmp_path, mirrors):
    """A real full disk, where one can be mounted."""
    mirrors("right")
    root = tmp_path / "small"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(root)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(OSError, match=f"the folder {root} .No space left.*350 MB"):
            cifar10.load_cifar10(root)
        assert list(root.iterdir()) == []
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_the_mirrors_end_with_the_data_set_s_own_host():
    assert cifar10.MIRRORS[-1] == CIFAR10.url
    assert all(url.startswith("https://") for url in cifar10.MIRRORS)


def test_the_stand_in_says_that_it_is_not_cifar10_and_is_the_same_each_time():
    recipe = get_recipe("smoke")
    data, again = (utils.get_data(recipe, "nowhere", CPU) for _ in range(2))
    assert "NOT CIFAR-10" in recipe.data
    assert "NOT CIFAR-10" in utils.Run(recipe, "bn", 1, "float32").title
    assert data.stand_in
    assert len(data.classes) == 10
    for part, same in ((data.train, again.train), (data.test, again.test)):
        images, labels = part.tensors
        assert images.shape == (len(part), 3, 32, 32)
        assert images.dtype == torch.uint8
        assert labels.bincount().tolist() == [len(part) // 10] * 10
        assert torch.equal(images, same.tensors[0])


def test_data_are_moved_to_a_device_whole():
    data = cifar10.draw_gratings()
    moved = data.to(torch.device("meta"))
    assert (moved.classes, moved.stand_in) == (data.classes, True)
    for part, same in ((moved.train, data.train), (moved.test, data.test)):
        assert [t.device.type for t in part.tensors] == ["meta", "meta"]
        assert [t.shape for t in part.tensors] == [t.shape for t in same.tensors]


@pytest.mark.cifar10
def test_the_real_data_are_50_000_and_10_000_images_of_ten_classes(cifar10_root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = utils.get_data(get_recipe("onecycle"), cifar10_root, CPU)
    assert data.classes[0] == "airplane"
    for part, size in ((data.train, 5000), (data.test, 1000)):
        assert part.tensors[1].bincount().tolist() == [size] * 10
    pixels = data.train.tensors[0].double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(cifar10.MEAN, abs=1e-3)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(cifar10.STD, abs=1e-3)

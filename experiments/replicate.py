"""Run the notebooks themselves, for every combination of norms, recipes and seeds.

    python experiments/replicate.py --norms bn gn ln --recipes onecycle --seeds 1 2 3 4 5

Each run is one notebook from top to bottom in a process of its own. A run whose result is in
results/ is skipped, and one that was cut off goes on after its last whole epoch: to continue,
give the same command again.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

import records
import utils
from cifar10 import get_root
from records import NAMES, NORMS, ROOT, SEEDS


def read_notebook(norm: str) -> nbformat.NotebookNode:
    """Return the norm's notebook; a norm without one gets another's, and its own `norm`."""
    name = NAMES[norm if norm in NORMS else NORMS[0]]
    notebook = nbformat.read(ROOT / f"ERA_Session8_{name}Normalization.ipynb", 4)
    if norm not in NORMS:
        tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
        place = next(i for i, names in enumerate(tags) if "parameters" in names) + 1
        notebook.cells.insert(place, nbformat.v4.new_code_cell(f'norm = "{norm}"'))
    return notebook


def run_notebook(run: utils.Run, keep: Path | None = None) -> str:
    """Execute the run's notebook, and return a line that says how long it took.

    With `keep`, the executed notebook is written to that folder under the run's name, also where
    a cell failed. Raises RuntimeError that names the run and says what its cell raised.
    """
    notebook = read_notebook(run.norm)
    client = NotebookClient(
        notebook,
        timeout=None,
        resources={"metadata": {"path": str(ROOT)}},  # where it runs
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # else each kernel warns of its ports
    )
    chosen = {"RECIPE": run.recipe.name, "SEED": str(run.seed), "PRECISION": run.precision}
    start = time.monotonic()
    try:
        client.execute(env=os.environ | chosen)
    except CellExecutionError as error:
        raise RuntimeError(f"{run.name} failed: {error.ename}: {error.evalue}") from None
    finally:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, keep / f"{run.name}.ipynb")
    return f"{run.name} is done, after {(time.monotonic() - start) / 60:.1f} minutes."


def run_all(function: Callable, jobs: Sequence[tuple], processes: int, threads: int) -> None:
    """Call `function(*job)` for all jobs, `processes` at a time.

    `function` returns the line to print when its job is done. A job that fails stops no other; at
    the end, SystemExit says how many did.
    """
    # What the processes inherit; a notebook runs in ROOT, where a relative path leads elsewhere.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["CIFAR10_ROOT"] = str(get_root(os.environ.get("CIFAR10_ROOT") or ROOT / "data"))
    failures = 0
    with (
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
        tqdm(total=len(jobs), unit="run") as bar,
    ):
        try:
            for future in as_completed([pool.submit(function, *job) for job in jobs]):
                error = future.exception()
                failures += error is not None
                bar.write(str(error or future.result()))
                bar.update()
        except KeyboardInterrupt:
            for process in active_children():  # nbclient catches a gentler signal, and goes on
                process.kill()
            pool.shutdown(cancel_futures=True)
            sys.exit("Interrupted. Run this again: each run goes on after its last whole epoch.")
    if failures:
        sys.exit(f"{failures} of {len(jobs)} runs failed; run this again to go on with them.")


def parse_seed(text: str) -> int:
    try:
        return utils.get_seed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None  # argparse shows no other's text


def parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r}, but must be a whole number from 1 on")
    return int(text)


def add_options(parser: argparse.ArgumentParser, seeds: Sequence[int]) -> None:
    """Add the options that runs of notebooks and trials share."""
    precision = utils.get_precision(os.environ.get("PRECISION"), utils.get_device())
    parser.set_defaults(precision=precision)
    parser.add_argument("--norms", nargs="+", choices=NAMES, default=list(NORMS))
    parser.add_argument("--seeds", nargs="+", type=parse_seed, default=list(seeds))
    parser.add_argument(
        "--processes", type=parse_count, default=os.cpu_count(), help="runs at a time"
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, SEEDS)
    parser.add_argument("--recipes", nargs="+", choices=utils.RECIPES, default=["onecycle"])
    parser.add_argument("--threads", type=parse_count, default=1, help="of a run (default 1)")
    parser.add_argument(
        "--keep",
        type=lambda text: Path(text).expanduser(),
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
    left = [run for run in runs if not records.is_done(run, ROOT / "results")]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are in results/ already.")
    jobs = [(run, options.keep) for run in left]
    run_all(run_notebook, jobs, options.processes, options.threads)


if __name__ == "__main__":
    main()

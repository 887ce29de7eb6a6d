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
from dataclasses import asdict
from multiprocessing import active_children, get_context
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402
from evidence import NAMES, load_result  # noqa: E402


def is_done(run: utils.Run, folder: Path) -> bool:
    """Tell whether the run's result is in `folder`; ValueError if another recipe's is there."""
    path = folder / f"{run.name}.json"
    if not path.exists():
        return False
    if load_result(path)["recipe"] != asdict(run.recipe):
        raise ValueError(
            f"{path} is of other hyperparameters than recipe {run.recipe.name!r} has now. "
            "Move it away to run it anew."
        )
    return True


def run_notebook(run: utils.Run, keep: Path | None = None) -> str:
    """Execute the run's notebook, and return a line that says how long it took.

    With `keep`, the executed notebook is written to that folder under the run's name, also where
    a cell failed. Raises RuntimeError that names the run and says what its cell raised.
    """
    notebook = nbformat.read(ROOT / f"ERA_Session8_{NAMES[run.norm]}Normalization.ipynb", 4)
    client = NotebookClient(
        notebook,
        timeout=None,
        resources={"metadata": {"path": str(ROOT)}},  # where it runs
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # else each kernel warns of its ports
    )
    start = time.monotonic()
    try:
        client.execute(env=os.environ | {"RECIPE": run.recipe.name, "SEED": str(run.seed)})
    except CellExecutionError as error:
        raise RuntimeError(f"{run.name} failed: {error.ename}: {error.evalue}") from None
    finally:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, keep / f"{run.name}.ipynb")
    return f"{run.name} is done, after {(time.monotonic() - start) / 60:.1f} minutes."


def run_all(
    function: Callable, jobs: Sequence[tuple], processes: int, threads: int
) -> list[Exception]:
    """Call `function(*job)` for all jobs, `processes` at a time, and return what failed.

    `function` returns the line to print when its job is done. A job that fails stops no other.
    """
    # What the processes inherit; a notebook runs in ROOT, where a relative path leads elsewhere.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["CIFAR10_ROOT"] = str(Path(os.environ.get("CIFAR10_ROOT", ROOT / "data")).resolve())
    failures = []
    with (
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
        tqdm(total=len(jobs), unit="run") as bar,
    ):
        try:
            for future in as_completed([pool.submit(function, *job) for job in jobs]):
                if error := future.exception():
                    failures.append(error)
                bar.write(str(error or future.result()))
                bar.update()
        except KeyboardInterrupt:
            for process in active_children():  # nbclient catches a gentler signal, and goes on
                process.kill()
            pool.shutdown(cancel_futures=True)
            sys.exit("Interrupted. Run this again: each run goes on after its last whole epoch.")
    return failures


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--norms", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--recipes", nargs="+", choices=utils.RECIPES, default=["onecycle"])
    parser.add_argument("--seeds", nargs="+", type=utils.get_seed, default=[1, 2, 3, 4, 5])
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run (default 1)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep executed notebooks there")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    runs = [
        utils.Run(utils.get_recipe(recipe), norm, seed)
        for seed in options.seeds  # the first seed of all comes first
        for recipe in options.recipes
        for norm in options.norms
    ]
    left = [run for run in runs if not is_done(run, ROOT / "results")]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are in results/ already.")
    jobs = [(run, options.keep) for run in left]
    failures = run_all(run_notebook, jobs, options.processes, options.threads)
    if failures:
        sys.exit(f"{len(failures)} of {len(left)} runs failed; run this again to go on with them.")


if __name__ == "__main__":
    main()

"""Run the notebooks for every combination of norms, recipes and seeds.

    python -m experiments.replicate --norms bn gn ln --recipes onecycle --seeds 1 2 3 4 5

Each run is one notebook, which papermill executes in its own process. A run whose result is in
results/ is skipped. To resume interrupted runs after their last finished epoch, give the same
command again. The environment variable PRECISION chooses the precision.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from cifar10 import CIFAR, load_cifar10
from experiments import results as records
from experiments.results import COMPARED, NOTEBOOKS, ROOT, SEEDS
from models import NORMS
from runs import RECIPES, Recipe, Run, get_seed


def make_job(run: Run) -> list[str]:
    """Return the papermill command for the run; norms without a notebook use that of bn."""
    notebook = NOTEBOOKS.get(run.norm, NOTEBOOKS["bn"]).name
    options = f"--no-progress-bar --log-level ERROR -p norm {run.norm} -p recipe {run.recipe.name}"
    options += f" -p seed {run.seed} -p precision {run.precision} -p results results"
    return ["papermill", notebook, os.devnull, *options.split()]


def run_job(name: str, job: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a job, print its lines after its name, and return a sentence with the time it took.

    Raises RuntimeError if the job fails.
    """
    start, line = time.monotonic(), ""
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    options = {"cwd": ROOT, "env": os.environ | environment, "encoding": "utf-8", **piped}
    command = [sys.executable, "-m", *job]
    with subprocess.Popen(command, errors="replace", **options) as process:
        for line in process.stdout:
            if "[IPKernelApp] WARNING" not in line:  # every kernel gives one
                print(f"{name}: {line.rstrip()}", flush=True)
    if process.returncode:
        raise RuntimeError(f"{name} failed (status {process.returncode}): {line.strip()}")
    return f"{name} is done, after {(time.monotonic() - start) / 60:.1f} minutes."


def run_all(jobs: Mapping[str, Sequence[str]], processes: int, threads: int) -> None:
    """Run jobs (a module and its arguments), `processes` at a time; exit if any failed."""
    shared = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    shared["CIFAR10_ROOT"] = str(records.find_root())  # absolute, since jobs run in ROOT
    pool, failures, start = ThreadPoolExecutor(processes), 0, time.monotonic()
    futures = [pool.submit(run_job, name, job, shared) for name, job in jobs.items()]
    try:
        for done, future in enumerate(as_completed(futures), 1):
            failures += future.exception() is not None
            left = (time.monotonic() - start) / done * (len(jobs) - done) / 60
            said = future.exception() or future.result()
            print(f"{said} [{done} of {len(jobs)}, about {left:.0f} minutes left]", flush=True)
    except KeyboardInterrupt:
        os._exit(130)  # start no other job; Ctrl-C in a terminal interrupts the running ones, too
    if failures:
        sys.exit(f"{failures} of {len(jobs)} runs failed; to go on, give the same command again.")


def run_left(runs: Sequence[Run], folder: Path, make_job, options) -> None:
    """Print how many runs have their result in `folder`, and run the jobs of the others."""
    left = [run for run in runs if not records.is_done(run, folder)]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are done already.", flush=True)
    if any(run.recipe.data == CIFAR for run in left):
        load_cifar10(records.find_root())  # downloaded once, before the jobs need it
    run_all({run.name: make_job(run) for run in left}, options.processes, options.threads)


def get_runs(recipes: Sequence[Recipe], options: argparse.Namespace) -> list[Run]:
    """Return the runs of all combinations, without duplicates, seed by seed."""
    combinations = itertools.product(options.seeds, recipes, options.norms)
    runs = (Run(recipe, norm, s, options.precision) for s, recipe, norm in combinations)
    return list(dict.fromkeys(runs))


def add_options(parser: argparse.ArgumentParser, seeds: Sequence[int]) -> None:
    """Add the options that runs of notebooks and of claims share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--seeds", nargs="+", type=get_seed, default=list(seeds))
    parser.add_argument("--processes", type=int, default=cores, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads per run (default 1)")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Run the notebooks for many seeds.")
    parser.set_defaults(precision=records.choose_precision())
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(COMPARED))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["muon"])
    add_options(parser, SEEDS)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    runs = get_runs([RECIPES[name] for name in options.recipes], options)
    run_left(runs, ROOT / "results", make_job, options)


if __name__ == "__main__":
    main()

"""Renew the README's table and figures from results/.

    python experiments/evidence.py

The figures of misclassified images need CIFAR-10 in the folder CIFAR10_ROOT (default ./data).
"""

import json
import os
import re
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402
from models import Session8Net  # noqa: E402

NAMES = {"bn": "Batch", "gn": "Group", "ln": "Layer"}
PUBLISHED = {"bn": (81.10, 78.86), "gn": (80.30, 77.88), "ln": (79.91, 76.94)}  # train, test (%)


def load_results(folder: Path) -> dict[tuple[str, str, int], dict]:
    """Return the results in `folder`, each under its (recipe, norm, seed)."""
    results = (json.loads(path.read_text()) for path in sorted(folder.glob("*.json")))
    return {(r["recipe"]["name"], r["norm"], r["seed"]): r for r in results}


def get_accuracy(result: dict) -> tuple[float, float]:
    """Return the final epoch's train and test accuracy in percent, never the best epoch's."""
    return result["history"]["train_acc"][-1], result["history"]["test_acc"][-1]


def make_table(results: dict) -> str:
    """Return the table of final accuracies of seed 1 beside the published ones, as Markdown."""
    header = ["normalization", "`onecycle` train", "`onecycle` test"]
    header += ["`reference` train", "`reference` test", "published train", "published test"]
    rows = [header, ["---"] + ["---:"] * 6]
    for norm, name in NAMES.items():
        ours = [get_accuracy(results[recipe, norm, 1]) for recipe in ("onecycle", "reference")]
        numbers = [f"{value:.2f}" for pair in (*ours, PUBLISHED[norm]) for value in pair]
        numbers[1] = f"**{numbers[1]}**"
        rows.append([f"{name} (`{norm}`)", *numbers])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def renew(text: str, name: str, content: str) -> str:
    """Return `text` with what stands between the markers of `name` replaced by `content`."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    lines = f"\n{content}\n\n"
    renewed, count = re.subn(pattern, lambda m: m[1] + lines + m[2], text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the text has {count} places marked <!-- {name} -->, but must have one")
    return renewed


def load_model(result: dict, folder: Path) -> Session8Net:
    """Return the trained network of a result, from the weights beside its JSON."""
    recipe, norm = result["recipe"], result["norm"]
    model = Session8Net(norm, dropout=recipe["dropout"])
    path = folder / f"{recipe['name']}-{norm}-seed{result['seed']}.pt"
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return model.to(utils.get_device(), memory_format=utils.get_memory_format(norm))


def draw_figures(results: dict, folder: Path) -> None:
    """Draw curves and misclassified images of the three `onecycle` runs of seed 1 to `folder`."""
    root = os.environ.get("CIFAR10_ROOT", ROOT / "data")
    data = utils.get_data(utils.get_recipe("onecycle"), root, utils.get_device())
    loader = utils.get_loader(data.test, utils.get_test_transforms(), 128)
    for norm, name in NAMES.items():
        result = results["onecycle", norm, 1]
        title = f"{name} normalization, recipe onecycle, seed 1"
        curves = utils.post_accuracyplots(result["history"], title)
        curves.savefig(folder / f"curves-{norm}.png", dpi=120)
        prediction, _ = utils.predict(load_model(result, ROOT / "results"), loader)
        wrong = utils.post_misclassified(data.test, prediction, data.classes, title)
        wrong.savefig(folder / f"misclassified-{norm}.png", dpi=100)


def main() -> None:
    results = load_results(ROOT / "results")
    readme = ROOT / "README.md"
    readme.write_text(renew(readme.read_text(), "results", make_table(results)))
    draw_figures(results, ROOT / "images")


if __name__ == "__main__":
    main()

"""What `qkvit quickstart` tells: tables for the screen, the facts as CSV, where everything is."""

import csv
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from .tables import table

STATISTICS = ("entropy", "masses", "distance")  # the groups that the facts are from
# Statistics of `collect`, and how they are called on the screen.
COLUMNS = {
    "entropy": "entropy",
    "entropy_share": "/ log N",
    "distance": "distance",
    "on_class_token": "on class",
    "on_self": "on itself",
}


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share of `count` (Wilson 1927).

    Example:

    ```python
    >>> low, high = wilson_interval(0.97, 1000)
    >>> round(low, 3), round(high, 3)
    (0.957, 0.979)

    ```
    """
    z = 1.959964
    centre = share + z**2 / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return (centre - spread) / scale, (centre + spread) / scale


def accuracy_table(accuracies: dict[str, float], count: int) -> str:
    """The accuracies beside each other.

    Example:

    ```python
    >>> print(accuracy_table({"QKViT": 0.98, "logistic regression": 0.901}, 1000))
      1,000 held-out digits  accuracy    95 % interval
      QKViT                    98.0 %  96.9 to 98.7 %
      logistic regression      90.1 %  88.1 to 91.8 %

    ```
    """
    rows = [[f"{count:,} held-out digits", "accuracy", "95 % interval"]]
    for name, accuracy in accuracies.items():
        low, high = wilson_interval(accuracy, count)
        rows.append([name, f"{accuracy:.1%}".replace("%", " %"), f"{100 * low:.1f} to {100 * high:.1f} %"])
    return table(rows)


def head_facts(collected: Any, num_tokens: int) -> list[dict[str, Any]]:
    """A row for each head of what `collect` gave: means over the images, and the standard errors of these means."""
    found = {}
    for name in COLUMNS.keys() - {"entropy_share"}:
        found[name] = collected.mean(name)  # (L, H)
        found[f"{name}_error"] = collected.standard_deviation(name) / math.sqrt(collected.images)
    for ending in ("", "_error"):
        found[f"entropy_share{ending}"] = found[f"entropy{ending}"] / math.log(num_tokens)
    names = [*COLUMNS, *(f"{name}_error" for name in COLUMNS)]
    return [
        {
            "layer": layer,
            "head": head,
            "images": collected.images,
            **{name: found[name][place, head].item() for name in names},
        }
        for place, layer in enumerate(collected.layers)
        for head in range(found["entropy"].shape[1])
    ]


def facts_table(facts: dict[str, list[dict[str, Any]]], equal: dict[str, float], num_tokens: int) -> str:
    """The facts of every trained head, the means over untrained ones, and those of equal weights on all tokens."""
    trained, untrained = facts["trained"], facts["untrained"]
    rows = [["", *COLUMNS.values()]]
    rows += [[f"layer {fact['layer']}, head {fact['head']}", *_numbers(fact)] for fact in trained]
    means = {name: sum(fact[name] for fact in untrained) / len(untrained) for name in COLUMNS}
    rows.append(["untrained, mean", *_numbers(means)])
    rows.append(["equal weights", *_numbers({**equal, "entropy_share": equal["entropy"] / math.log(num_tokens)})])
    explanation = (
        f"  Means over {trained[0]['images']:,} held-out digits. Entropy in nats: low where a token looks at few"
        " others.\n  From the patches: the distance to the patches they look at, in patches; the weight on the class"
        "\n  token and on themselves. For comparison, an untrained model, and equal weights on all tokens."
    )
    return f"{table(rows)}\n{explanation}"


def _numbers(values: dict[str, Any]) -> list[str]:
    return [f"{values[name]:.2f}" for name in COLUMNS]


def write_facts(facts: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """The facts of each model as CSV, with the standard errors of the means."""
    rows = [{"weights": weights, **fact} for weights, of_heads in facts.items() for fact in of_heads]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def farewell(output: Path, record: dict[str, Any]) -> str:
    """Where everything is, and what to try next."""
    minutes, seconds = divmod(round(sum(record["seconds"].values())), 60)
    contents = [
        ["model/", "the model, its code and its image processor"],
        [
            "pictures/",
            "attention_layer_*.png: where each head looks; qkv_layer_*.png: Q, K and V; training.png",
        ],
        ["digits/", "the held-out digits in class folders, to measure it on"],
        ["head_facts.csv", "the table above, with standard errors"],
        ["recipe.yaml", "how it was trained: a start for recipes of your own"],
        ["run.json", "settings, versions, accuracies, times"],
    ]
    lines = [
        f"\nDone in {minutes} min {seconds} s. In {output.absolute()}:",
        table(contents, left=2),
        f"\nTry next: start {sys.executable} and type",
        "  from transformers import pipeline",
        f'  classify = pipeline("image-classification", "{output / "model"}", trust_remote_code=True)',
        f'  print(classify("{output / "digits" / "7" / "0.png"}"))',
        "or measure it, on these digits or on images of your own:",
        f"  {_command()} evaluate {output / 'model'} --data {output / 'digits'}",
        f"  {_command()} statistics {output / 'model'} --data {output / 'digits'} --weights",
    ]
    if record["quick"]:
        lines.append(
            "\nThis was --quick: the model has hardly been trained; run it without --quick for one that works."
        )
    return "\n".join(lines)


def _command() -> str:
    """How this installation's `qkvit` is called: by its path where the shell would not find it, as after `make run`."""
    beside = Path(sys.executable).with_name("qkvit")
    if shutil.which("qkvit") == str(beside) or not beside.is_file():
        return "qkvit"
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)

"""Write the card of each network that comes with ftwt, from its `run.json`: nothing is typed.

python tools/model_card.py           # rewrite all cards
python tools/model_card.py --check   # only say whether any would change
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ftwt import shipped
from ftwt.config import DataConfig, PruneConfig
from ftwt.files.atomic import replacing
from ftwt.shipped import RUN, Name

CARD = "MODEL_CARD.md"
DATASETS = {  # name in ours -> title, id on the Hugging Face Hub, classes
    "cifar10": ("CIFAR-10", "uoft-cs/cifar10", 10),
    "cifar100": ("CIFAR-100", "uoft-cs/cifar100", 100),
    "cifar10-embedded": ("CIFAR-10, the 3,000 images in the package", "uoft-cs/cifar10", 10),
}
FAMILIES = {
    "resnet": "ResNet-",
    "vgg": "VGG",
    "mobilenet-v1": "MobileNetV1",
    "mobilenet-v2": "MobileNetV2",
}
PRECISIONS = {"f16": "IEEE half precision", "bf16": "bfloat16", "fp32": "single precision"}


def card(result: Mapping[str, Any]) -> str:
    """Lay out a network's card.

    Args:
        result: Its `run.json`, with `shipped`.
    """
    told = result["shipped"]
    parts = [front_matter(result), f"# {told['name']}", about(result)]
    parts += ["## Load it", loading(result), "## Figures", figures(result)]
    if told["kind"] == "dynamic":
        parts += ["## What the gates are worth", worth(result)]
    parts += ["## Training", training(result), "## Use and limits", limits(result)]
    return "\n\n".join(parts) + "\n"


def front_matter(result: Mapping[str, Any]) -> str:
    """What the Hugging Face Hub reads."""
    name, (title, repository, _) = result["shipped"]["name"], dataset(result)
    tags = ["dynamic-pruning", "conditional-computation"] if kind(result) == "dynamic" else []
    tags += ["pruning"] if kind(result) == "static" else []
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "library_name: ftwt",
            "pipeline_tag: image-classification",
            *(["tags:", *(f"- {tag}" for tag in tags)] if tags else []),
            "datasets:",
            f"- {repository}",
            "metrics:",
            "- accuracy",
            "model-index:",
            f"- name: {name}",
            "  results:",
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      name: {title}",
            f"      type: {repository}",
            "      split: test",
            "    metrics:",
            "    - type: accuracy",
            f"      value: {result['test']['top1']:.4f}",
            "      name: top-1",
            "---",
            "",
            f"<!-- Written by tools/model_card.py from {RUN}. -->",
        ]
    )


def about(result: Mapping[str, Any]) -> str:
    """What the network is."""
    config, told = result["config"], result["shipped"]
    title, _, classes = dataset(result)
    base = f"{family(config['model'])} for the {classes} classes of {title}, images of 32x32"
    if told["kind"] == "dense":
        what = f"{base}: the dense network, which computes every filter for every image."
    elif told["kind"] == "static":
        what = (
            f"{base}, pruned: each layer computes the same filters for every image. It is the "
            "static twin of a dynamic network, there to be compared with it: the same cost, masks "
            "that never change."
        )
    else:
        what = (
            f"{base}, with gates: in each layer a small predictor looks at the layer's input and "
            "says which filters to compute for this image. The method is that of [Fire Together "
            "Wire Together](https://arxiv.org/abs/2110.08232) (CVPR 2022), implemented "
            "independently in `ftwt`."
        )
    size = told["weights_bytes"] / 1e6
    return (
        f"{what}\n\nWeights: {size:.2f} MB, {PRECISIONS[told['precision']]}; statistics, biases "
        "and thresholds in single precision. It computes in single precision."
    )


def loading(result: Mapping[str, Any]) -> str:
    """How to load it."""
    name = result["shipped"]["name"]
    lines = ["```python", "import ftwt", "", f'network = ftwt.from_pretrained("{name}")']
    if kind(result) == "dynamic":
        lines += [
            "logits, gates = network(images, return_gates=True)  # gates[unit].mask: (B, C) bool",
            "engine = ftwt.compile(network)  # native: skipped filters cost nothing",
        ]
    else:
        lines += ["logits = network(images)"]
    images = DataConfig.from_json(result["config"]["data"]).dataset
    how = f"`ftwt.data.load({images!r}, train=False)` knows them".replace("'", '"')
    lines += ["```", "", "```", f"ftwt evaluate {name}", f"ftwt compile {name} -o net.ftwt", "```"]
    return "\n".join(lines) + (
        f"\n\nImages are (B, 3, 32, 32), scaled to [0, 1], then normalised by the dataset's mean "
        f"and standard deviation for each channel; {how}."
    )


def figures(result: Mapping[str, Any]) -> str:
    """Accuracy and cost, on both splits."""
    told, splits = result["shipped"], ("validation", "test")
    evaluations = [result[split] for split in splits]
    trained = [told["trained"][split] for split in splits]
    rows: list[tuple[str, ...]] = [
        ("top-1", *(percent(e["top1"]) for e in evaluations)),
        ("top-1 before the weights were rounded", *(percent(e["top1"]) for e in trained)),
        ("top-5", *(percent(e["top5"]) for e in evaluations)),
        ("MACs of the dense network", *(f"{e['dense_macs'] / 1e6:.2f} M" for e in evaluations)),
    ]
    if told["kind"] != "dense":
        macs = [f"{e['executed_macs'] / 1e6:.2f} M" for e in evaluations]
        spread = [f"{percent(e['reduction'])} ± {percent(e['reduction_std'])}" for e in evaluations]
        rows += [
            ("MACs executed, mean over images", *macs),
            ("reduction, `executed` (± over images)", *spread),
            ("reduction, `published`", *(percent(e["published_reduction"]) for e in evaluations)),
        ]
    if told["kind"] == "dynamic":
        asked, predicted = result.get("asked_reduction"), result.get("predicted_reduction")
        if asked is not None:
            rows.append(("reduction asked", percent(asked), percent(asked)))
        if predicted is not None:
            missed = [f"{100 * (e['reduction'] - predicted):+.2f} points" for e in evaluations]
            rows += [
                ("reduction predicted before training", percent(predicted), percent(predicted)),
                ("achieved - predicted", *missed),
            ]
        shares = [
            " / ".join(f"{e['dynamism'][key]:.0%}" for key in ("always", "sometimes", "never"))
            for e in evaluations
        ]
        rows.append(("filters that fire always / sometimes / never", *shares))
    head = ("", *(f"{split}, {result[split]['images']:,} images" for split in splits))
    counted = (
        "\n`executed` counts every layer and the predictors; `published` counts as the paper does, "
        "which flatters. A MAC is one multiply-accumulate. Both are defined in docs/counting.md."
    )
    made = told["provenance"]
    return (
        table(head, rows)
        + (f"{counted}\n" if told["kind"] != "dense" else "")
        + f"\nThe figures are those of the weights as stored, evaluated on a CPU "
        f"({made['hardware']['cpu']}, torch {made['versions']['torch']}). On such a machine "
        "`ftwt evaluate` gives them exactly; on others, an image whose decision is a tie may turn."
    )


def worth(result: Mapping[str, Any]) -> str:
    """The static twin beside the dynamic network."""
    told = result["shipped"]
    rows = []
    if told["dense"] is not None:
        rows.append(("dense, where it began", *compared(told["dense"]["test"])))
    rows.append(("this network", *compared(result["test"])))
    if told["twin"] is None:
        return table(("", "top-1, test", "reduction, `executed`"), rows) + (
            "\nNo static twin was trained beside this network, so nothing here says whether its "
            "gates are worth more than one fixed mask of the same cost."
        )
    twin = told["twin"]["test"]
    rows.append(("its static twin", *compared(twin)))
    ahead = round(100 * (result["test"]["top1"] - twin["top1"]), 2)
    verdict = f"{abs(ahead):.2f} points {'above' if ahead > 0 else 'below'}"
    verdict = verdict if ahead else "as accurate as"
    return table(("", "top-1, test", "reduction, `executed`"), rows) + (
        "\nThe static twin is the same network with each layer's mask frozen to its most frequent "
        f"filters, trained as long. The dynamic network is {verdict} it: one seed each. Both began "
        "without a repair. Where layers are repaired first, the fixed mask is level with gates or "
        "ahead of them in this network, with training and without: docs/results.md."
    )


def training(result: Mapping[str, Any]) -> str:
    """How it was trained."""
    made, train = result["provenance"], result["config"]["train"]
    hardware, hours = made["hardware"], result["training"]["seconds"] / 3600
    machine = hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} threads"
    data = result["config"]["data"]
    rows = [
        ("command", f"`{made['command']}`"),
        ("commit", commit(made)),
        ("seed", str(made["seed"])),
        ("hardware", machine),
        ("time", f"{hours:.2f} hours"),
        ("epochs", f"{train['epochs']}, batches of {train['batch_size']}, {train['precision']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in made["versions"].items())),
        (
            "images",
            f"the training images of {dataset(result)[0]} but {data['validation']:,}, held out for "
            "validation",
        ),
    ]
    start = result["config"].get("weights")
    dense = result["shipped"]["dense"]
    if dense is not None or start not in (None, "pretrained"):
        named = start if dense is None else dense["name"]
        rows.append(("began with", f"the dense network `{named}`"))
    if result["config"].get("prune") is not None and kind(result) == "dynamic":
        standard = json.loads(json.dumps(PruneConfig().to_json()))
        other = {k: v for k, v in result["config"]["prune"].items() if standard.get(k) != v}
        told = ", ".join(f"{k} {v}" for k, v in other.items() if not isinstance(v, dict))
        rows.append(("gates", told or "as `ftwt.convert` makes them by default"))
    return table(("", ""), rows) + (
        f"\nAll settings and the curve are in [{RUN}]({RUN}). The last epoch is the result; no "
        "epoch and no setting was chosen on the test images."
    )


def limits(result: Mapping[str, Any]) -> str:
    """What it is for, and what not."""
    title, _, _ = dataset(result)
    text = (
        f"For research on efficient inference, as a baseline, and to try the library. It knows the "
        f"classes of {title} and images of 32x32, and names one of these classes for any image at "
        "all. It was not tested for uses on which something depends."
    )
    if kind(result) == "dynamic":
        text += (
            " Its cost depends on the image, so its time tells something of the image; and unusual "
            "images may cost more than the mean."
        )
    if kind(result) != "dense":
        text += (
            f" With `{result['config']['model']}` to look again at the images that it is unsure of "
            "(`ftwt.second_look`), it gives up less: docs/results.md."
        )
    return text + " One network of one seed; other seeds give slightly other figures."


def compared(evaluation: Mapping[str, Any]) -> tuple[str, str]:
    """Accuracy and reduction of one of several networks."""
    return percent(evaluation["top1"]), percent(evaluation["reduction"])


def kind(result: Mapping[str, Any]) -> str:
    """`dense`, `dynamic` or `static`."""
    return result["shipped"]["kind"]


def dataset(result: Mapping[str, Any]) -> tuple[str, str, int]:
    """Title, id on the Hub and classes of the images."""
    return DATASETS[result["config"]["data"]["dataset"]]


def family(model: str) -> str:
    """What people call an architecture: `cifar10-resnet20` is a ResNet-20."""
    _, _, own = model.partition("-")
    for prefix, title in FAMILIES.items():
        if own.startswith(prefix):
            rest = own.removeprefix(prefix).removesuffix("-bn")
            return f"{title}{rest}{' with batch norm' if own.endswith('-bn') else ''}"
    return own


def commit(made: Mapping[str, Any]) -> str:
    """The commit of a result, and whether files differed from it."""
    git = made.get("git")
    return "" if git is None else git["commit"] + (", with changes" if git["dirty"] else "")


def percent(share: float) -> str:
    """Write a share as a percentage."""
    return f"{round(100 * share, 2) + 0.0:.2f}%"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Lay out a Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> int:
    """Rewrite, or check, the cards of all networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    check = parser.parse_args().check
    stale = []
    for name in shipped.names():
        path, made = shipped.folder(name) / CARD, card(shipped.result(name))
        if not path.is_file() or path.read_text(encoding="utf-8") != made:
            stale.append(str(Name.read(name)))
            if not check:
                with replacing(path) as temporary:
                    temporary.write_text(made, encoding="utf-8")
    print("\n".join(f"{'stale' if check else 'written'}: {name}" for name in stale) or "up to date")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

"""The data of the figures about one run, pruned network or recording, as plain rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..records.recording import Recording
from .reading.found import Found, LoneRecording
from .reading.records import Log, Pruned, Run
from .rows import Row

Subject = Run | Pruned | LoneRecording
Source = Subject | Recording
BINS = 40  # of executed MACs, where images are counted


def subjects(found: Found) -> list[Subject]:
    """Whom figures of one network are about: runs, one a dynamic setting, prunings, recordings.

    Of a setting's runs it is the first that has a recording, or the first.
    """
    listed: list[Subject] = []
    for part in found.groups:
        if part.kind == "dynamic":
            recorded = [run for run in part.runs if run.recording_path is not None]
            listed.append((recorded or list(part.runs))[0])
    return [*listed, *found.pruned, *found.recordings]


def recording_of(subject: Source) -> Recording:
    """The recording of a run or pruning, or the recording itself.

    Raises:
        ValueError: There is none; the message names the command that makes it.
    """
    found = subject if isinstance(subject, Recording) else subject.recording()
    if found is None:
        assert isinstance(subject, Run | Pruned)
        where = subject.folder if isinstance(subject, Run) else subject.path.parent
        raise ValueError(
            f"{subject.name} has no recording, which this shows; make it with "
            f"`ftwt evaluate {where} --record`"
        )
    return found


def subject_name(subject: Source) -> str:
    """What to call a subject in a figure: its name, or its network's."""
    return subject.network if isinstance(subject, Recording) else subject.name


def unit_rows(subject: Source) -> list[Row]:
    """What each layer's gate did, in execution order.

    Shares lie in [0, 1]. `macs_share` is the share of the dense network's MACs that the layer's own
    convolution has, `predictor_share` that of its predictor; None without a recording.

    Returns:
        A row a layer: filters that fired for every image (`always`, core filters), for some
        (`sometimes`) and for none (`never`); the share computed (`keep`), its mean over images and
        the standard deviation.
    """
    if isinstance(subject, LoneRecording | Recording) or subject.recording_path is not None:
        recording = recording_of(subject)
        return [_of_recording(recording, number) for number in range(len(recording.units))]
    return [
        {
            "unit": unit.name,
            "depth": number,
            "channels": unit.channels,
            "keep": unit.keep,
            "keep_std": unit.keep_std,
            "always": unit.always,
            "sometimes": unit.sometimes,
            "never": unit.never,
            "macs_share": None,
            "predictor_share": None,
        }
        for number, unit in enumerate(subject.test.units, 1)
    ]


def _of_recording(recording: Recording, number: int) -> Row:
    unit = recording.units[number]
    masks = recording.masks(unit.name)
    rates, keep = masks.mean(0), masks.mean(1)
    always, never = int((rates == 1).sum()), int((rates == 0).sum())
    return {
        "unit": unit.name,
        "depth": number + 1,
        "channels": unit.channels,
        "keep": float(keep.mean()),
        "keep_std": float(keep.std()),
        "always": always,
        "sometimes": unit.channels - always - never,
        "never": never,
        "macs_share": unit.macs / recording.dense_macs,
        "predictor_share": unit.predictor_macs / recording.dense_macs,
    }


def training_rows(run: Run | Log) -> list[Row]:
    """The course of a training, `epoch` being what of it was done, in epochs.

    `task_loss` is the training loss without the mask loss: where the mask loss took no part that is
    the whole loss; elsewhere it is known only if the file says so, and None otherwise.

    Returns:
        Rows of `kind` `step` (some steps, on training batches) and `epoch` (training batches, and
        the held-out images: `val_`).
    """
    each = [line["step"] / line["epoch"] for line in run.history if line.get("step")]
    lines: list[tuple[str, float, dict[str, Any]]] = [
        ("epoch", float(line["epoch"]), line) for line in run.history
    ]
    if each:
        lines += [("step", line["step"] / each[-1], line) for line in run.steps]
    rows: list[Row] = []
    for kind, epoch, line in sorted(lines, key=lambda one: one[1]):
        task = line.get("task_loss")
        if task is None and "mask_loss" not in line:
            task = line.get("loss")
        row: Row = {"kind": kind, "epoch": epoch, "task_loss": task}
        row["val_task_loss"] = line.get("val_loss")
        for name in (
            "loss",
            "mask_loss",
            "mask_accuracy",
            "accuracy",
            "val_accuracy",
            "reduction",
            "val_reduction",
            "r",
            "lr",
        ):
            row[name] = line.get(name)
        rows.append(row)
    return rows


def image_rows(recording: Recording) -> list[Row]:
    """What each recorded image was taken for, and what it took: a row for each of the N images."""
    reduction = recording.reduction
    return [
        {
            "image": number,
            "label": recording.classes[recording.labels[number]],
            "prediction": recording.classes[recording.predictions[number]],
            "correct": bool(recording.predictions[number] == recording.labels[number]),
            "confidence": float(recording.confidence[number]),
            "executed_macs": float(recording.executed_macs[number]),
            "reduction": float(reduction[number]),
        }
        for number in range(len(recording))
    ]


def class_rows(recording: Recording) -> list[Row]:
    """How the work is distributed over the images of each class, the cheapest class first."""
    rows: list[Row] = []
    for label, name in enumerate(recording.classes):
        mine = recording.labels == label
        if not mine.any():
            continue
        macs = recording.executed_macs[mine].astype(np.float64)
        low, lower, median, upper, high = np.percentile(macs, [5, 25, 50, 75, 95])
        rows.append(
            {
                "class": name,
                "images": int(mine.sum()),
                "mean_macs": float(macs.mean()),
                "std_macs": float(macs.std()),
                "p5_macs": float(low),
                "p25_macs": float(lower),
                "median_macs": float(median),
                "p75_macs": float(upper),
                "p95_macs": float(high),
                "top1": float(recording.correct[mine].mean()),
            }
        )
    return sorted(rows, key=lambda row: row["mean_macs"])


def work_rows(recording: Recording) -> list[Row]:
    """How many images took how much: a row for each of 40 equal spans of executed MACs."""
    macs = recording.executed_macs.astype(np.float64)
    edges = np.histogram_bin_edges(macs, BINS)
    right, _ = np.histogram(macs[recording.correct], edges)
    wrong, _ = np.histogram(macs[~recording.correct], edges)
    return [
        {"from_macs": float(low), "to_macs": float(high), "right": int(r), "wrong": int(w)}
        for low, high, r, w in zip(edges[:-1], edges[1:], right, wrong, strict=True)
    ]


def extreme_rows(recording: Recording, count: int = 8) -> list[Row]:
    """The cheapest and the dearest of the images that are kept as pictures.

    Returns:
        Rows of `end` `cheapest`, cheapest first, then `dearest`, dearest first; `picture` is the
        place in `recording.pictures`. Of a second look, `passes` says how many the image took.
    """
    order = np.argsort(recording.executed_macs[recording.shown], kind="stable")
    count = min(count, len(order) // 2)
    reduction, rows = recording.reduction, []
    for end, places in (("cheapest", order[:count]), ("dearest", order[::-1][:count])):
        for place in places:
            image = int(recording.shown[place])
            rows.append(
                {
                    "end": end,
                    "picture": int(place),
                    "image": image,
                    "label": recording.classes[recording.labels[image]],
                    "prediction": recording.classes[recording.predictions[image]],
                    "executed_macs": float(recording.executed_macs[image]),
                    "reduction": float(reduction[image]),
                }
                | ({} if recording.passes is None else {"passes": int(recording.passes[image])})
            )
    return rows


def heatmap_rows(
    recording: Recording,
    *,
    units: list[str] | None = None,
    images: list[int] | None = None,
) -> list[Row]:
    """Input, dense heatmap and dynamic heatmap of chosen layers and images.

    Args:
        recording: With heatmaps.
        units: Layers; if not given, the one a quarter of the way down those with
            heatmaps.
        images: Numbers of recorded images that are kept as pictures; if not given, four from the
            cheapest to the dearest.

    Returns:
        A row for each image and layer. `dense` and `dynamic` are h lists of w values, `input` is H
        lists of W lists of red, green and blue; `computed` is the share of the layer's filters that
        were computed for the image, `reduction` that of the network's MACs that was saved.

    Raises:
        ValueError: A layer has no heatmaps, or an image is not among the pictures.
    """
    mapped = list(recording.dense_heatmaps)
    if not mapped:
        return []
    units = [mapped[(len(mapped) - 1) // 4]] if units is None else units
    shown = recording.shown.tolist()
    if images is None:
        images = spread_images(recording)
    reduction, rows = recording.reduction, []
    for image in images:
        if image not in shown:
            raise ValueError(f"image {image} is none of the {len(shown)} that are kept as pictures")
        place = shown.index(image)
        for unit in units:
            if unit not in mapped:
                raise ValueError(f"no heatmaps of {unit!r}; there are those of {', '.join(mapped)}")
            rows.append(
                {
                    "image": image,
                    "label": recording.classes[recording.labels[image]],
                    "prediction": recording.classes[recording.predictions[image]],
                    "unit": unit,
                    "computed": float(recording.masks(unit)[image].mean()),
                    "reduction": float(reduction[image]),
                    "input": recording.pictures[place].tolist(),
                    "dense": recording.dense_heatmaps[unit][place].astype(float).tolist(),
                    "dynamic": recording.dynamic_heatmaps[unit][place].astype(float).tolist(),
                }
            )
    return rows


def spread_images(recording: Recording, count: int = 4) -> list[int]:
    """Numbers of images that are kept as pictures, from the cheapest to the dearest."""
    order = np.argsort(recording.executed_macs[recording.shown], kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [int(recording.shown[order[place]]) for place in places]

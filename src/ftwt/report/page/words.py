"""The words of the page: the answer in sentences and facts, numbers as people read them."""

from __future__ import annotations

from dataclasses import dataclass

from ..answer import Answer, Spread

MINUS = "\N{MINUS SIGN}"
NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Fact:
    """A figure of the answer: what it was, what it is, and what to know of it; or several."""

    name: str
    value: str = ""
    before: str = ""
    note: str = ""
    parts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class AnswerWords:
    """The answer as the page says it."""

    verdict: str
    facts: tuple[Fact, ...]
    twin: str
    has_twin: bool


def percent(share: float, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage, with a true minus sign."""
    text = f"{100 * share:.{digits}f}%"
    return text.replace("-", MINUS) if float(text[:-1]) else f"{0:.{digits}f}%"


def percent_spread(value: Spread, digits: int = 1) -> str:
    """A mean share, and its standard deviation if there are several runs."""
    text = percent(value.mean, digits)
    return text if value.std is None else f"{text} ±{NBSP}{percent(value.std, digits)}"


def accuracy(value: Spread) -> str:
    """A mean accuracy; of several runs with the spread, which is small, in two digits."""
    return percent_spread(value, 1 if value.std is None else 2)


def points(share: float) -> str:
    """A difference of accuracies, without a sign, in points of a percent."""
    text = f"{abs(100 * share):.1f}"
    return f"{text} point{'' if text == '1.0' else 's'}"


def macs(count: float) -> str:
    """A number of multiply-accumulates with three digits."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.{2 if count < 10 * size else 1}f} {unit}"
    return f"{count:.0f}"


def in_words(answer: Answer) -> AnswerWords:
    """Say an answer: one paragraph, the facts, and what the static twin reaches."""
    return AnswerWords(
        _verdict(answer),
        _facts(answer),
        _twin(answer),
        answer.gain is not None or answer.other is not None,
    )


def fewer(reduction: float) -> str:
    """Say a reduction: `30.0% fewer`."""
    return f"{percent(abs(reduction))} {'fewer' if reduction >= 0 else 'more'}"


def _verdict(answer: Answer) -> str:
    paid_for = {
        "dynamic": ", the gates' own predictors included",
        "mixed": ", the gates' own predictors included",
        "second-look": ", both passes of an image that is looked at again included",
    }
    included = paid_for.get(answer.kind, "")
    cost = (
        f"An image cost {macs(answer.dense_macs)} multiply-accumulates; it now costs "
        f"{macs(answer.executed_macs.mean)} on average, {fewer(answer.achieved.mean)}{included}."
    )
    if answer.dense_elsewhere is not None:
        paid = f" {accuracy(answer.top1)} of the test images are classified correctly. " + (
            _elsewhere("The dense network", answer, *answer.dense_elsewhere)
        )
    elif answer.paid is None:
        paid = (
            f" {accuracy(answer.top1)} of the test images are classified correctly; what "
            "the dense network achieved is not among the files."
        )
    else:
        kept = answer.paid <= 0
        change = f"{points(answer.paid)} {'gained' if kept else 'paid'}"
        paid = (
            f" Accuracy went from {percent(answer.dense_top1 or 0)} to "
            f"{accuracy(answer.top1)}: {change}."
        )
    return cost + paid


def _elsewhere(who: str, answer: Answer, top1: float, images: int) -> str:
    """Say that a network was tested on other images, so that nobody takes a difference."""
    counts = f"{images:,}" + (f", not {answer.images:,}" if images != answer.images else "")
    return (
        f"{who} was tested on different images ({counts}; {percent(top1)}): no difference is shown."
    )


def _facts(answer: Answer) -> tuple[Fact, ...]:
    over = f"±{NBSP}{percent(answer.over_images)} over images"
    if answer.achieved.std is not None:
        over += f", ±{NBSP}{percent(answer.achieved.std)} over {answer.seeds} runs"
    facts = [
        Fact(
            "Multiply-accumulates for an image",
            macs(answer.executed_macs.mean),
            macs(answer.dense_macs),
            f"{fewer(answer.achieved.mean)}, measured; {over}",
        ),
        Fact(
            "Top-1 accuracy",
            percent(answer.top1.mean),
            "" if answer.dense_top1 is None else percent(answer.dense_top1),
            f"{answer.images:,} test images, "
            + (
                "1 run"
                if answer.top1.std is None
                else f"± {percent(answer.top1.std, 2)} over {answer.seeds} runs"
            ),
        ),
        Fact(
            "Reduction of multiply-accumulates",
            parts=(
                ("asked", "none" if answer.asked is None else percent(answer.asked)),
                (
                    "predicted",
                    "none" if answer.predicted is None else percent(answer.predicted.mean),
                ),
                ("achieved", percent(answer.achieved.mean)),
            ),
            note="predicted before any training, achieved on test images"
            if answer.predicted is not None
            else "achieved on test images; the files hold no prediction",
        ),
    ]
    if answer.dynamic_ms and answer.dense_ms:
        facts.append(
            Fact(
                "Time of an image",
                f"{answer.dynamic_ms:.2f} ms",
                f"{answer.dense_ms:.2f} ms",
                f"{answer.dense_ms / answer.dynamic_ms:.2f} times as fast; {answer.timed}",
            )
        )
    return tuple(facts)


def _twin(answer: Answer) -> str:
    if answer.other is not None:
        return _other(answer, *answer.other)
    if answer.twin_elsewhere is not None:
        return _elsewhere("The static twin", answer, *answer.twin_elsewhere)
    if answer.gain is None or answer.twin_top1 is None or answer.twin_achieved is None:
        return (
            "Not among the files: the static twin, the same network with one fixed mask of the "
            "same cost, trained as long. Without it nobody can say what deciding for each image "
            "is worth."
        )
    text = (
        "The static twin, the same network with one fixed mask, trained as long, reaches "
        f"{accuracy(answer.twin_top1)} at {fewer(answer.twin_achieved.mean)} "
        "multiply-accumulates"
    )
    gain, pairs = answer.gain.mean, answer.gain.count
    text += f" ({pairs} pairs)" if pairs > 1 else ""
    if abs(gain) <= answer.noise:
        difference = f"{points(gain)} {'less' if gain > 0 else 'more'} than the gates"
        return (
            f"{text}: {difference}, no clear difference. "
            "Deciding for each image gained nothing here."
        )
    if gain < 0:
        return (
            f"{text}: {points(gain)} more than the gates. Deciding for each image did not pay here."
        )
    return f"{text}: the gates are {points(gain)} better. That is what deciding for each image won."


def _other(answer: Answer, kind: str, top1: float, reduction: float) -> str:
    """Say what the other candidate of a pruning achieves."""
    names = {
        "static": "One fixed mask for all images",
        "dynamic": "Gates, which choose filters for each image",
        "mixed": "A gate or a fixed mask for each unit",
        "second-look": "A second look at the images that a fixed mask is unsure of",
    }
    change = answer.top1.mean - top1
    difference = f"{points(change)} {'less' if change >= 0 else 'more'}"
    return (
        f"{names.get(kind, kind)}, repaired alike, reach{'' if kind == 'dynamic' else 'es'} "
        f"{percent(top1)} at {fewer(reduction)} multiply-accumulates: {difference}."
    )

"""What was published, as data, to stand beside: labelled markers in figures of accuracy.

Reductions here are counted as each paper counts, which flatters (docs/counting.md); they are not
those that our own results state, and figures say so.
"""

from __future__ import annotations

from dataclasses import dataclass

FTWT = "Elkerdawy et al., Fire Together Wire Together, CVPR 2022, arXiv 2110.08232"
MANIDP = "Tang et al., Manifold Regularized Dynamic Network Pruning, CVPR 2021, arXiv 2103.05861"
DGNET = "Li et al., Dynamic Dual Gating Neural Networks, ICCV 2021"
CHIP = "Sui et al., CHIP: CHannel Independence-based Pruning, NeurIPS 2021, arXiv 2110.13981"
RESREP = "Ding et al., ResRep: Lossless CNN Pruning, ICCV 2021, arXiv 2007.03260"
TORCH_PRUNING = "Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900"
CORING = "Pham et al., Efficient Tensor Decomposition-Based Filter Pruning, Neural Networks 2024"


@dataclass(frozen=True)
class Published:
    """A published row.

    Args:
        dataset: `cifar10` or `imagenet`.
        network: The architecture, as `ftwt.models` spells it after the dataset.
        method: Name of the method.
        kind: `paper` (the method of this library), `dynamic` or `static`.
        reduction: Share of the MACs that was cut, counted as its paper counts.
        top1: Accuracy, a share; None where only the gap is published.
        baseline_top1: Of the dense network it started from; None where only the gap is published.
        gap: Accuracy less the baseline's.
        source: Where it was published.
        mode: Of the paper's own rows: `decoupled` or `joint`.
        r: Of the paper's own rows.
        top1_std: Standard deviation over 3 runs, where it is given.
        reduction_std: The same of the reduction.
        approximate: Whether it was read off a plot or given as about.
    """

    dataset: str
    network: str
    method: str
    kind: str
    reduction: float
    top1: float | None
    baseline_top1: float | None
    gap: float
    source: str
    mode: str | None = None
    r: float | None = None
    top1_std: float | None = None
    reduction_std: float | None = None
    approximate: bool = False

    @property
    def label(self) -> str:
        """The method, with mode and r where it is the paper's own."""
        told = [self.mode] if self.mode == "joint" else []
        told += [] if self.r is None else [f"r = {self.r:g}"]
        return f"{self.method} ({', '.join(told)})" if told else self.method


def _paper(
    dataset: str,
    network: str,
    baseline: float,
    *rows: tuple[float | None, str, float, float | None, float, float | None],
) -> list[Published]:
    """The paper's rows, in percent: r, mode, accuracy, its std, reduction, its std."""
    return [
        Published(
            dataset=dataset,
            network=network,
            method="FTWT",
            kind="paper",
            reduction=_share(cut),
            top1=_share(top1),
            baseline_top1=_share(baseline),
            gap=_share(top1 - baseline),
            source=FTWT,
            mode=mode,
            r=r,
            top1_std=None if top1_std is None else _share(top1_std),
            reduction_std=None if cut_std is None else _share(cut_std),
        )
        for r, mode, top1, top1_std, cut, cut_std in rows
    ]


def _gaps(network: str, *rows: tuple[float, float]) -> list[Published]:
    """Rows that were read off a plot, in percent: gap, reduction."""
    return [
        Published(
            "cifar10",
            network,
            "FTWT",
            "paper",
            _share(cut),
            None,
            None,
            _share(gap),
            FTWT,
            mode="decoupled",
            approximate=True,
        )
        for gap, cut in rows
    ]


def _other(
    dataset: str,
    network: str,
    method: str,
    kind: str,
    baseline: float | None,
    top1: float,
    cut: float,
    source: str,
    *,
    approximate: bool = False,
) -> Published:
    base = None if baseline is None else _share(baseline)
    gap = 0.0 if baseline is None else _share(top1 - baseline)
    return Published(
        dataset,
        network,
        method,
        kind,
        _share(cut),
        _share(top1),
        base,
        gap,
        source,
        approximate=approximate,
    )


def _share(percent: float) -> float:
    return round(percent / 100, 6)


ROWS: tuple[Published, ...] = (
    *_paper(
        "cifar10",
        "vgg16-bn",
        93.82,
        (0.92, "decoupled", 93.73, None, 56, None),
        (0.92, "joint", 93.55, 0.09, 65.01, 0.56),
        (0.85, "decoupled", 93.19, 0.07, 73.19, 0.24),
        (0.88, "joint", 92.65, None, 74, None),
    ),
    *_paper(
        "cifar10",
        "resnet56",
        93.66,
        (0.80, "decoupled", 92.63, 0.02, 66.43, 0.02),
        (0.88, "joint", 92.28, None, 54, None),
    ),
    *_paper(
        "cifar10",
        "mobilenet-v1",
        90.89,
        (1.0, "decoupled", 91.06, 0.08, 78.53, 0.80),
        (1.0, "joint", 91.21, None, 78, None),
    ),
    *_gaps("mobilenet-v2", (-0.2, 41), (-0.2, 53), (-0.2, 66), (0.3, 77), (1.2, 86)),
    *_paper(
        "imagenet",
        "resnet34",
        73.30,
        (0.97, "decoupled", 73.25, None, 25.86, None),
        (0.95, "decoupled", 72.79, None, 37.77, None),
        (0.93, "decoupled", 72.17, None, 47.42, None),
        (0.92, "decoupled", 71.71, None, 52.24, None),
        (0.95, "joint", 71.52, None, 37.77, None),
        (0.92, "joint", 70.06, None, 52.24, None),
    ),
    *_paper("imagenet", "resnet18", 69.76, (0.91, "decoupled", 67.49, None, 51.56, None)),
    *_paper("imagenet", "mobilenet-v1", 69.57, (1.0, "decoupled", 69.66, None, 41.07, None)),
    _other("cifar10", "resnet56", "ManiDP", "dynamic", 93.70, 93.64, 62.4, MANIDP),
    _other("cifar10", "resnet56", "CHIP", "static", 93.26, 92.43, 74.1, CHIP),
    _other("cifar10", "resnet56", "ResRep", "static", 93.71, 93.71, 52.9, RESREP),
    _other(
        "cifar10",
        "resnet56",
        "Torch-Pruning",
        "static",
        93.53,
        93.77,
        53,
        TORCH_PRUNING,
        approximate=True,
    ),
    _other("cifar10", "vgg16-bn", "CORING", "static", None, 94.20, 66.6, CORING),
    _other("cifar10", "vgg16-bn", "CORING", "static", None, 93.83, 78.6, CORING),
    _other("imagenet", "resnet34", "DGNet", "dynamic", None, 73.01, 59, DGNET, approximate=True),
    _other("imagenet", "resnet34", "ManiDP", "dynamic", None, 73.30, 46.8, MANIDP),
    _other("imagenet", "resnet18", "DGNet", "dynamic", None, 70.12, 48, DGNET, approximate=True),
    _other("imagenet", "resnet50", "ResRep", "static", None, 76.15, 54.5, RESREP),
)

COMPUTE_HOURS = {  # (dataset, network) -> the paper's training time on 4 V100
    ("cifar10", "vgg16-bn"): 2.0,
    ("cifar10", "resnet56"): 8.0,
    ("cifar10", "mobilenet-v1"): 3.5,
    ("imagenet", "resnet18"): 40.0,
    ("imagenet", "resnet34"): 55.5,
    ("imagenet", "mobilenet-v1"): 41.0,
}

OTHER_NAMES = {  # as torchvision and timm spell architectures
    "mobilenetv1_100": "mobilenet-v1",
    "mobilenetv2_100": "mobilenet-v2",
    "mobilenet_v2": "mobilenet-v2",
}


def architecture(network: str) -> tuple[str, str]:
    """The dataset and the architecture that a name of `ftwt.models` means.

    Args:
        network: `cifar10-resnet56`, `torchvision:resnet34`, ...
    """
    library, colon, rest = network.rpartition(":")
    if colon:
        plain = rest.partition(".")[0]
        return "imagenet", OTHER_NAMES.get(plain, plain)
    dataset, _, rest = network.partition("-")
    return dataset, rest


def rows_for(network: str) -> tuple[Published, ...]:
    """The published rows of an architecture, the paper's own first; empty if there are none."""
    key = architecture(network)
    return tuple(row for row in ROWS if (row.dataset, row.network) == key)

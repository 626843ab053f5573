# %% [markdown]
# # A network, outputs and a loop of your own
#
# `ftwt.train` and `ftwt.evaluate` know classifiers. Everything else takes the few lines that gates
# need in a loop of your own. Here: a network that says of each pixel what it shows and of each
# image how many things there are, as a dict of outputs; its hidden linear layers are pruned too.
#
# The cells run in VS Code, in Jupyter with jupytext, or all together:
# `python examples/segmentation.py`, ten seconds on one core. The images are drawn, nothing is
# downloaded.

# %%
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ftwt

STEPS = 150
BATCH, SIDE, MOST = 32, 24, 3
FOLDER = Path("runs/segmentation")
CLASSES = ("nothing", "disc", "square")


# %% [markdown]
# ## Images
#
# Discs and squares on noise, up to three; each pixel's class, and how many things there are.


# %%
def draw(count: int, *, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw (count, 3, SIDE, SIDE) images, their pixels' classes, and the numbers of things."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    images = 0.3 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    pixels = torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    number = torch.randint(1, MOST + 1, (count,), generator=generator)
    for thing in range(MOST):
        here = (number > thing)[:, None, None]
        down, right = (between(0, SIDE, count, 1, 1) for _ in range(2))
        size = between(2.5, 5, count, 1, 1)
        kind = torch.randint(1, 3, (count, 1, 1), generator=generator)
        disc = (rows - down) ** 2 + (columns - right) ** 2 < size**2
        square = ((rows - down).abs() < 0.9 * size) & ((columns - right).abs() < 0.9 * size)
        shown = torch.where(kind == 1, disc, square) & here
        images += shown[:, None] * between(0.4, 1.0, count, 3, 1, 1)
        pixels = torch.where(shown, kind, pixels)
    return images, {"pixels": pixels, "number": number - 1}


train = [draw(BATCH, seed=step) for step in range(STEPS)]
validation = [draw(BATCH, seed=10**6 + step) for step in range(8)]
test = [draw(BATCH, seed=2 * 10**6 + step) for step in range(8)]


# %% [markdown]
# ## A network


# %%
class Block(nn.Module):
    """ConvNeXt's: a depthwise convolution, and two linear layers on pixels (B, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm, self.act = nn.LayerNorm(width), nn.ReLU()
        self.hidden, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.out(self.act(self.hidden(y))).permute(0, 3, 1, 2)


class Segmenter(nn.Module):
    """An encoder at half the resolution, and a head for each of two outputs."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.down = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.pixels, self.number = nn.Conv2d(width, len(CLASSES), 1), nn.Linear(width, MOST)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images to logits for their pixels' classes and for the number of things."""
        x = self.blocks(self.down(self.stem(images)))
        pixels = F.interpolate(self.pixels(x), size=(SIDE, SIDE), mode="bilinear")
        return {"pixels": pixels, "number": self.number(x.mean((2, 3)))}


def loss_of(outputs: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """The task's loss: one cross-entropy for each output."""
    return sum(F.cross_entropy(outputs[name], wanted[name]) for name in outputs)


torch.manual_seed(0)
dense = Segmenter()
optimizer = torch.optim.AdamW(dense.parameters(), lr=3e-3)
for images, wanted in train:
    optimizer.zero_grad()
    loss_of(dense(images), wanted).backward()
    optimizer.step()
dense.eval()

# %% [markdown]
# ## What would it save?
#
# The estimate needs no labels, and takes no interest in what the network returns. `linear=True`
# makes units of the hidden linear layers too.

# %%
plan = ftwt.estimate(dense, (images for images, _ in train[:16]), linear=True)
plan

# %%
dynamic = ftwt.convert(dense, train[0][0], r=plan.r_for(reduction=0.3), linear=True)
dynamic.summary()


# %% [markdown]
# ## The loop
#
# `return_gates=True` gives the outputs and what each gate decided; `mask_loss` scores the
# predictors. They have a learning rate of their own, and no weight decay. For the second half of
# the steps they stand still, while the network settles around their masks.


# %%
optimizer = torch.optim.SGD(
    [
        {"params": list(dynamic.network_parameters()), "lr": 0.01, "weight_decay": 5e-4},
        {"params": list(dynamic.predictor_parameters()), "lr": 0.1},
    ],
    momentum=0.9,
)
dynamic.train()
for step, (images, wanted) in enumerate(train):
    if step == STEPS // 2:
        dynamic.hold_predictors()
        ftwt.calibrate(dynamic, validation, reduction=0.3)
    outputs, gates = dynamic(images, return_gates=True)
    loss = loss_of(outputs, wanted)
    if step < STEPS // 2:
        loss = loss + ftwt.mask_loss(gates)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
dynamic.eval()
settled = ftwt.calibrate(dynamic, validation, reduction=0.3)
settled


# %% [markdown]
# ## What it achieves
#
# Score it as you score any network; `macs` says what the masks of each image left to do. The
# dynamic network has seen the images once more than the dense one, so it may well be better at
# something; what the gates cost shows beside a network that was trained as long, `dynamic.freeze`.


# %%
@torch.no_grad()
def score(network: nn.Module, **options: str) -> dict[str, float]:
    """The share of pixels and of numbers that are right, and of the dense MACs that were saved."""
    right: dict[str, list[Tensor]] = {"pixels": [], "number": [], "reduction": []}
    for images, wanted in test:
        outputs = network(images)
        if isinstance(network, ftwt.DynamicModel):
            outputs, gates = network(images, return_gates="masks", **options)
            work = network.macs({unit: gate.mask for unit, gate in gates.items()})
            right["reduction"].append(work.reduction)
        for name, logits in outputs.items():
            right[name].append((logits.argmax(1) == wanted[name]).double())
    return {name: float(torch.cat(parts).mean()) for name, parts in right.items() if parts}


found = {"dense": score(dense), "dynamic": score(dynamic)}
for name, figures in found.items():
    print(f"{name:>8}", ", ".join(f"{what} {share:.1%}" for what, share in figures.items()))

# %% [markdown]
# ## Keep it
#
# A network of your own has no name that ftwt knows, so loading it takes the dense one.

# %%
ftwt.save_pretrained(dynamic, FOLDER)
again = ftwt.from_pretrained(FOLDER, model=Segmenter())
assert torch.equal(again(test[0][0])["pixels"], dynamic(test[0][0])["pixels"])
print(f"saved in {FOLDER}")

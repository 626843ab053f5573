# %% [markdown]
# # Quickstart
#
# A trained network, an estimate of what pruning saves, a short training, and the figures of it.
# The cells run in VS Code, in Jupyter with jupytext, or all together:
# `python examples/quickstart.py`. They take the 3,000 CIFAR-10 images that come with ftwt, so
# nothing is downloaded; so few images show the path, not the accuracy that the method reaches.
#
# It needs `pip install .` alone. To prune without training, see the README.

# %%
from dataclasses import replace
from pathlib import Path

import ftwt
from ftwt.report import plots

MODEL = "cifar10-resnet20"
EPOCHS = 6
FOLDER, TWIN = Path("runs/quickstart"), Path("runs/quickstart-twin")


def begun(folder: Path) -> bool:
    """Whether a run in a folder can go on, as after a cell was stopped."""
    return (folder / "checkpoint.safetensors").exists()


# %% [markdown]
# ## What would it save?
#
# One pass over training images gives the whole curve r -> reduction, before any training.

# %%
dense = ftwt.models.create(MODEL, pretrained=True)
images = ftwt.data.Batches(ftwt.data.load("cifar10-embedded", train=True), batch_size=250)
plan = ftwt.estimate(dense, images)
plan.save(FOLDER / "estimate.json")
plan

# %% [markdown]
# ## Prune it
#
# A budget is asked for: a third of the multiply-accumulates shall go. A run leaves its figures, its
# network and its settings in a folder; run again, this cell goes on with what is there.

# %%
config = ftwt.RunConfig(
    model=MODEL,
    weights="pretrained",
    data=ftwt.DataConfig(dataset="cifar10-embedded", validation=400),
    prune=ftwt.PruneConfig(),
    train=ftwt.TrainConfig(epochs=EPOCHS, lr=0.02, target_reduction=0.33, distillation=1.0),
)
result = ftwt.run(config, output=FOLDER, resume=begun(FOLDER))
result

# %% [markdown]
# The static twin is trained beside it: the same network with one fixed mask of the same cost. What
# the gates are worth is the distance to the twin.

# %%
still = replace(config, twin_of=str(FOLDER), train=replace(config.train, target_reduction=None))
twin = ftwt.run(still, output=TWIN, resume=begun(TWIN))
twin

# %% [markdown]
# ## What does it do with each image?

# %%
network = ftwt.from_pretrained(FOLDER / "model")
test = ftwt.data.Batches(ftwt.data.load("cifar10-embedded", train=False), batch_size=250)
recording = ftwt.record(network, test, network=MODEL)
recording.save(FOLDER / "recording.safetensors")
recording

# %%
plots.core_filters(recording)

# %%
plots.heatmaps(recording)

# %%
plots.work(recording)

# %%
plots.extremes(recording)

# %% [markdown]
# ## Figures over runs
#
# They are made from files alone, so they can be made again anywhere, also without torch.

# %%
found = ftwt.report.read([FOLDER, TWIN])
plots.accuracy(found)

# %%
plots.curve(found)

# %%
plots.training(found.run(FOLDER.name))

# %%
plots.keep_ratios(found.run(FOLDER.name))

# %% [markdown]
# All of them as files for a paper, each with its data as CSV. The same as a page to send to
# a colleague: `ftwt report runs/quickstart runs/quickstart-twin -o report.html`.

# %%
written = plots.save_figures(found, FOLDER / "figures", "pdf")
print(f"{len(written)} files in {FOLDER / 'figures'}")

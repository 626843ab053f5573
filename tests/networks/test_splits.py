"""A dataset's splits, as a run's configuration asks for them."""

import sys
from pathlib import Path

import pytest

from ftwt.config import DataConfig
from ftwt.networks import splits
from ftwt.networks.sources import resolve

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from make_image_folder import make_image_folder  # noqa: E402

sys.path.remove(str(ROOT / "tools"))


@pytest.mark.parametrize(("cores", "wanted"), [(1, 1), (8, 3)])
def test_no_more_processes_decode_than_there_are_cores(
    cores: int, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch would warn, again and again."""
    folder = make_image_folder(tmp_path / "images", classes=3, train=8, val=5, side=48)
    monkeypatch.setattr(splits, "cores", lambda: cores)
    config = DataConfig(dataset="folder", data_root=str(folder), validation=6, workers=3, size=32)
    found = splits.load_splits(config, source=resolve("cifar10-resnet20"))
    assert found.plain.workers == found.test.workers == wanted

"""Image files as input: equal to what torchvision does, and clear about what is no image."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ftwt.files.pictures import Preprocessing, read_picture
from ftwt.models.vision import import_vision

HOW = Preprocessing(resize=40, crop=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def save(path: Path, size: tuple[int, int], mode: str = "RGB", **options: Any) -> Path:
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(size[1], size[0], len(mode)), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode=None).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize("size", [(40, 40), (97, 61), (33, 120), (300, 7), (32, 32)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_picture_is_prepared_as_torchvision_does(
    tmp_path: Path, size: tuple[int, int], interpolation: str
) -> None:
    transforms = import_vision("torchvision").transforms
    path = save(tmp_path / "a.png", size)
    prepare = transforms.Compose(
        [
            transforms.Resize(40, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(HOW.mean, HOW.std),
        ]
    )
    expected = prepare(Image.open(path).convert("RGB")).numpy()
    how = Preprocessing(**HOW.to_json() | {"interpolation": interpolation})
    found = read_picture(path, how)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_all_pictures_have_three_colours(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (50, 40), (255, 255, 255)).convert(mode).save(tmp_path / "a.tiff")
    found = read_picture(tmp_path / "a.tiff", HOW)
    white = [(1 - mean) / std for mean, std in zip(HOW.mean, HOW.std, strict=True)]
    np.testing.assert_allclose(found.mean((1, 2)), white, rtol=1e-5)


def test_a_camera_that_was_held_upright_is_believed(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64))
    picture.paste((255, 0, 0), (0, 0, 64, 32))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=exif)
    how = Preprocessing(resize=8, crop=8, mean=(0, 0, 0), std=(1, 1, 1))
    red = read_picture(tmp_path / "a.png", how)[0]
    assert red[:3].max() == 0 and red[5:].min() == 1


def test_what_is_no_image_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="there is no image .*gone.png"):
        read_picture(tmp_path / "gone.png", HOW)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="text.png is not an image that can be read"):
        read_picture(tmp_path / "text.png", HOW)
    with pytest.raises(ValueError, match="is not an image that can be read"):
        read_picture(tmp_path, HOW)
    whole = io.BytesIO()
    Image.effect_noise((99, 99), 90).save(whole, "PNG")
    (tmp_path / "half.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(ValueError, match="half.png is not an image that can be read"):
        read_picture(tmp_path / "half.png", HOW)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="is not an image that can be read .*decompression bomb"):
        read_picture(save(tmp_path / "bomb.png", (99, 99)), HOW)


def test_preprocessing_survives_json() -> None:
    assert Preprocessing.from_json(HOW.to_json()) == HOW
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in HOW.to_json().items()}
    assert Preprocessing.from_json(lists) == HOW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, "crop=0 of resize=40: give pixels"),
        ({"crop": 41}, "crop=41 of resize=40"),
        ({"crop": 32.0}, "crop=32.0 of"),
        ({"resize": 10**6}, "resize=1000000: give pixels"),
        ({"resize": True, "crop": True}, "crop=True"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\): give a number for red, green and blue"),
        ({"mean": (0, 0, "0")}, "mean=.* give a number"),
        ({"mean": (0, 0, float("nan"))}, "mean=.* give a number"),
        ({"mean": 3}, "3.* does not say how images are prepared"),
        ({"std": (1, 0, 1)}, r"std=\(1, 0, 1\): must be positive"),
        ({"interpolation": "nearest"}, "interpolation='nearest': use one of bilinear, bicubic"),
        ({"interpolation": ["bilinear"]}, "interpolation="),
        ({"colour": 1}, "does not say how images are prepared"),
    ],
)
def test_preprocessing_of_a_stranger_is_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_json(HOW.to_json() | change)


@pytest.mark.parametrize("values", [None, [], 3, "all", {}, {"crop": 3}])
def test_other_values_are_no_preprocessing(values: Any) -> None:
    with pytest.raises(ValueError, match="does not say how images are prepared"):
        Preprocessing.from_json(values)

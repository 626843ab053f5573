"""Image files as input: equal to what torchvision does, and clear about what is no image."""

import io
import os
import tracemalloc
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


def test_deep_pictures_are_brought_to_eight_bits(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray((grey / 65535).astype(np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray((grey / 257).round().astype(np.uint8)).save(tmp_path / "plain.png")
    plain = read_picture(tmp_path / "plain.png", HOW)
    assert plain.std() > 0.5
    for name in ("deep.png", "float.tiff"):
        np.testing.assert_allclose(read_picture(tmp_path / name, HOW), plain, atol=0.03)


@pytest.mark.parametrize("values", [(-1.0, 1.0), (0.0, 3.0), (np.nan, np.nan)])
def test_floats_of_an_unknown_range_are_refused(tmp_path: Path, values: Any) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(np.array([values] * 2, np.float32)).save(path)
    with pytest.raises(ValueError, match=r"its values go from .* or as floats from 0 to 1"):
        read_picture(path, HOW)


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF"])
def test_a_format_that_starts_another_program_is_not_opened(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", refuse)
    monkeypatch.setattr("subprocess.check_call", refuse)
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="photo.jpg is not an image that can be read .* these are: JPEG"
    ):
        read_picture(path, HOW)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="it is not a regular file"):
        read_picture(tmp_path / "photo.png", HOW)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 5_000)])
def test_of_a_very_long_picture_the_middle_is_taken_in_little_memory(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "long.png"
    picture = Image.new("RGB", size, (0, 0, 255))
    middle = [(side - 900) // 2 if side > 900 else 0 for side in size]
    ends = [min(side, start + 900) for side, start in zip(size, middle, strict=True)]
    picture.paste((255, 0, 0), (*middle, *ends))
    picture.save(path)
    tracemalloc.start()
    found = read_picture(path, HOW)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    red = [
        (value - mean) / std for value, mean, std in zip((1, 0, 0), HOW.mean, HOW.std, strict=True)
    ]
    np.testing.assert_allclose(found.mean((1, 2)), red, rtol=1e-4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "ppm", "tiff"])
def test_every_format_of_the_list_is_read(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (40, 40), (255, 255, 255)).save(tmp_path / f"a.{suffix}")
    white = [(1 - mean) / std for mean, std in zip(HOW.mean, HOW.std, strict=True)]
    found = read_picture(tmp_path / f"a.{suffix}", HOW)
    np.testing.assert_allclose(found.mean((1, 2)), white, rtol=1e-2)

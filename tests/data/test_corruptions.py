"""The corruptions of CIFAR-10-C: each against its definition, done slowly or known otherwise."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image

import ftwt
from ftwt.data import Images
from ftwt.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    blur,
    corrupt,
    digital,
    filters,
    weather,
)
from ftwt.data.corruptions.lots import Lots

SIDE = 32
NOT_FARTHER = {"glass_blur", "frost", "elastic_transform"}  # at every step, with these settings


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """24 test images, (24, 32, 32, 3)."""
    found = ftwt.data.embedded(train=False).images[:24]
    return np.ascontiguousarray(found.permute(0, 2, 3, 1).numpy())


@pytest.fixture
def grey() -> np.ndarray:
    """100 images of level 128, (100, 32, 32, 3), each with another first pixel: so other lots."""
    images = np.full((100, SIDE, SIDE, 3), 128, np.uint8)
    images[:, 0, 0] = np.arange(100)[:, None]
    return images


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def cut(shares: np.ndarray) -> np.ndarray:
    """Levels as the published files have them."""
    return np.floor(np.clip(shares, 0, 1) * 255 + 1e-6).astype(np.uint8)


def lots(images: np.ndarray) -> Lots:
    return Lots((images * 255).astype(np.uint8), images, salt="test")


# --- Every corruption ---------------------------------------------------------------------------


def test_the_corruptions_are_the_published_fifteen_in_their_order() -> None:
    names = (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur "
        "snow frost fog brightness contrast elastic_transform pixelate jpeg_compression"
    )
    assert list(CORRUPTIONS) == names.split()
    assert SEVERITIES == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_the_same_in_any_company(name: str, photos: np.ndarray) -> None:
    before = photos.copy()
    made = corrupt(photos, name, severity=3, seed=1)
    assert made.shape == photos.shape and made.dtype == np.uint8
    assert (photos == before).all()
    assert (corrupt(photos, name, severity=3, seed=1) == made).all()
    assert (corrupt(photos[[5]], name, severity=3, seed=1) == made[[5]]).all()
    assert (corrupt(photos[::-1], name, severity=3, seed=1) == made[::-1]).all()
    assert 0 < distance(made, photos) < 80


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_takes_images_farther_away(name: str, photos: np.ndarray) -> None:
    away = [distance(corrupt(photos, name, severity=n), photos) for n in SEVERITIES]
    if name == "motion_blur":
        del away[3]  # a larger radius of the same sigma: nothing but other angles
    assert min(away) > 0.5
    if name in NOT_FARTHER:
        assert away != sorted(away), f"{name} is no exception any more"
    else:
        assert away == sorted(away)


def test_more_images_than_are_corrupted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = ftwt.data.embedded(train=False).select(torch.arange(7))
    whole = corrupt(photos, "snow", severity=2).images
    monkeypatch.setattr("ftwt.data.corruptions.apply.CHUNK", 3)
    assert torch.equal(corrupt(photos, "snow", severity=2).images, whole)


RANDOM = [
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost",
    "fog", "elastic_transform",
]  # fmt: skip


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_decides_what_is_random_and_nothing_else(name: str, photos: np.ndarray) -> None:
    one, other = (corrupt(photos[:4], name, severity=5, seed=seed) for seed in (0, 1))
    assert (one == other).all() == (name not in RANDOM)


def test_labelled_images_keep_their_labels(photos: np.ndarray) -> None:
    images = ftwt.data.embedded(train=False).select(torch.arange(24))
    made = ftwt.corrupt(images, "fog", severity=3)
    assert isinstance(made, Images) and torch.equal(made.labels, images.labels)
    assert (made.mean, made.std, made.classes) == (images.mean, images.std, images.classes)
    arrays = corrupt(photos, "fog", severity=3)
    assert (made.images.permute(0, 2, 3, 1).numpy() == arrays).all()


@pytest.mark.parametrize(
    ("images", "name", "options", "told"),
    [
        ((1, 32, 32, 3), "fogg", {}, "did you mean 'fog'"),
        ((1, 32, 32, 3), "fog", {"severity": 0}, "severity=0 is outside 1..5"),
        ((1, 32, 32, 3), "fog", {"severity": 6}, "severity=6 is outside 1..5"),
        ((1, 32, 32, 3), "fog", {"seed": -1}, "seed must be >= 0, got -1"),
        ((1, 64, 64, 3), "fog", {}, "32x32 pixels and 3 channels"),
        ((32, 32, 3), "fog", {}, "32x32 pixels and 3 channels"),
        ((1, 32, 32, 1), "fog", {}, "32x32 pixels and 3 channels"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(
    images: tuple[int, ...], name: str, options: dict[str, int], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        corrupt(np.zeros(images, np.uint8), name, **({"severity": 1} | options))
    with pytest.raises(ValueError, match="float64"):
        corrupt(np.zeros((1, 32, 32, 3)), "fog", severity=1)


# --- Noise --------------------------------------------------------------------------------------


def test_gaussian_noise_has_its_standard_deviation(grey: np.ndarray) -> None:
    for severity, scale in zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True):
        noise = corrupt(grey, "gaussian_noise", severity=severity)[:, 1:] / 255 - 128 / 255
        assert noise.std() == pytest.approx(scale, rel=0.01)
        assert noise.mean() == pytest.approx(-0.5 / 255, abs=1e-3)  # levels are cut, not rounded


def test_shot_noise_counts_photons(grey: np.ndarray) -> None:
    for severity, photons in zip(SEVERITIES, (500, 250, 100, 75, 50), strict=True):
        noisy = corrupt(grey, "shot_noise", severity=severity)[:, 1:] / 255
        assert noisy.mean() == pytest.approx(127.5 / 255, abs=1e-3)
        assert noisy.std() == pytest.approx((128 / 255 / photons) ** 0.5, rel=0.02)
    black = np.zeros_like(grey)
    assert (corrupt(black, "shot_noise", severity=5) == 0).all()


def test_impulse_noise_sets_as_many_values_to_black_as_to_white(grey: np.ndarray) -> None:
    for severity, share in zip(SEVERITIES, (0.01, 0.02, 0.03, 0.05, 0.07), strict=True):
        noisy = corrupt(grey, "impulse_noise", severity=severity)[:, 1:]
        assert set(np.unique(noisy)) == {0, 128, 255}
        for level in (0, 255):
            assert (noisy == level).mean() == pytest.approx(share / 2, rel=0.1)


# --- Blur ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_blurs_leave_an_even_image_alone(name: str, severity: int) -> None:
    even = np.full((2, SIDE, SIDE, 3), 128, np.uint8)
    assert (corrupt(even, name, severity=severity) == 128).all()


def test_a_gaussian_matrix_is_a_gaussian_convolution() -> None:
    column = np.random.default_rng(0).random(SIDE)
    for border, truncate in (("edge", 4.0), ("symmetric", 3.0), ("reflect", 4.0)):
        radius = int(truncate * 1.5 + 0.5)
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 1.5) ** 2)
        padded = np.pad(column, radius, mode=border)  # type: ignore[call-overload]
        slow = np.convolve(padded, weights / weights.sum(), mode="valid")
        matrix = filters.gaussian_matrix(SIDE, 1.5, truncate=truncate, border=border)  # type: ignore[arg-type]
        np.testing.assert_allclose(matrix @ column, slow, atol=1e-12)
    assert (filters.gaussian_matrix(8, 0.05, truncate=4.0, border="edge") == np.eye(8)).all()


def test_a_disk_is_round_soft_and_sums_to_one() -> None:
    for radius, smoothing in ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)):
        weights = filters.disk(radius, smoothing)
        assert weights.sum() == pytest.approx(1)
        assert np.allclose(weights, weights.T) and np.allclose(weights, weights[::-1])
    edge = np.exp(-0.5 / 0.4**2)
    assert filters.disk(0.3, 0.4)[2, 2] == pytest.approx((1 / (1 + 2 * edge)) ** 2)
    assert filters.disk(1.5, 0.1)[1:4, 1:4] == pytest.approx(np.full((3, 3), 1 / 9))


def test_defocus_blur_is_a_correlation_with_the_disk(photos: np.ndarray) -> None:
    weights = filters.disk(1, 0.2)
    shares = photos[:2] / 255
    padded = np.pad(shares, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    slow = np.zeros_like(shares)
    for row in range(SIDE):
        for column in range(SIDE):
            window = padded[:, row : row + 5, column : column + 5]
            slow[:, row, column] = np.einsum("nijc,ij->nc", window, weights)
    assert (corrupt(photos[:2], "defocus_blur", severity=4) == cut(slow)).all()


def test_glass_blur_moves_pixels_as_the_published_loop_does(photos: np.ndarray) -> None:
    image = photos[0] / 255
    steps = np.random.default_rng(0).integers(-1, 1, size=(1, 2, 30, 30))

    class Given(Lots):
        def __call__(self, drawing: object) -> np.ndarray:
            return steps

    given = Given(photos[:1], image[None], salt="")
    planes = np.moveaxis(image, -1, 0)[None]
    made = blur.glass_blur(planes, (0.05, 1), given)[0]

    pixels = photos[0].copy()
    for row in range(SIDE - 1, 1, -1):
        for column in range(SIDE - 1, 1, -1):
            down, right = steps[0, :, row - 2, column - 2]
            there = row + down, column + right
            pixels[row, column], pixels[there] = pixels[there], pixels[row, column]  # views: a copy
    assert (cut(np.moveaxis(made, 0, -1)) == pixels).all()


def test_motion_taps_lie_on_a_line_and_sum_to_one() -> None:
    weights, places = filters.motion_taps(6, 2.0, 0)
    assert weights.sum() == pytest.approx(1) and (np.diff(weights) < 0).all()
    assert (places == [[0, step] for step in range(13)]).all()
    assert (filters.motion_taps(6, 2.0, 90)[1] == [[step, 0] for step in range(13)]).all()
    assert (filters.motion_taps(6, 2.0, -90)[1] == [[-step, 0] for step in range(13)]).all()
    assert (filters.motion_taps(6, 2.0, 45)[1][:4] == [[0, 0], [1, 1], [1, 1], [2, 2]]).all()


def test_motion_blur_is_its_taps_applied_one_by_one() -> None:
    images = np.random.default_rng(0).random((3, 2, SIDE, SIDE))
    angles = np.array([-45.0, 10.0, -100.0])
    made = filters.motion_blur(images, radius=6, sigma=1.5, angles=angles)
    for image, blurred, angle in zip(images, made, angles, strict=True):
        weights, places = filters.motion_taps(6, 1.5, angle)
        row, column = 3, 20
        seen = [image[:, max(row + r, 0), min(column + c, SIDE - 1)] for r, c in places]
        np.testing.assert_allclose(blurred[:, row, column], weights @ np.array(seen))


def test_zooming_enlarges_the_middle() -> None:
    assert (filters.zoom_matrix(SIDE, 1.0) == np.eye(SIDE)).all()
    ramp = np.arange(SIDE, dtype=float)
    for factor in (1.07, 1.25, 1.75, 2.25):
        matrix = filters.zoom_matrix(SIDE, factor)
        assert matrix.shape == (SIDE, SIDE)
        np.testing.assert_allclose(matrix.sum(axis=1), 1)
        steps = np.diff(matrix @ ramp)
        np.testing.assert_allclose(steps, steps[0])  # linear in, linear out
        assert steps[0] == pytest.approx(1 / factor, rel=0.06)
    # 19 pixels become 33, of which 32 are kept: (19 - 1) / (33 - 1) pixels a step, from pixel 6 on
    np.testing.assert_allclose(
        filters.zoom_matrix(SIDE, 1.75) @ ramp, 6 + np.arange(SIDE) * 18 / 32
    )


def test_zoom_blur_is_a_mean_of_zooms(photos: np.ndarray) -> None:
    planes = np.moveaxis(photos[:1] / 255, -1, 1)
    zooms = [filters.both_ways(planes, filters.zoom_matrix(SIDE, 1 + n / 100)) for n in range(7)]
    slow = np.moveaxis(sum(zooms, planes) / 8, 1, -1)
    assert distance(corrupt(photos[:1], "zoom_blur", severity=1), cut(slow)) < 0.01


# --- Weather ------------------------------------------------------------------------------------


def test_fog_keeps_the_brightest_value_and_lowers_contrast(photos: np.ndarray) -> None:
    misty = corrupt(photos, "fog", severity=5)
    assert misty.std(axis=(1, 2, 3)).mean() < 0.8 * photos.std(axis=(1, 2, 3)).mean()
    assert (misty.max(axis=(1, 2, 3)) <= photos.max(axis=(1, 2, 3))).all()
    assert (corrupt(np.zeros_like(photos), "fog", severity=5) == 0).all()  # as published: 0 / 0.2


def test_a_height_map_is_made_point_by_point() -> None:
    side, decay = 8, 2.5
    draws = np.random.default_rng(0).uniform(-1, 1, size=(2, side * side - 1))
    made = weather.plasma(draws, decay=decay)
    for lot, heights in zip(draws, made, strict=True):
        left = iter(lot)
        slow = np.zeros((side, side))
        step, wibble = side, 100.0
        while step > 1:
            half = step // 2
            for first_row, first_column, around in (
                (half, half, [(-half, -half), (-half, half), (half, -half), (half, half)]),
                (0, half, [(-half, 0), (half, 0), (0, -half), (0, half)]),
                (half, 0, [(-half, 0), (half, 0), (0, -half), (0, half)]),
            ):
                for row in range(first_row, side, step):
                    for column in range(first_column, side, step):
                        near = [slow[(row + r) % side, (column + c) % side] for r, c in around]
                        slow[row, column] = sum(near) / 4 + wibble**2 * next(left)
            step, wibble = half, wibble / decay
        assert next(left, None) is None
        np.testing.assert_allclose(heights, (slow - slow.min()) / np.ptp(slow), atol=1e-9)


def test_frost_has_the_colours_and_spread_of_the_published_windows() -> None:
    black = np.zeros((500, SIDE, SIDE, 3), np.uint8)
    black[:, 0, 0, 0] = np.arange(500) % 256  # other images, other lots
    black[:, 0, 0, 1] = np.arange(500) // 256
    frost = corrupt(black, "frost", severity=5)[:, 1:] / 0.45
    colours = np.mean([colour for colour, *_ in weather.FROSTS], axis=0)
    assert frost.mean(axis=(0, 1, 2)) == pytest.approx(colours, abs=8)
    inside = np.mean([inside for *_, inside, _ in weather.FROSTS])
    assert frost.std(axis=(1, 2)).mean() == pytest.approx(inside, abs=2)
    texture = frost[..., 1] - frost[..., 1].mean(axis=(1, 2), keepdims=True)
    neighbours = np.corrcoef(texture[:, 1:].ravel(), texture[:, :-1].ravel())[0, 1]
    assert neighbours > 0.2  # a texture, not noise


def test_snow_whitens_and_falls_on_both_sides(photos: np.ndarray) -> None:
    black = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    fallen = corrupt(black, "snow", severity=5)[0].astype(int)
    assert (fallen == fallen[..., :1]).all()  # grey flakes
    assert (fallen == fallen[::-1, ::-1]).all()  # and the same turned by half
    assert fallen.min() >= 0.2 * 0.5 * 255 - 1  # whitened by half of the share
    assert (corrupt(photos, "snow", severity=1) >= photos.astype(int) - 1).all()  # only brighter


# --- Digital ------------------------------------------------------------------------------------


def test_contrast_is_its_formula(photos: np.ndarray) -> None:
    shares = photos / 255
    mean = shares.mean(axis=(1, 2), keepdims=True)
    for severity, share in zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True):
        slow = cut((shares - mean) * share + mean)
        assert (corrupt(photos, "contrast", severity=severity) == slow).all()


def test_brightness_adds_to_the_value_and_keeps_hue_and_saturation(photos: np.ndarray) -> None:
    image = photos[:1].copy()
    image[0, 0, 0] = 0
    made = corrupt(image, "brightness", severity=4)
    for pixel, brighter in zip(image.reshape(-1, 3), made.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        slow = np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1)))
        assert (np.abs(brighter - 255 * slow) <= 1.001).all()


def test_jpeg_and_pixelate_are_what_pillow_makes(photos: np.ndarray) -> None:
    qualities, shares = (80, 65, 58, 50, 40), (0.95, 0.9, 0.85, 0.75, 0.65)
    picture = Image.fromarray(photos[3])
    for severity, quality, share in zip(SEVERITIES, qualities, shares, strict=True):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        made = corrupt(photos[[3]], "jpeg_compression", severity=severity)[0]
        assert (made == np.asarray(Image.open(file))).all()
        box = Image.Resampling.BOX
        small = picture.resize((int(32 * share),) * 2, box)
        made = corrupt(photos[[3]], "pixelate", severity=severity)[0]
        assert (made == np.asarray(small.resize((32, 32), box))).all()
        assert len(np.unique(made.reshape(-1, 3), axis=0)) <= small.width**2


def test_sampling_between_pixels_is_linear_and_mirrors_borders() -> None:
    planes = np.arange(16.0).reshape(1, 1, 4, 4)
    rows = np.array([1.5, -1.0, 3.25, 0.0]).reshape(1, 4, 1) * np.ones((1, 4, 4))
    columns = np.array([0.0, 1.5, -2.0, 4.0]).reshape(1, 1, 4) * np.ones((1, 4, 4))
    for border, row, column in (
        ("reflect", [1.5, 1.0, 2.75, 0.0], [0.0, 1.5, 2.0, 2.0]),
        ("symmetric", [1.5, 0.0, 3.0, 0.0], [0.0, 1.5, 1.0, 3.0]),
    ):
        seen = filters.sample(planes, rows, columns, border=border)[0, 0]  # type: ignore[arg-type]
        np.testing.assert_allclose(seen, 4 * np.array(row)[:, None] + np.array(column))


def test_elastic_transform_moves_pixels_no_farther_than_its_settings() -> None:
    ramp = np.tile(np.arange(SIDE) / SIDE, (8, 3, SIDE, 1))
    still = digital.elastic_transform(ramp, (0, 0.2, 0), lots(ramp))
    np.testing.assert_allclose(still, ramp, atol=1e-9)
    pushed = digital.elastic_transform(ramp, (0.1, 0.03, 0), lots(ramp))
    inner = np.abs(pushed - ramp)[..., 4:-4]
    assert 0.005 < inner.mean() and inner.max() < 0.1
    sheared = digital.elastic_transform(ramp, (0, 0, 0.08), lots(ramp))
    assert np.abs(np.diff(sheared[..., 8:-8], n=2, axis=-1)).max() < 1e-9  # affine: still a ramp
    assert np.abs(sheared - ramp)[..., 8:-8].max() > 0.01

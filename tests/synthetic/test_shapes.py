import numpy as np
import pytest

from scripts.synthetic.shapes import SHIFT, ellipses, in_px, noise, outlines, tiled, without_coarse_part


def test_base_pixels_are_half_a_micrometre():
    assert in_px(224.0) == 448


def test_an_ellipse_has_its_centre_and_axes():
    shape = ellipses(np.array([[100.0, 50.0]]), np.array([[20.0, 5.0]]), np.array([0.0]))[0] / (1 << SHIFT)
    assert shape.mean(axis=0) == pytest.approx([100, 50], abs=0.1)
    assert np.ptp(shape, axis=0) == pytest.approx([40, 9.5], abs=0.2)  # ten corners miss the ends of the short axis


def test_outlines_without_waves_are_ellipses_of_the_same_area():
    rng = np.random.default_rng(0)
    (shape,) = outlines(rng, np.array([[0.0, 0.0]]), np.array([50.0]), 0.0, stretch=np.array([4.0]), angles=np.zeros(1))
    assert np.ptp(shape / (1 << SHIFT), axis=0) == pytest.approx([200, 50], abs=0.5)


def test_noise_holds_no_other_periods_than_asked_for():
    texture = noise(np.random.default_rng(0), 128, period_px=(4.0, 8.0))
    assert (texture.mean(), texture.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-5))
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None])
    outside = (frequency < 1 / 8.01) | (frequency > 1 / 3.99)
    assert np.abs(np.fft.fft2(texture))[outside].max() < 1e-2


def test_without_its_coarse_part_a_texture_is_gone_at_a_quarter_of_the_size():
    texture = noise(np.random.default_rng(0), 64, period_px=(4.0, 6.0))
    fine = without_coarse_part(texture)
    assert np.abs(fine.reshape(16, 4, 16, 4).mean(axis=(1, 3))).max() < 1e-6
    assert fine.reshape(32, 2, 32, 2).mean(axis=(1, 3)).std() > 0.3  # and is still there at a half


def test_tiles_repeat():
    texture = np.arange(9).reshape(3, 3)
    plane = tiled(texture, 4, 7)
    assert plane.shape == (4, 7)
    assert (plane[3] == [0, 1, 2, 0, 1, 2, 0]).all()

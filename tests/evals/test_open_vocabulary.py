"""Classes that are texts: what must hold whatever the numbers.

Numbers: tests/kinds/text.py.
"""

import jax
import numpy as np
import pytest

from dinojax.evals import open_vocabulary
from dinojax.evals import zero_shot
from dinojax.kernels import resample


def drawn(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


CLASSES = np.asarray(zero_shot.class_vectors(drawn(0, 3, 2, 5)))


def test_sides_are_cut_to_whole_numbers():
  assert open_vocabulary.view_size((500, 333)) == (768, 512)  # 768.77
  assert open_vocabulary.view_size((100, 100), 48) == (48, 48)
  assert open_vocabulary.view_size((1024, 2048)) == (512, 1024)


def test_windows_cover_the_image_and_end_inside():
  image = drawn(1, 40, 56, 3)
  views = open_vocabulary.slid(image, 8, window_px=24, stride_px=20)
  assert views.images.shape == (6, 24, 24, 3)
  assert views.places.tolist() == [
      [y, x] for y in (0, 16) for x in (0, 20, 32)]
  for (top, left), window in zip(views.places, views.images, strict=True):
    np.testing.assert_array_equal(
        window, image[top:top + 24, left:left + 24])


def test_a_ragged_window_is_stretched():
  image = np.full((30, 45, 3), 7, np.uint8)
  views = open_vocabulary.slid(image, 8, window_px=32, stride_px=20)
  assert views.shape == (30, 32) and views.images.shape == (2, 32, 32, 3)
  np.testing.assert_allclose(views.images, 7, rtol=1e-5)
  assert open_vocabulary.whole(image, 8).images.shape == (1, 32, 48, 3)
  assert open_vocabulary.whole(image, 5).images.dtype == np.uint8


def test_a_window_of_the_whole_image_has_its_cosines():
  image, patches = drawn(1, 16, 24, 3), drawn(2, 1, 2, 3, 5)
  whole = open_vocabulary.scores(
      open_vocabulary.whole(image, 8), patches, CLASSES)
  slid = open_vocabulary.scores(
      open_vocabulary.slid(image, 8, window_px=99), patches, CLASSES)
  np.testing.assert_allclose(slid, jax.nn.softmax(
      resample.resize_linear(whole, (16, 24))), rtol=1e-5)
  assert np.abs(whole).max() <= 1


def test_where_windows_meet_the_mean_counts():
  image = drawn(1, 8, 24, 3)
  views = open_vocabulary.slid(image, 8, window_px=16, stride_px=8)
  patches = np.stack([np.broadcast_to(CLASSES[k], (1, 2, 5)) for k in (0, 1)])
  shares = np.asarray(jax.nn.softmax(CLASSES @ CLASSES.T))
  scores = np.asarray(open_vocabulary.scores(views, patches, CLASSES))
  for columns, want in ((slice(0, 8), shares[0]), (slice(16, 24), shares[1]),
                        (slice(8, 16), (shares[0] + shares[1]) / 2)):
    np.testing.assert_allclose(
        scores[:, columns], np.broadcast_to(want, (8, 8, 3)), rtol=1e-5)


def test_labels_are_the_largest_of_the_resized():
  scores = drawn(3, 5, 7, 3)
  want = np.asarray(open_vocabulary.resized(scores, (20, 31))).argmax(-1)
  np.testing.assert_array_equal(
      open_vocabulary.labels(scores, (20, 31)), want)


def test_every_sentence_weighs_the_same():
  text = drawn(4, 3, 2, 5)
  longer = text * np.float32([[[1], [50]], [[3], [1]], [[1], [1]]])
  np.testing.assert_allclose(
      zero_shot.class_vectors(longer), zero_shot.class_vectors(text),
      rtol=1e-4)
  np.testing.assert_allclose(
      np.linalg.norm(zero_shot.class_vectors(text), axis=-1), 1, rtol=1e-6)


def test_patches_meet_the_second_half():
  text = drawn(5, 3, 2, 10)
  np.testing.assert_array_equal(
      zero_shot.patch_class_vectors(text),
      zero_shot.class_vectors(text[..., 5:]))


def test_an_image_on_a_class_scores_a_hundred():
  logits = zero_shot.logits(7 * CLASSES, CLASSES)
  assert np.diag(logits) == pytest.approx([100] * 3, rel=1e-5)

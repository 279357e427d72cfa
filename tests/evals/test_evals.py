"""k-NN against brute force; pictures that show what they should."""

import numpy as np

from dinojax.evals import knn
from dinojax.features import nearest as nearest_lib
from dinojax.features import pixels
from dinojax.runs import pictures


def test_knn_finds_separated_classes_and_orders_ties():
  rng = np.random.default_rng(0)
  centers = np.eye(3, 8) * 5
  labels = np.repeat([4, 7, 9], 30)
  train = centers[np.repeat(range(3), 30)] + rng.normal(size=(90, 8))
  test = centers[np.repeat(range(3), 10)] + rng.normal(size=(30, 8))
  truth = np.repeat([4, 7, 9], 10)
  assert knn.top1(train, labels, test, truth, k=200) > 95


def test_knn_is_the_same_whatever_the_tiles(monkeypatch):
  rng = np.random.default_rng(1)
  train, test = rng.normal(size=(100, 5)), rng.normal(size=(17, 5))
  labels = rng.integers(0, 4, 100)
  kwargs = dict(ks=(1, 10), num_classes=4)
  want = knn.scores(train, labels, test, **kwargs)
  monkeypatch.setattr(nearest_lib, '_TRAIN_TILE', 7)
  monkeypatch.setattr(nearest_lib, '_TEST_TILE', 4)
  got = knn.scores(train, labels, test, **kwargs)
  for k in want:
    np.testing.assert_allclose(got[k], want[k], atol=1e-6)


def test_knn_equals_a_brute_force_vote():
  rng = np.random.default_rng(2)
  train, test = rng.normal(size=(40, 6)), rng.normal(size=(5, 6))
  labels = rng.integers(0, 3, 40)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  similarity = unit(test) @ unit(train).T
  got = knn.scores(train, labels, test, ks=(7,), num_classes=3)[7]
  for row, near in zip(got, similarity, strict=True):
    best = np.argsort(-near)[:7]
    weight = np.exp(near[best] / 0.07)
    want = np.bincount(labels[best], weight / weight.sum(), 3)
    np.testing.assert_allclose(row, want, rtol=1e-4)


def test_pca_tells_two_materials_apart():
  rng = np.random.default_rng(0)
  grid = np.zeros((1, 8, 8, 16))
  grid[:, :, :4, 0], grid[:, :, 4:, 1] = 5, 5
  colours = pictures.pca_rgb(grid + 0.1 * rng.normal(size=grid.shape))
  left, right = colours[0, :, :4, 0], colours[0, :, 4:, 0]
  assert colours.shape == (1, 8, 8, 3) and colours.dtype == np.uint8
  assert left.min() > right.max() or right.min() > left.max()


def test_similarity_is_one_at_the_mark():
  rng = np.random.default_rng(0)
  grid = rng.normal(size=(5, 6, 9))
  near = pictures.similarity(grid, (2, 3))
  assert near.shape == (5, 6) and near.argmax() == 2 * 6 + 3
  np.testing.assert_allclose(near[2, 3], 1)


def test_contact_sheet_shows_every_view():
  rng = np.random.default_rng(0)
  batch = {'global': rng.normal(size=(3, 2, 16, 16, 3)),
           'local': rng.normal(size=(3, 4, 8, 8, 3)),
           'mask': rng.random((3, 2, 16)) < 0.3}
  sheet = pictures.contact_sheet(batch, (0.5,) * 3, (0.5,) * 3, count=2)
  assert sheet.width > 4 * 112 + 4 * 72 and sheet.height > 2 * 112


def test_colours_run_from_dark_to_bright():
  ramp = pictures.colorize(np.linspace(-3, 7, 50)[None]).astype(int)
  assert (np.diff(ramp.sum(-1)[0]) >= 0).mean() > 0.9


def test_pixels_of_no_image_are_no_rows():
  """A process may have none of the last batch of an evaluation."""
  none = np.zeros((0, 8, 8, 3), np.uint8)
  assert pixels.flatten(none, (0.5,) * 3, (0.25,) * 3).shape == (0, 192)


def test_raw_pixels_are_what_the_network_sees():
  image = np.zeros((1, 8, 8, 3), np.uint8)
  image[:, :4] = 255
  got = pixels.flatten(image, (0.5,) * 3, (0.25,) * 3, side=2)
  small = got.reshape(2, 2, 3)
  np.testing.assert_allclose(small[0], 2)
  np.testing.assert_allclose(small[1], -2)

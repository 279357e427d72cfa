"""The normalised cut against a dense solver, and boxes that are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.evals import cut


def dense(features, tau, eps):
  """The second and third eigenvalue, and the vector, by LAPACK."""
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  matrix = np.where(unit @ unit.T > tau, 1.0, eps)
  scale = 1 / np.sqrt(matrix.sum(1))
  values, vectors = np.linalg.eigh(
      np.eye(len(matrix)) - scale[:, None] * matrix * scale[None])
  return values[1:3], scale * vectors[:, 1]


@pytest.mark.parametrize('shape, seed', [((9, 11), 0), ((20, 13), 1),
                                         ((3, 3), 2)])
def test_lanczos_is_the_dense_solver(shape, seed):
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(shape[0] * shape[1], 6)).astype(np.float32)
  features[:len(features) // 3] += 1.5
  values, want = dense(features.astype(np.float64), 0.2, 1e-5)
  got, close, converged = cut.second_vector(
      features, np.ones(len(features), bool), 0.2, 1e-5)
  assert converged
  np.testing.assert_allclose(close, values, atol=2e-5)
  sign = np.sign(got[np.abs(want).argmax()] * want[np.abs(want).argmax()])
  # Vectors are as exact as the gap of their values allows.
  np.testing.assert_allclose(
      sign * got, want, atol=1e-6 / (values[1] - values[0]))


def test_padding_changes_nothing():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(50, 6)).astype(np.float32) + 0.3
  alone = cut.second_vector(features, np.ones(50, bool), 0.2, 1e-5)
  padded = np.concatenate([features, np.full((14, 6), 7, np.float32)])
  got = cut.second_vector(padded, np.arange(64) < 50, 0.2, 1e-5)
  np.testing.assert_allclose(got[1], alone[1], atol=1e-5)
  sign = np.sign(np.vdot(got[0][:50], alone[0]))
  np.testing.assert_allclose(sign * got[0][:50], alone[0], atol=1e-4)
  assert not np.any(got[0][50:])


def test_a_square_on_noise_is_boxed():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(12, 16, 8)) * 0.1
  features[..., 0] += 1
  features[3:7, 5:11, 0] -= 1
  features[3:7, 5:11, 1] += 1
  got = cut.discover(jnp.asarray(features), patch_px=4, image_px=(46, 64),
                     tau=0.2)
  assert got.converged and list(got.box) == [20, 12, 44, 28]
  assert got.mask.sum() == 24 and got.mask.reshape(-1)[got.seed]


def test_only_the_part_with_the_seed_counts():
  mask = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]], bool)
  out = cut.component(mask, 6)
  np.testing.assert_array_equal(
      out, [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]])


def test_boxes_end_with_the_image():
  """The last column is part of a patch, and patches beyond do not count."""
  rng = np.random.default_rng(1)
  features = rng.normal(size=(8, 8, 4)) * 0.05 + [1, 0, 0, 0]
  features[4:6, 3:6] = [0, 1, 0, 0]
  got = cut.discover(jnp.asarray(features), patch_px=10, image_px=(55, 53),
                     tau=0.2)
  assert list(got.box) == [30, 40, 53, 55] and got.mask.shape == (6, 6)


def test_an_image_of_one_patch_is_refused():
  with pytest.raises(ValueError, match='one patch'):
    cut.discover(jnp.ones((2, 2, 3)), patch_px=16, image_px=(16, 16), tau=0.2)

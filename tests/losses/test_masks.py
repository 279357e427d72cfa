"""Losses of masks: matching, points, meshes. Numbers: tests/kinds/masks.py."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from dinojax.losses import masks
from dinojax.parallel import mesh as mesh_lib
from tests import close

QUERIES, KINDS, MOST = 6, 4, 3


def batch(images=8, seed=0, most=MOST, queries=QUERIES):
  rng = np.random.default_rng(seed)
  count = rng.integers(0, most + 1, images)
  present = np.arange(most)[None] < count[:, None]
  return (np.float32(rng.normal(size=(images, queries, KINDS + 1))),
          np.float32(rng.normal(size=(images, queries, 5, 6), scale=3)),
          masks.Targets(
              np.int32(rng.integers(0, KINDS, (images, most)) * present),
              np.float32((rng.random((images, most, 20, 24)) < 0.4)
                         * present[..., None, None]), present),
          jax.device_get(masks.draw(jax.random.key(seed), images, most,
                                    num_points=16)))


def gradients(mesh, rows):
  def total(classes, logits, targets, points):
    each = masks.losses(classes, logits, targets, points)
    return sum(each.values()), each

  with mesh_lib.activate(mesh):
    placed = jax.device_put(rows, jax.NamedSharding(mesh, mesh_lib.ROWS))
    return jax.device_get(jax.jit(jax.value_and_grad(
        total, argnums=(0, 1), has_aux=True))(*placed))


def test_a_mesh_changes_nothing():
  rows = batch()
  close.close(gradients(mesh_lib.make(4, 2), rows),
              gradients(mesh_lib.make(devices=jax.devices()[:1]), rows),
              of_largest=1e-5)


def test_the_least_sum_of_costs_is_taken():
  """That of scipy, also where there are more targets than queries."""
  for queries, most in ((6, 3), (3, 5)):
    classes, logits, targets, points = batch(4, 1, most, queries)
    got = np.asarray(jax.jit(masks.match)(
        classes, logits, targets, points.matching))
    for b, count in enumerate(targets.present.sum(1)):
      costs = np.asarray(jax.jit(masks.cost)(
          classes[b], logits[b], targets.classes[b], targets.masks[b],
          points.matching[b]))[:, :count]
      query, target = optimize.linear_sum_assignment(costs)
      want = np.full(most, -1)
      want[target] = query
      np.testing.assert_array_equal(got[b], want)


def test_the_order_of_targets_and_of_queries_is_no_matter():
  classes, logits, targets, points = batch(2, 3)
  run = jax.jit(masks.losses)
  first = run(classes, logits, targets, points)
  turned = np.arange(QUERIES)[::-1]
  close.close(run(classes[:, turned], logits[:, turned], targets, points),
              first, of_largest=1e-6)
  rng = np.random.default_rng(5)
  full = masks.Targets(
      np.int32(rng.integers(0, KINDS, (1, MOST))),
      np.float32(rng.random((1, MOST, 20, 24)) < 0.4), np.ones((1, 3), bool))
  each = masks.Points(*(x[1:] for x in (
      points.matching, points.candidates, points.fresh)))
  order = np.array([2, 0, 1])
  swapped = masks.Targets(full.classes[:, order], full.masks[:, order],
                          full.present)
  moved = masks.Points(each.matching, each.candidates[:, order],
                       each.fresh[:, order])
  close.close(run(classes[1:], logits[1:], swapped, moved),
              run(classes[1:], logits[1:], full, each), of_largest=1e-6)


def test_right_answers_cost_nothing_and_no_targets_only_classes():
  classes, logits, targets, points = batch(2, 4)
  wanted = np.zeros((2, MOST, 20, 24), np.float32)
  wanted[:, 0, :10], wanted[:, 1, 10:] = 1, 1
  present = np.array([[True, True, False]] * 2)
  targets = masks.Targets(np.int32([[1, 3, 0]] * 2), wanted, present)
  right = np.full((2, QUERIES, 20, 24), -50, np.float32)
  right[:, 4], right[:, 2] = 100 * wanted[:, 0] - 50, 100 * wanted[:, 1] - 50
  sure = np.zeros((2, QUERIES, KINDS + 1), np.float32)
  sure[..., -1] = 50
  sure[:, 4], sure[:, 2] = 50 * np.eye(5)[1], 50 * np.eye(5)[3]
  # Inside of the upper half: a point between two halves is of both.
  inside = jax.tree.map(lambda x: 0.1 + 0.3 * x, points)
  got = jax.jit(masks.losses)(sure, right, targets, inside)
  assert all(value < 1e-6 for value in got.values()), got
  np.testing.assert_array_equal(jax.jit(masks.match)(
      sure, right, targets, points.matching), [[4, 2, -1]] * 2)
  empty = masks.Targets(targets.classes, targets.masks * 0,
                        np.zeros_like(present))
  (value, each), grads = jax.jit(jax.value_and_grad(
      lambda c, m: (sum(masks.losses(c, m, empty, points).values()),
                    masks.losses(c, m, empty, points)),
      argnums=(0, 1), has_aux=True))(classes, logits)
  assert each['mask'] == each['dice'] == 0 and np.isfinite(value)
  assert np.isfinite(grads[0]).all() and not np.any(grads[1])


def test_values_between_pixels_and_outside():
  grid = jnp.arange(6, dtype=jnp.float32).reshape(1, 2, 3)
  points = jnp.asarray([[0.5, 0.25], [0.5, 0.5], [1.0, 0.25], [2.0, 2.0]])
  np.testing.assert_allclose(
      masks.sample(grid, points)[0], [1, 2.5, 1.0, 0], atol=1e-6)

"""Losses of boxes: matching, meshes, padding. Numbers: tests/kinds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from dinojax.losses import boxes
from dinojax.losses import detection
from dinojax.parallel import mesh as mesh_lib
from tests import close

KINDS = 4
losses = jax.jit(detection.losses)


def drawn(rng, *shape):
  """Boxes in an image of 100 pixels."""
  center = rng.uniform(10, 90, (*shape, 2))
  return np.float32(np.concatenate(
      [center, rng.uniform(5, 40, (*shape, 2))], axis=-1))


def batch(images=8, seed=0, most=3, queries=6):
  rng = np.random.default_rng(seed)
  count = rng.integers(0, most + 1, images)
  present = np.arange(most)[None] < count[:, None]
  before = drawn(rng, images, queries)
  changes = np.float32(rng.normal(size=(images, queries, 4), scale=0.3))
  after = np.asarray(boxes.moved(before, changes, jnp.full(
      (images, 1, 2), 100.0)))
  return (detection.Predicted(
      np.float32(rng.normal(size=(images, queries, KINDS))), after, before,
      changes), detection.Objects(
          np.int32(rng.integers(0, KINDS, (images, most)) * present),
          drawn(rng, images, most) * present[..., None], present))


def gradients(mesh, rows):
  def total(changes, predicted, objects):
    predicted = dataclasses.replace(
        predicted, changes=changes, boxes=boxes.moved(
            predicted.before, changes))
    each = detection.losses(predicted, objects)
    return detection.weighted(each, detection.WEIGHTS), each

  with mesh_lib.activate(mesh):
    placed = jax.device_put(
        (rows[0].changes, *rows), jax.NamedSharding(mesh, mesh_lib.ROWS))
    return jax.device_get(jax.jit(jax.value_and_grad(
        total, has_aux=True))(*placed))


def test_a_mesh_changes_nothing():
  rows = batch()
  close.close(gradients(mesh_lib.make(4, 2), rows),
              gradients(mesh_lib.make(devices=jax.devices()[:1]), rows),
              of_largest=1e-5)


@pytest.mark.parametrize('queries, most', [
    pytest.param(6, 3, marks=pytest.mark.slow), (3, 5)])
def test_the_least_sum_of_costs_is_taken(queries, most):
  """That of scipy, also where there are more objects than queries."""
  predicted, objects = batch(6, 1, most, queries)
  got = np.asarray(jax.jit(detection.match)(predicted, objects))
  some = 0
  for b, count in enumerate(objects.present.sum(1)):
    alone = lambda x, b=b: jax.tree.map(lambda leaf: leaf[b], x)
    costs = np.asarray(detection.cost(
        alone(predicted), alone(objects), detection.WEIGHTS))[:, :count]
    query, target = optimize.linear_sum_assignment(costs)
    want = np.full(queries, -1)
    want[query] = target
    np.testing.assert_array_equal(got[b], want)
    some += count
  assert some


def test_the_order_of_objects_is_no_matter():
  predicted, objects = batch()
  turned = jax.tree.map(lambda x: x[:, ::-1], objects)
  close.close(losses(predicted, turned),
              losses(predicted, objects), of_largest=1e-6)


def test_rows_that_are_padding_teach_nothing():
  predicted, objects = batch(4)
  weight = np.float32([1, 1, 1, 0])
  some = lambda x: jax.tree.map(lambda leaf: leaf[:3], x)
  close.close(losses(predicted, objects, rows=weight),
              losses(some(predicted), some(objects)),
              of_largest=1e-6)


def test_a_batch_without_objects_teaches_that_there_are_none():
  predicted, objects = batch(2)
  empty = dataclasses.replace(
      objects, present=np.zeros_like(objects.present))
  each = losses(predicted, empty)
  assert each['box'] == each['overlap'] == 0 and each['class'] > 0
  grads = jax.jit(jax.grad(lambda x: detection.losses(dataclasses.replace(
      predicted, boxes=x), empty)['overlap']))(jnp.asarray(predicted.boxes))
  assert not np.asarray(grads).any()


def test_a_perfect_box_costs_nothing():
  _, objects = batch(1)
  target = drawn(np.random.default_rng(3), 1, 1)
  objects = detection.Objects(
      np.int32([[2]]), target, np.array([[True]]))
  sure = np.full((1, 1, KINDS), -20, np.float32)
  sure[..., 2] = 20
  changes = np.asarray(boxes.change(target, target))
  each = losses(detection.Predicted(
      sure, target, target, changes), objects)
  assert all(abs(float(value)) < 1e-6 for value in each.values()), each


def test_changes_lead_to_their_target_but_for_the_margin():
  rng = np.random.default_rng(0)
  before, after = drawn(rng, 5), drawn(rng, 5)
  got = boxes.moved(before, boxes.change(before, after))
  # A tenth of a pixel is added to sides of five pixels and more.
  assert np.abs(np.asarray(got) - after).max() < 0.02 * 90
  assert np.abs(np.asarray(got) - after).max() > 1e-3


def test_boxes_without_area_have_no_overlap_and_finite_gradients():
  flat = jnp.array([[5.0, 5.0, 0.0, 0.0]])
  value, grads = jax.value_and_grad(lambda x: boxes.generalized_overlap(
      x, flat).sum())(flat)
  assert value == 0 and np.isfinite(np.asarray(grads)).all()

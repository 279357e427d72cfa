"""Rows in blocks: the same as all at once, and nothing is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.kernels import blocks
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import sharding
from tests import close

ROWS, WIDTH, HIDDEN = 12, 3, 40


def network(params, rows):
  return jnp.tanh(jnp.tanh(rows @ params['in']) @ params['out'])


def drawn(rows=ROWS):
  rng = np.random.default_rng(0)
  normal = lambda *shape: np.float32(rng.normal(size=shape))
  return {'in': normal(WIDTH, HIDDEN), 'out': normal(HIDDEN, 2)}, normal(
      rows, WIDTH)


def gradients(function, params, rows):
  loss = lambda *args: jnp.sum(jnp.cos(function(*args)))
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, rows)


def again(params, rows):
  return blocks.made_again(network, 4 * HIDDEN, params, rows)


@pytest.fixture(name='small', autouse=True)
def _small(monkeypatch):
  monkeypatch.setattr(blocks, '_CACHE_BYTES', 5 * 4 * HIDDEN)


@pytest.mark.parametrize('count, size', [
    (12, 4), (10, 5), (3, 3), (7, 5), (1, 1), (13, 5)])
def test_blocks_are_alike_where_they_can_be(count, size):
  assert blocks._size(count, 4 * HIDDEN) == size


@pytest.mark.parametrize('rows', [3, 12, 13])
def test_rows_in_blocks_are_all_rows(rows):
  """The last of 13 rows is a block with two that are nobody's."""
  given = drawn(rows)
  close.close(gradients(again, *given), gradients(network, *given),
              of_largest=1e-6)


def test_rows_that_fill_a_block_are_no_zeros():
  """Of 13 unit vectors, whose gradient at 0 is no number."""
  params, rows = drawn(13)
  unit = lambda params, rows: network(params, rows / jnp.sqrt(
      jnp.sum(rows ** 2, axis=-1, keepdims=True)))
  close.close(gradients(lambda *given: blocks.made_again(
      unit, 4 * HIDDEN, *given), params, rows), gradients(unit, params, rows),
              of_largest=1e-6)


def test_nothing_between_is_kept():
  _, pull = jax.vjp(again, *drawn())
  kept = sorted(x.shape for x in jax.tree.leaves(pull))
  assert kept == [(3, 40), (12, 3), (40, 2)]


def test_choices_side_by_side_are_each_by_itself():
  params, rows = drawn()
  many = jax.tree.map(lambda x: np.stack([x, 2 * x]), params)
  got = jax.vmap(lambda params: gradients(again, params, rows))(many)
  for i in range(2):
    close.close(jax.tree.map(lambda x, i=i: x[i], got), gradients(
        network, jax.tree.map(lambda x, i=i: x[i], many), rows),
                of_largest=1e-6)


def test_a_mesh_changes_nothing():
  params, rows = drawn(8)
  mesh = mesh_lib.make(2, 2, jax.devices()[:4])
  with mesh_lib.activate(mesh):
    got = gradients(
        lambda params, rows: sharding.by_rows(again, rows, whole=params),
        jax.device_put(params, jax.NamedSharding(mesh, jax.P())),
        jax.device_put(rows, jax.NamedSharding(mesh, mesh_lib.ROWS)))
  close.close(jax.device_get(got), jax.device_get(
      gradients(network, params, rows)), of_largest=1e-6)

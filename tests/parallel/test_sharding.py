"""Rows of a mesh: in one axis, multiplied, and taken by their devices."""

import jax
from jax import P
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.models.dense import parts
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import sharding

X = np.arange(8 * 3 * 5 * 2, dtype=np.float32).reshape(8, 3, 5, 2)


KERNEL = np.float32([[1, 2], [3, 5]])


def there_and_back(x):
  rows = sharding.in_one_axis(x)
  return rows, sharding.in_axes_of(rows[:, :1], x)


def check(got):
  rows, back = jax.device_get(got)
  np.testing.assert_array_equal(rows, X.reshape(-1, 2))
  np.testing.assert_array_equal(back, X[..., :1])


def test_rows_without_a_mesh():
  check(jax.jit(there_and_back)(X))


@pytest.mark.parametrize('is_set', [True, False])
def test_rows_of_a_mesh_stay_where_they_are(is_set):
  """Where no mesh is set, arrays still have theirs."""
  mesh = mesh_lib.make(2, 2, jax.devices()[:4])
  x = jax.device_put(X, jax.NamedSharding(mesh, mesh_lib.ROWS))
  run = jax.jit(there_and_back)
  if is_set:
    with mesh_lib.activate(mesh):
      got, text = run(x), run.lower(x).compile().as_text()
  else:
    got, text = run(x), run.lower(x).compile().as_text()
  check(got)
  rows, back = got
  assert rows.sharding.spec == P(*mesh_lib.ROWS, None)
  assert back.sharding.spec == P(*mesh_lib.ROWS, None, None, None)
  assert 'all-' not in text and 'permute' not in text


@pytest.mark.parametrize('spec', [
    P(('data', 'fsdp')), P('data'), P(None, 'data'), P('data', 'fsdp'), P()])
def test_a_product_leaves_rows_where_they_are(spec):
  mesh = mesh_lib.make(2, 2, jax.devices()[:4])
  x = np.arange(4 * 2 * 3 * 2, dtype=np.float32).reshape(4, 2, 3, 2)
  with mesh_lib.activate(mesh):
    placed = jax.device_put(x, jax.NamedSharding(mesh, spec))
    got = jax.jit(lambda x: parts.linear({'kernel': KERNEL}, x))(placed)
  np.testing.assert_array_equal(jax.device_get(got), x @ KERNEL)
  assert got.sharding.is_equivalent_to(placed.sharding, got.ndim)


@pytest.mark.parametrize('is_set', [True, False])
@pytest.mark.parametrize('spec', [P(('data', 'fsdp')), P('data'), P()])
def test_a_function_of_rows_learns_from_all(spec, is_set):
  mesh = mesh_lib.make(2, 2, jax.devices()[:4])
  x = np.arange(8, dtype=np.float32).reshape(4, 2)
  placed = jax.device_put(x, jax.NamedSharding(mesh, spec))
  loss = lambda w, x: jnp.sum(sharding.by_rows(
      lambda w, x: x @ w, x, whole=w) ** 2)
  run = jax.jit(jax.grad(loss))
  if is_set:
    with mesh_lib.activate(mesh):
      got = run(KERNEL, placed)
  else:
    got = run(KERNEL, placed)
  np.testing.assert_allclose(jax.device_get(got), 2 * x.T @ x @ KERNEL)

"""Rows in one axis, on a mesh and off it."""

import jax
from jax import P
import numpy as np
import pytest

from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import sharding

X = np.arange(8 * 3 * 5 * 2, dtype=np.float32).reshape(8, 3, 5, 2)


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

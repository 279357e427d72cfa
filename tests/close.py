"""How close two arrays are, judged as rounding behaves."""

import jax
import numpy as np


def close(got, want, *, of_largest: float):
  """Asserts that trees of arrays agree, tensor by tensor.

  The sum behind an entry of a gradient is of terms as large as those of the
  tensor's largest entry, so its rounding is too: an entry near zero may be
  off by many times itself, on one processor and not on another.

  Args:
    got: a tree of arrays.
    want: the same tree.
    of_largest: the tolerance, relative to the largest magnitude in each
      tensor of `want`.
  """
  def check(path, a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    np.testing.assert_allclose(
        a, b, rtol=0, atol=of_largest * np.abs(b).max(initial=0),
        err_msg=jax.tree_util.keystr(path))

  jax.tree.map_with_path(check, got, want)

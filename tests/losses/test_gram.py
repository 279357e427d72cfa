"""Gram anchoring: known answers, groups and guards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.losses import gram as gram_lib
from tests import compiled

gram = compiled.Functions(gram_lib)


@pytest.mark.parametrize('options, want', [
    ({}, 0.1273976), (dict(per_image=False), 0.3664419),
    (dict(remove_negative=True), 0.0217332),
    (dict(remove_only_teacher_negative=True), 0.2199901),
    (dict(normalize=False), 0.4376765)])
def test_gram_known_values(options, want):
  wave = lambda b, c: jnp.asarray(
      np.sin(b * np.arange(24) + c).reshape(2, 4, 3), jnp.float32)
  np.testing.assert_allclose(
      gram.gram(wave(1.3, 0), wave(0.7, 0.5), **options), want, rtol=1e-5)


def test_groups_are_averaged():
  student, teacher = np.random.default_rng(0).normal(
      size=(2, 3, 2, 4, 5)).astype(np.float32)
  weight = np.array([[[1, 1, 0, 1]] * 2, [[1, 0, 0, 0]] * 2,
                     [[0, 1, 1, 1]] * 2])
  for options in (dict(), dict(weight=weight)):
    got = gram.gram(student, teacher, per_image=False, **options)
    each = [gram.gram(s, t, per_image=False, **(
        dict(weight=w) if options else {}))
            for s, t, w in zip(student, teacher, weight, strict=True)]
    np.testing.assert_allclose(got, np.mean(each), rtol=1e-6)


def test_the_teacher_and_a_zero_token_are_harmless():
  student, teacher = np.random.default_rng(0).normal(
      size=(2, 1, 4, 5)).astype(np.float32)
  student[0, 2] = 0
  grads = jax.jit(jax.grad(gram.gram, (0, 1)))(student, teacher)
  assert np.isfinite(grads[0]).all()
  np.testing.assert_array_equal(grads[1], 0)


@pytest.mark.parametrize('options, message', [
    (dict(weight=jnp.ones((1, 4))), 'per_image=False'),
    (dict(remove_negative=True, remove_only_teacher_negative=True),
     'exclude each other')])
def test_options_that_exclude_each_other(options, message):
  x = jnp.ones((1, 4, 2))
  with pytest.raises(ValueError, match=message):
    gram.gram(x, x, **options)


def test_token_counts_must_agree():
  with pytest.raises(ValueError, match='resize'):
    gram.gram(jnp.ones((1, 4, 2)), jnp.ones((1, 16, 2)))

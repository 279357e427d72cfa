"""Text and image: meshes, padding, and what no device holds."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.losses import contrastive
from dinojax.parallel import mesh as mesh_lib
from tests import close


def drawn(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


IMAGE, TEXT, SCALE = drawn(0, 16, 12), drawn(1, 16, 12), np.float32([1.5])
WEIGHT = np.float32([1] * 13 + [0] * 3)
PATCHES, BACKBONE = drawn(2, 16, 6, 8), drawn(3, 16, 6, 10)


def gram(patches, backbone, weight):
  index = contrastive.sample(jax.random.key(0), 6, 0.5)
  return contrastive.patch_gram(patches, backbone, index, weight=weight)


CASES = {'contrastive': (contrastive.contrastive, (IMAGE, TEXT, SCALE, WEIGHT)),
         'gram': (gram, (PATCHES, BACKBONE, WEIGHT))}


def placed(mesh, arguments):
  return [jax.device_put(x, jax.NamedSharding(
      mesh, mesh_lib.ROWS if len(x) > 1 else jax.P())) for x in arguments]


@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients_are_those_of_one_device(name):
  loss, arguments = CASES[name]
  count = len(arguments) - 1
  program = jax.value_and_grad(loss, argnums=tuple(range(count)))
  want = jax.jit(program)(*arguments)
  for shape in ((8, 1), (2, 4)):
    with mesh_lib.activate(mesh_lib.make(*shape)) as _:
      mesh = jax.sharding.get_mesh()
      given = placed(mesh, arguments)
      compiled = jax.jit(program).lower(*given).compile()
      got = compiled(*given)
      assert [x.sharding.spec for x in got[1]] == [
          jax.typeof(x).sharding.spec for x in given[:count]]
      # Neither all logits on one device, nor patches of other images.
      assert not re.search(r'f32\[16,16\]', compiled.as_text())
      if name == 'gram':
        assert not re.search('all-gather|all-to-all', compiled.as_text())
      close.close(jax.device_get(got), want, of_largest=2e-6)


@pytest.mark.parametrize('name', CASES)
def test_padding_is_as_if_it_were_not_there(name):
  loss, arguments = CASES[name]
  some = [x[:13] if len(x) > 1 else x for x in arguments[:-1]]
  want = jax.jit(loss)(*some, None)
  np.testing.assert_allclose(jax.jit(loss)(*arguments), want, rtol=1e-6)
  broken = [x.copy() for x in arguments]
  for x in broken[:-1]:
    if len(x) > 1:
      x[13:] = 100 * drawn(9, *x[13:].shape)
  value, grads = jax.jit(jax.value_and_grad(
      loss, argnums=(0, 1)))(*broken)
  np.testing.assert_allclose(value, want, rtol=1e-6)
  assert not any(np.asarray(grad)[13:].any() for grad in grads)


def test_it_is_the_formula():
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  logits = np.exp(1.5) * unit(IMAGE) @ unit(TEXT).T
  rows = [np.log(np.exp(s).sum(1)) - np.diag(s) for s in (logits, logits.T)]
  np.testing.assert_allclose(
      contrastive.per_pair(IMAGE, TEXT, jnp.asarray(SCALE)),
      np.mean(rows, axis=0), rtol=1e-5)


def test_equal_pairs_cost_the_logarithm_of_their_number():
  same = jnp.ones((5, 3))
  assert float(contrastive.contrastive(same, same, jnp.float32([2.0]))
               ) == pytest.approx(math.log(5), rel=1e-6)


def test_zeros_have_finite_gradients():
  grads = jax.grad(contrastive.contrastive, argnums=(0, 1))(
      jnp.zeros((4, 3)), jnp.asarray(TEXT[:4, :3]), jnp.asarray(SCALE))
  assert all(np.isfinite(x).all() for x in grads)


def test_the_scale_is_clamped():
  assert contrastive.LOG_SCALE_START == pytest.approx(2.6592600)
  np.testing.assert_allclose(
      contrastive.clamped(jnp.float32([-1.0, 2.0, 9.0])),
      [0.0, 2.0, math.log(100)], rtol=1e-6)


def test_patches_are_drawn_without_repetition():
  some = [np.asarray(contrastive.sample(jax.random.key(k), 14, 0.34))
          for k in range(3)]
  assert {len(set(x.tolist())) for x in some} == {4}
  assert (some[0] != some[1]).any() and max(map(np.max, some)) < 14


def test_the_backbone_gets_no_gradient():
  grad = jax.grad(gram, argnums=1)(PATCHES, BACKBONE, WEIGHT)
  assert not np.asarray(grad).any()

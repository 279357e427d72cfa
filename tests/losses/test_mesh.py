"""Losses over rows split on eight devices: same numbers, nothing gathered."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.losses import centering
from dinojax.losses import dino
from dinojax.losses import gram
from dinojax.losses import ibot
from dinojax.losses import koleo
from dinojax.losses import sinkhorn
from dinojax.train import monitor

ROWS = jax.P(('data', 'fsdp'))


def rows(seed, *shape):
  return np.asarray(jax.random.normal(jax.random.key(seed), shape))


STUDENT, TEACHER = rows(0, 16, 2, 24), rows(1, 16, 2, 24)
MASKED, MASKED_TEACHER = rows(2, 8, 6, 24), rows(3, 8, 6, 24)
VALID = (rows(4, 8, 6) > -1).astype(np.float32)
FEATURES, PATCHES, MORE = (
    rows(5, 8, 4, 10), rows(6, 8, 2, 6, 10), rows(7, 8, 2, 6, 10))


def dino_loss(student, teacher):
  targets = sinkhorn.sinkhorn_knopp(teacher, temperature=0.2)
  return dino.dino(student, targets, ignore_diagonal=True)


def ibot_loss(student, teacher, valid):
  targets = sinkhorn.sinkhorn_knopp(teacher, temperature=0.2, weight=valid)
  return ibot.ibot(student, targets, valid / 3, num_rows=32)


def centred_loss(student, teacher, valid):
  center = centering.update_center(
      centering.group_mean(teacher, valid), centering.row_mean(teacher))
  targets = centering.softmax_center(teacher, center, 0.2)
  return ibot.ibot(student, targets, valid / 3, num_rows=32)


CASES = {
    'dino': (dino_loss, (STUDENT, TEACHER)),
    'ibot': (ibot_loss, (MASKED, MASKED_TEACHER, VALID)),
    'centred': (centred_loss, (MASKED, MASKED_TEACHER, VALID)),
    'koleo': (lambda x: koleo.koleo(x, topk=2), (FEATURES,)),
    'gram': (lambda x, y: gram.gram(x[:, 0], y[:, 0]), (PATCHES, MORE)),
    'gram_groups': (lambda x, y, w: gram.gram(
        x, y, weight=w, per_image=False),
                    (PATCHES, MORE, VALID.reshape(8, 1, 6).repeat(2, 1))),
}


@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients_are_those_of_one_device(name):
  f, arguments = CASES[name]
  program = jax.jit(jax.value_and_grad(f))
  want, want_grad = program(*arguments)
  mesh = jax.make_mesh((2, 4), ('data', 'fsdp'))
  with jax.set_mesh(mesh):
    placed = jax.device_put(arguments, jax.NamedSharding(mesh, ROWS))
    compiled = program.lower(*placed).compile()
    got, grad = compiled(*placed)
  # Sums of a hundred float32 terms in another order.
  np.testing.assert_allclose(got, want, rtol=2e-6)
  np.testing.assert_allclose(
      grad, want_grad, rtol=0, atol=2e-6 * np.abs(want_grad).max())
  assert grad.sharding.spec[0] == ROWS[0]
  assert not re.search('all-gather|all-to-all|permute', compiled.as_text())


@pytest.mark.parametrize('f', [
    lambda x: sinkhorn.sinkhorn_knopp(x, temperature=0.2),
    lambda x: monitor.target_metrics(jax.nn.softmax(x)),
    lambda x: monitor.feature_metrics(x[:, 0])],
    ids=['sinkhorn', 'target_metrics', 'feature_metrics'])
def test_outputs_are_those_of_one_device(f):
  want = jax.jit(f)(TEACHER)
  mesh = jax.make_mesh((2, 4), ('data', 'fsdp'))
  with jax.set_mesh(mesh):
    placed = jax.device_put(TEACHER, jax.NamedSharding(mesh, ROWS))
    compiled = jax.jit(f).lower(placed).compile()
    got = compiled(placed)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-7), got, want)
  assert not re.search('all-gather|all-to-all|permute', compiled.as_text())


def test_pairs_of_crops_are_never_formed():
  b, s, t, k = 4, 7, 5, 24
  shapes = [jax.ShapeDtypeStruct(x, jnp.float32)
            for x in ((b, s, k), (b, t, k))]
  text = jax.jit(jax.grad(dino.dino)).lower(*shapes).as_text()
  sizes = [np.prod([int(n) for n in m.split('x')])
           for m in re.findall(r'tensor<([\dx]+)xf32>', text)]
  assert max(sizes) == b * s * k

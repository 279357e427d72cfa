"""Losses: known answers, and inputs that break careless ones."""

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
from tests import compiled

dino_weights, mask_weight = dino.dino_weights, ibot.mask_weight
centering, dino, gram, ibot, koleo, sinkhorn = map(
    compiled.Functions, (centering, dino, gram, ibot, koleo, sinkhorn))


def wave(rows, columns, b, c):
  """Value number n is sin(b·n + c)."""
  return jnp.asarray(np.sin(
      b * np.arange(rows * columns) + c).reshape(rows, columns), jnp.float32)


def test_sinkhorn_known_row():
  got = sinkhorn.sinkhorn_knopp(wave(6, 5, 0.9, 0.3), temperature=0.05)
  np.testing.assert_allclose(
      got[0], [2.7e-6, 0.8602079, 0.1397894, 1e-7, 0.0], atol=1e-6)
  np.testing.assert_allclose(
      got.sum(0), [0.9926822, 0.9765494, 1.0201643, 1.0864680, 1.9241364],
      rtol=1e-5)


@pytest.mark.parametrize('scale', [1e3, 1e5])
def test_sinkhorn_survives_logits_that_overflow_exp(scale):
  logits = scale * jax.random.normal(jax.random.key(0), (32, 16))
  got = sinkhorn.sinkhorn_knopp(logits, temperature=0.04)
  assert jnp.isfinite(got).all()
  np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)


def test_sinkhorn_survives_a_prototype_nobody_uses():
  logits = jnp.zeros((8, 4)).at[:, 2].set(-1e4)
  got = sinkhorn.sinkhorn_knopp(logits, temperature=0.05)
  assert jnp.isfinite(got).all()
  np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)


def rewriting(logits, temperature, num_iterations=3):
  """The references' form: the matrix is rewritten; float64."""
  q = np.exp(np.asarray(logits, np.float64) / temperature)
  q /= q.sum()
  for _ in range(num_iterations):
    q /= q.sum(0, keepdims=True) * q.shape[1]
    q /= q.sum(1, keepdims=True) * q.shape[0]
  return q * q.shape[0]


@pytest.mark.parametrize('temperature', [0.04, 0.07])
@pytest.mark.parametrize('scale', [0.1, 0.45, 1.0])
def test_sinkhorn_equals_the_rewriting_form(temperature, scale):
  # Cosine-like logits: those of unit-norm heads lie in [-1, 1].
  logits = scale * jnp.tanh(jax.random.normal(jax.random.key(1), (64, 96)))
  got = sinkhorn.sinkhorn_knopp(logits, temperature=temperature)
  np.testing.assert_allclose(
      got, rewriting(logits, temperature), rtol=0, atol=1e-6)


@pytest.mark.parametrize('junk', [1e4, -1e4, jnp.inf, jnp.nan])
def test_sinkhorn_padding_may_hold_anything(junk):
  logits = jax.random.normal(jax.random.key(0), (8, 16))
  weight = jnp.ones(8).at[6:].set(0)
  got = sinkhorn.sinkhorn_knopp(
      logits.at[6:].set(junk), temperature=0.05, weight=weight)
  assert not got[6:].any()
  # Sums of six and of eight rows are rounded in another order.
  np.testing.assert_allclose(got[:6], sinkhorn.sinkhorn_knopp(
      logits[:6], temperature=0.05), rtol=1e-5)


def test_sinkhorn_of_padding_alone_is_zero():
  got = sinkhorn.sinkhorn_knopp(
      jnp.ones((4, 8)), temperature=0.05, weight=jnp.zeros(4))
  np.testing.assert_array_equal(got, 0)


def test_sinkhorn_keeps_a_prototype_that_one_low_row_wants():
  # The row's peak is e^-200 of the largest: its first factor is 0, but its
  # own prototype must find it again.
  logits = jnp.zeros((6, 4)).at[:5, 3].set(-400.0).at[5].set(
      jnp.asarray([-400.0, -400.0, -400.0, -10.0]))
  got = sinkhorn.sinkhorn_knopp(logits, temperature=0.05)
  np.testing.assert_allclose(got[5], [0, 0, 0, 1], atol=1e-6)
  np.testing.assert_allclose(got[:5], [[1 / 3] * 3 + [0]] * 5, atol=1e-6)


def test_targets_carry_no_gradient():
  logits = jax.random.normal(jax.random.key(0), (6, 8))
  for f in (lambda x: sinkhorn.sinkhorn_knopp(x, temperature=0.1),
            lambda x: centering.softmax_center(x, jnp.zeros(8), 0.1)):
    grad = jax.grad(lambda x, f=f: (f(x) ** 2).sum())(logits)
    np.testing.assert_array_equal(grad, 0)


def test_sinkhorn_rows_may_have_several_axes():
  logits = jax.random.normal(jax.random.key(0), (3, 4, 16))
  flat = sinkhorn.sinkhorn_knopp(logits.reshape(12, 16), temperature=0.1)
  np.testing.assert_allclose(
      sinkhorn.sinkhorn_knopp(logits, temperature=0.1).reshape(12, 16), flat,
      rtol=1e-5, atol=1e-7)


def test_softmax_centring_known_rows():
  logits = wave(6, 5, 0.9, 0.3)
  center = jnp.zeros(5)
  np.testing.assert_allclose(
      centering.softmax_center(logits, center, 0.07)[0],
      [8.18e-5, 0.7276929, 0.2722163, 9.0e-6, 0], atol=1e-7)
  center = centering.update_center(center, centering.row_mean(logits))
  np.testing.assert_allclose(center, [
      -0.0146383, -0.0019991, 0.0121530, 0.0171079, 0.0091159], atol=1e-7)
  np.testing.assert_allclose(
      centering.softmax_center(logits, center, 0.07)[0],
      [1.031e-4, 0.7658424, 0.2340472, 7.2e-6, 0], atol=1e-7)


def test_group_mean_weighs_groups_alike():
  logits = jnp.asarray([[[2.0], [4.0]], [[10.0], [jnp.inf]]])
  valid = jnp.asarray([[1.0, 1.0], [1.0, 0.0]])
  assert centering.group_mean(logits, valid)[0] == (3 + 10) / 2


def test_dino_known_values():
  b = 3
  teacher = sinkhorn.sinkhorn_knopp(wave(6, 5, 0.9, 0.3), temperature=0.05)
  views = lambda x: x.reshape(-1, b, 5).transpose(1, 0, 2)
  teacher, student = views(teacher), views(wave(6, 5, 1.7, 0.1))
  local = views(wave(12, 5, 0.53, 1.1))
  np.testing.assert_allclose(dino.dino(local, teacher), 6.109222, rtol=1e-6)
  np.testing.assert_allclose(
      dino.dino(student, teacher, ignore_diagonal=True), 10.009660, rtol=1e-6)
  np.testing.assert_allclose(dino.dino(student, teacher), 9.413963, rtol=1e-6)


@pytest.mark.parametrize('views, expected', [
    ((2, 8, True), (2 / 18, 16 / 18)), ((2, 4, True), (0.2, 0.8)),
    ((2, 0, True), (1, 0)), ((2, 8, False), (4 / 20, 16 / 20))])
def test_every_pair_weighs_the_same(views, expected):
  np.testing.assert_allclose(dino_weights(*views), expected)


def test_a_single_global_crop_makes_no_pair():
  with pytest.raises(ValueError, match='crops.num_global'):
    dino_weights(1, 8, True)
  x = jnp.ones((2, 1, 4))
  with pytest.raises(ValueError, match='crops.num_global'):
    dino.dino(x, x, ignore_diagonal=True)


def test_ibot_known_value():
  masks = np.zeros((4, 6), bool)
  masks[0, [1, 2]] = masks[2, [0, 3, 4]] = True
  weight = mask_weight(masks)[masks]
  np.testing.assert_allclose(weight, [1 / 2] * 2 + [1 / 3] * 3)
  targets = sinkhorn.sinkhorn_knopp(wave(5, 5, 0.6, 0.2), temperature=0.05)
  np.testing.assert_allclose(ibot.ibot(
      wave(5, 5, 1.1, 0.7), targets, weight, num_rows=4), 3.583828, rtol=1e-6)


@pytest.mark.parametrize('junk', [1e38, jnp.inf, jnp.nan])
def test_ibot_padding_may_hold_anything(junk):
  logits = jnp.asarray([[1.0, 2.0], [junk, junk]])
  targets = jnp.asarray([[0.5, 0.5], [junk, 0.5]])
  f = lambda logits, targets, weight: ibot.ibot(
      logits, targets, jnp.asarray(weight), num_rows=1)
  loss, grad = jax.value_and_grad(f)(logits, targets, [1.0, 0.0])
  want, want_grad = jax.value_and_grad(f)(logits[:1], targets[:1], [1.0])
  np.testing.assert_array_equal(loss, want)
  np.testing.assert_array_equal(grad[:1], want_grad)
  np.testing.assert_array_equal(grad[1:], 0)


@pytest.mark.parametrize('f', [
    lambda x: sinkhorn.sinkhorn_knopp(x, temperature=0.1),
    lambda x: centering.softmax_center(x, x[0], 0.1),
    lambda x: centering.row_mean(x),
    lambda x: dino.dino(x[None], abs(x)[None]),
    lambda x: ibot.ibot(x, abs(x), jnp.ones(8), num_rows=2),
    lambda x: koleo.koleo(x[None]),
    lambda x: gram.gram(x[None], x[None, ::-1])],
    ids=['sinkhorn', 'center', 'mean', 'dino', 'ibot', 'koleo', 'gram'])
def test_bfloat16_is_read_but_not_computed_in(f):
  half = jax.random.normal(jax.random.key(0), (8, 16), jnp.bfloat16)
  whole = half.astype(jnp.float32)
  got, want = f(half), f(whole)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_koleo_known_values():
  x = wave(4, 3, 2.3, 0.2)[None]
  np.testing.assert_allclose(koleo.koleo(x), 0.4514380, rtol=1e-5)
  np.testing.assert_allclose(koleo.koleo(x, topk=2), 0.2392928, rtol=1e-5)


@pytest.mark.parametrize('copies', [2, 3, 4])
def test_koleo_survives_duplicates(copies):
  rows = jax.random.normal(jax.random.key(0), (4, 4))
  x = rows.at[:copies].set(rows[0])[None]
  terms = koleo.koleo_per_row(x)[0, :, 0]
  # −ln(1e-8 (1 + √4))
  np.testing.assert_allclose(terms[:copies], 17.32, atol=0.01)
  grad = jax.grad(koleo.koleo)(x)
  # Only rows with a real neighbour pull; their gaps are of order one.
  assert np.abs(grad).max() < 1.0


def test_koleo_keeps_the_gradient_of_near_neighbours():
  x = jnp.asarray([[[1.0, 0.0], [1.0, 1e-4], [-1.0, 0.0]]])
  grad = jax.grad(lambda x: koleo.koleo_per_row(x)[0, 0, 0])(x)
  np.testing.assert_allclose(grad[0, 1], [0, -1e4], rtol=1e-3, atol=2)


def test_koleo_of_a_zero_row_has_a_gradient():
  x = jax.random.normal(jax.random.key(0), (1, 4, 4)).at[0, 1].set(0)
  assert jnp.isfinite(jax.grad(koleo.koleo)(x)).all()


def test_koleo_needs_a_neighbour():
  with pytest.raises(ValueError, match='koleo.group_images'):
    koleo.koleo(jnp.ones((2, 1, 4)))

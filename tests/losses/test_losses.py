"""Losses against the references' values and gradients, and known answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.losses import centering
from dinojax.losses import dino
from dinojax.losses import ibot
from dinojax.losses import koleo
from dinojax.losses import sinkhorn
from tests import golden


def wave(rows, columns, b, c):
  """Value number n is sin(b·n + c)."""
  return jnp.asarray(np.sin(
      b * np.arange(rows * columns) + c).reshape(rows, columns), jnp.float32)


def test_sinkhorn_equals_reference():
  case = golden.load('sinkhorn_knopp')
  for call in case.meta['calls']:
    kwargs = dict(temperature=call['teacher_temp'],
                  num_iterations=call['n_iterations'])
    name = call['id']
    got = sinkhorn.sinkhorn_knopp(
        jnp.asarray(case.inputs[f'{name}/logits']), **kwargs)
    for variant in ('dino_v2', 'dino_v3', 'ibot_v2', 'ibot_v3'):
      case.check(f'{name}/{variant}', got)
    buffer = jnp.asarray(case.inputs[f'{name}/buffer'])
    count = int(case.inputs[f'{name}/n_masked'][0])
    weight = (jnp.arange(len(buffer)) < count).astype(jnp.float32)
    padded = sinkhorn.sinkhorn_knopp(buffer, weight=weight, **kwargs)
    case.check(f'{name}/ibot_rows_only', padded[:count])
    assert not padded[count:].any()
    case.check(f'{name}/ibot_literal_whole_buffer',
               sinkhorn.sinkhorn_knopp(buffer, **kwargs))


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


def test_sinkhorn_rows_may_have_several_axes():
  logits = jax.random.normal(jax.random.key(0), (3, 4, 16))
  flat = sinkhorn.sinkhorn_knopp(logits.reshape(12, 16), temperature=0.1)
  np.testing.assert_allclose(
      sinkhorn.sinkhorn_knopp(logits, temperature=0.1).reshape(12, 16), flat,
      rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('version', ['v2', 'v3'])
def test_softmax_centring_equals_reference(version):
  case = golden.load('softmax_center')
  momentum = case.meta['config']['momentum']
  for head in ('dino', 'ibot'):
    center = jnp.asarray(case.inputs[f'{version}/{head}_center0']).reshape(-1)
    for i in range(3):
      logits = jnp.asarray(case.inputs[f'{version}/{head}_teacher{i}'])
      shape = case.outputs[f'{version}/{head}_center_after_apply{i}'].shape
      case.check(f'{version}/{head}_center_after_apply{i}',
                 center.reshape(shape))
      case.check(f'{version}/{head}_probs{i}', centering.softmax_center(
          logits, center, case.inputs[f'{version}/temp{i}']))
      mean = (logits.mean(0) if head == 'dino' else centering.group_mean(
          logits, jnp.ones(logits.shape[:2])))
      center = centering.update_center(center, mean, momentum)
    case.check(f'{version}/{head}_center_final', center.reshape(shape))


def test_group_mean_weighs_groups_alike():
  logits = jnp.asarray([[[2.0], [4.0]], [[10.0], [99.0]]])
  valid = jnp.asarray([[1.0, 1.0], [1.0, 0.0]])
  assert centering.group_mean(logits, valid)[0] == (3 + 10) / 2


def test_dino_equals_reference():
  case = golden.load('dino_loss')
  for call in case.meta['calls']:
    name = call['id']
    student = jnp.asarray(case.inputs[f'{name}/student']).transpose(1, 0, 2)
    teacher = jnp.asarray(case.inputs[f'{name}/teacher']).transpose(1, 0, 2)
    # DINOv2 sums over pairs what DINOv3 averages.
    pairs = student.shape[1] * teacher.shape[1] if (
        name.startswith('v2')) else 1
    mean = functools.partial(
        dino.dino, student_temperature=call['student_temp'],
        ignore_diagonal=call.get('ignore_diagonal', False))
    loss, grad = jax.value_and_grad(
        lambda s, t, mean, pairs: pairs * mean(s, t))(
            student, teacher, mean, pairs)
    case.check(f'{name}/loss', loss)
    case.check(f'{name}/grad_student', grad.transpose(1, 0, 2))


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
  np.testing.assert_allclose(dino.dino_weights(*views), expected)


@pytest.mark.parametrize('variant', ['v2_torch_path', 'v3'])
def test_ibot_equals_reference(variant):
  case = golden.load('ibot_patch_loss')
  masks, count = case.inputs['masks'], int(case.inputs['n_masked'])
  buffer = jnp.asarray(case.inputs['student_buffer'])
  probs = jnp.asarray(case.inputs['teacher_probs'])
  weight = jnp.asarray(case.inputs['masks_weight'])
  temperature = case.meta['config']['student_temp']
  f = lambda s, t, w: ibot.ibot(
      s, t, w, num_rows=len(masks), student_temperature=temperature)
  loss, grad = jax.value_and_grad(f)(buffer[:count], probs, weight)
  case.check(f'{variant}/sliced/loss', loss)
  case.check(f'{variant}/sliced/grad_student', grad)
  case.check(f'{variant}/noweight/loss', loss)
  pad = len(buffer) - count
  loss, grad = jax.value_and_grad(f)(
      buffer, jnp.pad(probs, ((0, pad), (0, 0))), jnp.pad(weight, (0, pad)))
  case.check(f'{variant}/padded/loss', loss)
  case.check(f'{variant}/padded/grad_student', grad)


def test_ibot_padding_may_hold_anything():
  logits = jnp.asarray([[1.0, 2.0], [jnp.inf, jnp.nan]])
  targets = jnp.asarray([[0.5, 0.5], [0.5, 0.5]])
  f = lambda weight: ibot.ibot(logits, targets, weight, num_rows=1)
  assert jnp.isfinite(f(jnp.asarray([1.0, 0.0])))


def test_koleo_equals_reference():
  case = golden.load('koleo_loss')
  top = lambda k: lambda x: koleo.koleo(x[None], topk=k)
  for name in ('c0', 'c1'):
    x = jnp.asarray(case.inputs[f'{name}/x'])
    for variant, f in (('v2', top(1)), ('v3', top(1)),
                       ('v3_dist_top1', top(1)), ('v3_dist_top2', top(2))):
      loss, grad = jax.value_and_grad(f)(x)
      case.check(f'{name}/{variant}/loss', loss)
      case.check(f'{name}/{variant}/grad', grad, atol=1e-3 * abs(
          case.outputs[f'{name}/{variant}/grad']).max(), rtol=0)


def test_koleo_of_one_rank_equals_reference():
  case = golden.load('koleo_loss')
  x = jnp.asarray(case.inputs['dist/global_x'])
  for group, size in (('groupall', 16), ('group8', 8)):
    for topk in (1, 2):
      for rank in range(4):
        def f(x, rank=rank, size=size, topk=topk):
          terms = koleo.koleo_per_row(x.reshape(-1, size, 32), topk=topk)
          return terms.reshape(4, -1)[rank].mean()
        name = f'dist/{group}_top{topk}/rank{rank}'
        loss, grad = jax.value_and_grad(f)(x)
        case.check(f'{name}/loss', loss)
        case.check(f'{name}/grad_global_x', grad, atol=1e-3 * abs(
            case.outputs[f'{name}/grad_global_x']).max(), rtol=0)


def test_koleo_known_values():
  x = wave(4, 3, 2.3, 0.2)[None]
  np.testing.assert_allclose(koleo.koleo(x), 0.4514380, rtol=1e-5)
  np.testing.assert_allclose(koleo.koleo(x, topk=2), 0.2392928, rtol=1e-5)


def test_koleo_survives_duplicates():
  x = jnp.ones((1, 4, 4))
  loss, grad = jax.value_and_grad(koleo.koleo)(x)
  np.testing.assert_allclose(loss, 17.32, atol=0.01)  # −ln(1e-8 (1 + √4))
  assert jnp.isfinite(grad).all()


def test_koleo_needs_a_neighbour():
  with pytest.raises(ValueError, match='koleo.group_images'):
    koleo.koleo(jnp.ones((2, 1, 4)))

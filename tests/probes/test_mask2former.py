"""Mask2Former: what it learns, on any mesh, and sizes that it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.core import tree
from dinojax.engine import optimizer
from dinojax.models.dense import adapter
from dinojax.models.dense import deformable
from dinojax.models.dense import mask2former
from dinojax.models.dense import queries
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes.tasks import mask2former as task_lib
from tests import close

WIDTH, SIDE, IMAGES = 16, 64, 8


def task(**changes):
  config = mask2former.of_sizes(
      WIDTH, 3, hidden=64, num_queries=6, num_pixel_layers=1, num_layers=4)
  config = dataclasses.replace(config, adapter=dataclasses.replace(
      config.adapter, channels=4, **changes))
  return task_lib.Mask2Former(decoder=config, num_points=32, most_targets=3)


@functools.cache
def head():
  return jax.device_get(jax.jit(lambda: task().init(
      jax.random.key(0), (WIDTH,) * 4, 'patches'))())


def batch(images=IMAGES, padding=1, fill=0.0):
  """Features and images; those of the last rows are padding."""
  rng = np.random.default_rng(0)
  rows = {'image': rng.normal(size=(images, SIDE, SIDE, 3)),
          'maps': rng.normal(size=(4, images, 4, 4, WIDTH))}
  rows = jax.tree.map(np.float32, rows)
  rows['image'][images - padding:] += fill
  rows['maps'][:, images - padding:] += fill
  return [{'map': x} for x in rows['maps']], {
      'image': rows['image'],
      'classes': np.int32(rng.integers(0, 3, (images, SIDE, SIDE))),
      'weight': np.float32([1] * (images - padding) + [0] * padding)}


def run(params, features, rows, the_task):
  draws = the_task.draw(jax.random.key(1), jnp.int32(5), rows)
  outputs, stats = the_task.outputs(
      {'params': params, 'stats': head()['stats']}, features, rows, draws)
  return the_task.loss(outputs, rows, draws), (stats, outputs[-1])


def learned(mesh):
  with mesh_lib.activate(mesh):
    rows = jax.device_put(batch(), jax.NamedSharding(mesh, mesh_lib.ROWS))
    params = jax.device_put(head()['params'], jax.NamedSharding(
        mesh, jax.P()))
    return jax.device_get(jax.jit(jax.value_and_grad(
        functools.partial(run, the_task=task()), has_aux=True))(params, *rows))


def by_layer(values):
  """Loss, statistics, predictions, and gradients of whole layers.

  Kernel and bias of a layer are sums of the same terms. Where a norm follows,
  those of the bias cancel each other, and what is left is their rounding.
  """
  (loss, (stats, last)), grads = values
  layers = {}
  for name, x in tree.items(grads):
    layer, _, leaf = name.rpartition('/')
    key = layer if leaf in ('kernel', 'bias', 'scale', 'shift') else name
    layers.setdefault(key, []).append(x.ravel())
  return loss, stats, last, {
      key: np.concatenate(parts) for key, parts in layers.items()}


@pytest.mark.slow  # three programs of half a minute
@pytest.mark.parametrize('sizes', [(8, 1), (2, 4)])
def test_a_mesh_changes_nothing(sizes):
  close.close(by_layer(learned(mesh_lib.make(*sizes))), alone(),
              of_largest=1e-5)


@functools.cache
def alone():
  return by_layer(learned(single()))


def single():
  return mesh_lib.make(devices=jax.devices()[:1])


@pytest.mark.slow  # programs of a minute
def test_rows_that_are_padding_teach_nothing():
  go = jax.jit(jax.value_and_grad(functools.partial(
      run, the_task=task()), has_aux=True))
  results = []
  for fill in (0.0, 1e3):
    (loss, (stats, last)), grads = jax.device_get(go(
        head()['params'], *batch(3, fill=fill)))
    results.append(by_layer(
        ((loss, (stats, jax.tree.map(lambda x: x[:2], last))), grads)))
  close.close(*results, of_largest=1e-5)


@pytest.mark.slow  # two programs of a quarter of a minute
def test_a_prediction_is_of_its_image_alone():
  """Whatever stands in the other rows, and in any order."""
  the_task = task()
  predict = jax.jit(lambda features, image: the_task.predict(
      the_task.outputs(head(), features, {'image': image}, None)[0]))
  features, rows = batch(3, padding=1)
  others, other_rows = batch(3, padding=1, fill=1e3)
  want = predict(features, rows['image'])
  assert want.shape == (3, SIDE // 4, SIDE // 4, 3)
  got = predict(others, other_rows['image'])
  np.testing.assert_array_equal(got[:2], want[:2])
  back = predict([{'map': x['map'][::-1]} for x in features],
                 rows['image'][::-1])
  np.testing.assert_allclose(back[::-1], want, rtol=1e-5, atol=1e-6)


def test_deformable_attention_on_a_mesh():
  """Values and gradients, of levels that are no squares."""
  sizes, rng = ((4, 3), (2, 5)), np.random.default_rng(0)
  config = deformable.Config(8, 2, 2, 3, 4)
  params = deformable.init(jax.random.key(0), config)
  params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(
      np.float32), params)
  rows = (np.float32(rng.normal(size=(8, 5, 8))),
          np.float32(rng.normal(size=(8, 22, 8))))
  points = np.float32(rng.random((1, 5, 2, 2)))

  def run(params, queries, maps):
    out = deformable.apply(params, config, queries, points, maps, sizes)
    return jnp.sum(jnp.square(out)), out

  def learned(mesh):
    with mesh_lib.activate(mesh):
      placed = jax.device_put(rows, jax.NamedSharding(mesh, mesh_lib.ROWS))
      whole = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
      return jax.device_get(jax.jit(jax.value_and_grad(
          run, argnums=(0, 1, 2), has_aux=True))(whole, *placed))

  want = learned(single())
  for shape in ((8, 1), (2, 4)):
    close.close(learned(mesh_lib.make(*shape)), want, of_largest=1e-5)


def test_deformable_attention_of_a_single_image():
  """Also with a level, and heads of width 1, on a mesh of one device."""
  config = deformable.Config(8, 4, 1, 3, 4)
  params = deformable.init(jax.random.key(0), config)
  with mesh_lib.activate(single()):
    rows = jax.device_put(np.zeros((1, 12, 8), np.float32), jax.NamedSharding(
        single(), mesh_lib.ROWS))
    out = jax.eval_shape(lambda rows: deformable.apply(
        params, config, rows, deformable.centers([(3, 4)])[None, :, None],
        rows, [(3, 4)]), rows)
  assert out.shape == (1, 12, 8)


def test_few_rows_are_read_at_a_time():
  """Neither sampled rows nor their gradients are ever whole in memory."""
  n, m, d, each = 512, 256, 64, 48
  shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (
      ((m, d), jnp.float32), ((n, each), jnp.int32), ((n, each), jnp.float32))]
  program = jax.jit(jax.grad(
      lambda values, rows, shares: jnp.sum(jnp.square(
          deformable.mixed(values, rows, shares))), argnums=(0, 2))).lower(
              *shapes).compile()
  assert program.memory_analysis().temp_size_in_bytes < 4 * n * each * d / 8


def test_a_query_that_sees_nothing_looks_everywhere():
  coarse = jnp.array([[[1.0], [-1.0], [0.0]]])
  masks = jnp.array([[[1.0], [-1.0], [0.0]]])
  looks = mask2former.query_decoder.looks(masks, coarse)
  np.testing.assert_array_equal(looks[0, 0], [
      [1, 0, 1], [0, 1, 1], [1, 1, 1]])
  nothing = mask2former.query_decoder.looks(-masks[:, :1], coarse[:, :1])
  np.testing.assert_array_equal(nothing, [[[[True]]]])


@pytest.mark.slow  # a program of seven seconds
def test_queries_have_no_order():
  config = task().decoder.decoder
  params = jax.device_get(jax.jit(lambda: mask2former.query_decoder.init(
      jax.random.key(0), config))())
  rng = np.random.default_rng(0)
  features = np.float32(rng.normal(size=(1, 8, 8, 64)))
  maps = [np.float32(rng.normal(size=(1, n, n, 64))) for n in (2, 4, 4)]
  apply = jax.jit(lambda params: mask2former.query_decoder.apply(
      params, config, features, maps)[-1])
  order = np.array([3, 1, 5, 0, 2, 4])
  turned = apply(params | {name: params[name][order]
                           for name in ('queries', 'places')})
  want = apply(params)
  close.close(turned, queries.Predicted(
      want.classes[:, order], want.masks[:, order]), of_largest=1e-5)


@pytest.mark.parametrize('size, patch_px, text', [
    ((64, 72), 16, 'multiples of 32, such as 64 × 64'),
    ((32, 64), 16, '32 × 64 pixels do not lie.* such as 64 × 64'),
    ((96, 224), 14, 'multiples of 224, such as 224 × 224')])
def test_sizes_that_do_not_fit_are_sentences(size, patch_px, text):
  with pytest.raises(errors.UserError, match=text):
    adapter.check(size, patch_px)


def test_some_branches_are_skipped_and_the_rest_makes_up_for_them():
  config = task(drop_path=0.25).decoder.adapter
  kept = np.asarray(adapter.draw(jax.random.key(0), config, 4000))
  assert kept.shape == (6, 4000) and set(np.unique(kept)) == {
      0.0, np.float32(4 / 3)}
  assert abs(kept.mean() - 1) < 0.02


def test_only_kernels_decay():
  factors = mask2former.weight_decays(jax.eval_shape(lambda: task().init(
      jax.random.key(0), (WIDTH,) * 4, 'patches'))['params'])
  decayed = {name.rpartition('/')[2] for name, x in tree.items(factors) if x}
  still = {name.rpartition('/')[2] for name, x in tree.items(factors) if not x}
  assert decayed == {'kernel'}
  assert still == {'scale', 'shift', 'bias', 'queries', 'places', 'levels'}


@pytest.mark.slow  # two hundred steps
def test_two_images_are_learned_by_heart():
  the_task = task(drop_path=0.0)
  features, rows = batch(2, padding=0)
  rows['classes'] = np.zeros((2, SIDE, SIDE), np.int32)
  rows['classes'][0, :, 24:], rows['classes'][1, 40:] = 1, 2
  rule = optimizer.adamw()
  ones = jax.tree.map(lambda _: 1.0, head()['params'])

  @jax.jit
  def step(state, i):
    params, stats, opt = state
    def loss(params):
      draws = the_task.draw(jax.random.fold_in(jax.random.key(0), i), i, rows)
      outputs, new = the_task.outputs(
          {'params': params, 'stats': stats}, features, rows, draws)
      return the_task.loss(outputs, rows, draws), new
    (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
    params, opt = rule.update(
        grads, opt, params, {'lr': 2e-3, 'weight_decay': 0.0},
        optimizer.Multipliers(ones, ones))
    return (params, new, opt), value

  state = (head()['params'], head()['stats'], rule.init(head()['params']))
  values = []
  for i in range(200):
    state, value = step(state, jnp.int32(i))
    values.append(float(value))
  assert np.mean(values[-10:]) < 0.25 * np.mean(values[:10]), values[::20]
  outputs, _ = the_task.outputs(
      {'params': state[0], 'stats': state[1]}, features, rows, None)
  predicted = np.asarray(the_task.predict(outputs)).argmax(-1)
  truth = rows['classes'][:, 2::4, 2::4]
  assert (predicted == truth).mean() > 0.95

"""Segmentation by queries, from drawn images to scores and predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.evals import mask_heads
from dinojax.evals.protocols import segmentation
from dinojax.evals.protocols import segments
from dinojax.metrics import segmentation as metrics
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes.tasks import masks
from tests import close
from tests.evals import test_dense
from tests.interop import cases

scenes = test_dense.scenes
QUICK = test_dense.QUICK | dict(
    recipe='masks', num_queries=8, num_blocks=2, num_points=64, steps=60,
    learning_rates=(3e-3,), weight_decays=(0.05,))


@pytest.mark.slow  # trainings of minutes on one core
@pytest.mark.parametrize('recipe', ['masks', 'eomt'])
def test_queries_tell_stripes_apart(recipe, scenes, tmp_path):
  measured, = segmentation.run(test_dense.job(
      tmp_path, test_dense.segmentation_sets(scenes)),
      segmentation.Settings(**QUICK | {'recipe': recipe}))
  scores = measured.scores()
  assert scores['mIoU'] > 60, scores
  assert measured.head.kind == recipe
  first, last = measured.head.task.anneal[-1]
  assert (first, last) == (40, 50)  # the last sixth is not masked


@pytest.mark.parametrize('count, want', [
    (3, ((17, 33), (42, 58), (67, 83))),
    (4, ((17, 33), (33, 50), (50, 67), (67, 83)))])
def test_blocks_open_one_after_another(count, want):
  """EoMT's, of a training of 100 steps."""
  assert mask_heads.falls_evenly(count, 100) == want


def test_what_queries_cannot_be_in_is_a_sentence():
  for name, settings, config, text in (
      ('segmentation', segmentation.Settings(recipe='eomt'), cases.CONVNEXT,
       'segmentation.recipe=eomt has queries among the tokens of a ViT'),
      ('segments', segments.Settings(recipe='eomt', num_blocks=5),
       test_dense.CONFIG, 'segments.num_blocks=5: queries enter the last '
       'blocks of the backbone, which has 4: set segments.num_blocks=3')):
    with pytest.raises(errors.UserError, match=text):
      {'segmentation': segmentation, 'segments': segments}[name].check(
          settings, config)


def test_a_head_of_eomt_is_of_the_size_of_its_backbone():
  task = mask_heads.task(
      segmentation.Settings(recipe='eomt', steps=60), test_dense.model(), 3,
      pixels=masks.dense.Pixels(patch_px=test_dense.CONFIG.side_px))
  assert task.decoder.num_blocks == 3 and len(task.anneal) == 3
  assert task.decoder.backbone.depth == 4
  strides = [segmentation.Settings(recipe=recipe).resolved.stride_px
             for recipe in ('eomt', 'masks')]
  assert strides == [None, 256]  # evenly, or half of a window
  values = segments.Settings(recipe='eomt').resolved
  assert (values.learning_rate, values.warmup_steps) == (1e-4, 1500)
  learning = mask_heads.learning(task, values, 1500)['factors']
  assert learning.of_new.rise_steps == learning.of_blocks.wait_steps == 500
  assert learning.of_blocks.rise_steps == 1000


@pytest.mark.slow  # a training of minutes on one core
def test_mask2former_tells_stripes_apart(scenes, tmp_path):
  settings = segmentation.Settings(**QUICK | dict(
      recipe='m2f', hidden=32, num_pixel_layers=1, short_px=64, crop_px=64,
      stride_px=40, num_points=128, learning_rates=(1e-3,), ratios=(0.9, 1.0),
      flips=True, softmax=False))
  measured, = segmentation.run(test_dense.job(
      tmp_path, test_dense.segmentation_sets(scenes)), settings)
  scores = measured.scores()
  assert scores['mIoU'] > 60, scores
  assert measured.head.kind == 'mask2former'
  assert measured.head.facts['views']['softmax'] is False


def test_the_recipe_of_mask2former():
  values = segmentation.Settings(recipe='m2f').resolved
  assert (values.short_px, values.crop_px, values.stride_px) == (896, 896, 596)
  assert segmentation.Settings(recipe='m2f').rates == [(1e-4, 0.05)]
  segmentation.check(segmentation.Settings(recipe='m2f'), test_dense.CONFIG)
  pixels = masks.dense.Pixels(patch_px=test_dense.CONFIG.side_px)
  task = mask_heads.task(values, test_dense.model(), 5, pixels=pixels)
  assert task.layers == (0, 1, 2, 3) and task.pixels.patch_px == 32
  learning = mask_heads.learning(task, values, values.warmup_steps)
  assert [round(float(learning['schedule'](step)['lr']), 6) for step in (
      0, 750, 1500, 20_750, 40_000)] == [0, 0.5, 1, 0.5, 0]
  assert learning['decays'] is mask_heads.RECIPES['m2f'].decays
  sizes = task.decoder
  assert (sizes.num_classes, sizes.decoder.num_layers,
          sizes.pixels.num_layers, sizes.pixels.num_heads) == (5, 9, 6, 8)
  plain = mask_heads.task(segmentation.Settings(recipe='masks').resolved,
                          test_dense.model(), 5, pixels=pixels)
  assert plain.decoder.num_blocks == len(plain.anneal) == 6


@pytest.mark.parametrize('values, text', [
    ({'crop_px': 900}, 'segmentation.crop_px=900: .* such as 896 × 896'),
    ({'short_px': 32}, 'crop_px=32: .* such as 64 × 64'),
    ({'hidden': 100}, 'hidden=100 is no multiple of 32.* set .*hidden=96'),
    ({'layers': 2}, 'layers=2, and the adapter of the recipe m2f reads 4')])
def test_sizes_that_mask2former_does_not_take(values, text):
  with pytest.raises(errors.UserError, match=text):
    segmentation.check(segmentation.Settings(recipe='m2f', **values),
                       test_dense.CONFIG)


def test_labels_are_padded_as_images_are():
  """A crop of no whole patches keeps each label on its pixel."""
  task = masks.Masks(
      decoder=masks.mask_decoder.Config(8, 2, 3), most_targets=2,
      pixels=masks.dense.Pixels(patch_px=8))
  labels = np.ones((1, 12, 14), np.uint8)
  got = task.targets({'classes': labels, 'weight': np.ones(1, np.float32)})
  assert got.masks.shape == (1, 2, 16, 16)
  want = np.zeros((16, 16), bool)
  want[2:14, 1:15] = True  # the rest is no pixel of the image
  np.testing.assert_array_equal(got.masks[0, 0], want)


def test_targets_are_the_classes_of_an_image():
  labels = np.full((2, 4, 6), metrics.IGNORED, np.int32)
  labels[0, :2], labels[0, 2:, :2], labels[1] = 3, 1, 2
  got = jax.jit(masks.targets_of, static_argnums=(2, 3))(
      labels, np.float32([1, 0]), 5, 3)
  np.testing.assert_array_equal(got.present, [[1, 1, 0], [0, 0, 0]])
  np.testing.assert_array_equal(got.classes, [[3, 1, 0], [0, 0, 0]])
  assert got.masks.shape == (2, 3, 4, 6)
  np.testing.assert_array_equal(got.masks[0].sum((1, 2)), [12, 4, 0])
  assert not got.masks[1].any()  # padding has no targets
  # Of more classes than there is room for, the largest stay.
  some = jax.jit(masks.targets_of, static_argnums=(2, 3))(
      labels, np.float32([1, 1]), 5, 1)
  np.testing.assert_array_equal(some.classes, [[3], [2]])


def test_queries_are_opened_as_the_steps_go():
  task = masks.Masks(
      decoder=masks.mask_decoder.Config(8, 2, 3, num_queries=50, num_blocks=2),
      anneal=((0, 10), (5, 10)))
  batch = {'weight': jnp.ones(4)}
  opened = lambda step: np.asarray(jax.jit(task.draw)(
      jax.random.key(0), jnp.int32(step), batch)['opened']).mean((1, 2))
  np.testing.assert_array_equal(opened(0), [0, 0])
  np.testing.assert_array_equal(opened(10), [1, 1])
  first, second = opened(5)
  assert 0.3 < first < 0.7 and second == 0
  with mesh_lib.activate(mesh_lib.make(4, 2)):
    assert task.draw(jax.random.key(0), jnp.int32(5), batch)


@pytest.mark.slow  # two programs of minutes; losses/test_masks.py is on a mesh
def test_a_mesh_changes_nothing():
  task = masks.Masks(
      decoder=masks.mask_decoder.Config(
          16, 2, 3, patch_px=8, num_queries=6, num_blocks=2, num_levels=2),
      anneal=((0, 10), (5, 10)), num_points=32, most_targets=3)
  head = jax.jit(lambda: task.init(jax.random.key(0), (16, 16), 'patches'))()
  rng = np.random.default_rng(0)
  features = [{'cls': rng.normal(size=(8, 16)),
               'registers': rng.normal(size=(8, 2, 16)),
               'map': rng.normal(size=(8, 3, 4, 16))} for _ in range(2)]
  features = jax.tree.map(np.float32, features)
  batch = {'classes': np.int32(rng.integers(0, 3, (8, 24, 32))),
           'weight': np.float32([1] * 7 + [0])}

  def learned(mesh):
    def run(params, features, batch):
      draws = task.draw(jax.random.key(1), jnp.int32(5), batch)
      outputs, stats = task.outputs(
          {'params': params, 'stats': head['stats']}, features, batch, draws)
      return task.loss(outputs, batch, draws), (stats, outputs[-1].classes)

    with mesh_lib.activate(mesh):
      rows = jax.device_put((features, batch), jax.NamedSharding(
          mesh, mesh_lib.ROWS))
      params = jax.device_put(head['params'], jax.NamedSharding(
          mesh, jax.P()))
      return jax.device_get(jax.jit(jax.value_and_grad(
          run, has_aux=True))(params, *rows))

  close.close(learned(mesh_lib.make(4, 2)),
              learned(mesh_lib.make(devices=jax.devices()[:1])),
              of_largest=1e-5)

"""Plain-DETR: what it keeps from padding, and sizes that it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.evals import detection_heads
from dinojax.evals.protocols import detection
from dinojax.features import windowed
from dinojax.losses import detection as losses
from dinojax.models.dense import box_decoder
from dinojax.models.dense import detector
from dinojax.models.dense import proposals
from dinojax.parallel import mesh as mesh_lib
from tests.evals import test_dense
from tests.interop import cases

WIDTH = 8


def config(**changes):
  return detector.Config((WIDTH, WIDTH), box_decoder.Config(
      3, 32, 2, 24, 2, 8, 16), num_queries=4, num_extra=5,
                         num_encoder_layers=1, encoder_ffn=24, **changes)


def test_no_cell_of_the_image_takes_in_what_lies_beyond():
  """Three of four cells of the coarsest map are image: the fourth is 0."""
  sizes = config().proposals
  params = proposals.init(jax.random.key(0), sizes)
  rng = np.random.default_rng(0)
  memory = np.float32(rng.normal(size=(1, 8, 8, 32)))
  cells = np.array([[7, 5]])
  run = jax.jit(lambda x: proposals.apply(params, sizes, x, cells))
  want = run(memory)
  memory[:, 7:] = memory[:, :, 5:] = 1e3
  got = run(memory)
  np.testing.assert_array_equal(got.states, want.states)
  np.testing.assert_array_equal(got.boxes, want.boxes)


def test_proposals_are_squares_around_the_cells_of_four_maps():
  sizes = config().proposals
  got = proposals.apply(
      proposals.init(jax.random.key(0), sizes), sizes,
      jnp.ones((1, 32, 32, 32)), np.array([[32, 32]]))
  assert got.boxes.shape[1] == proposals.count((32, 32)) == 5440
  boxes = np.asarray(got.boxes[0])
  fine = boxes[:4096].reshape(64, 64, 4)
  np.testing.assert_allclose(fine[10, 3], [28, 84, 50, 50])
  coarse = boxes[-64:].reshape(8, 8, 4)
  np.testing.assert_allclose(coarse[2, 5], [352, 160, 400, 400])
  # The nearest to the border reach less than a hundredth of the image.
  assert (fine[0, 0] == 512).all() and (fine[1, 1] == [12, 12, 50, 50]).all()


@pytest.mark.slow  # programs of a quarter of a minute
def test_what_lies_beyond_the_image_changes_no_answer_of_its_decoder():
  sizes, rng = config(), np.random.default_rng(1)
  params = detector.init(jax.random.key(0), sizes)
  extent = np.array([[96, 64]])
  values, places = (np.float32(rng.normal(size=(1, 8, 8, 32)))
                    for _ in range(2))

  @jax.jit
  def run(values):
    seen = box_decoder.Map(values, places, -(-extent // 16))
    memory = detector.encoded(params['encoder'], sizes, seen)
    return jnp.where(seen.inside[..., None], memory, 0), detector.proposed(
        params, sizes, memory, seen.cells, jnp.float32(extent[:, ::-1]))

  want = run(values)
  values[:, 6:] = values[:, :, 4:] = 5.0
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=1e-5, atol=1e-5), run(values), want)


@pytest.mark.slow  # two programs
def test_queries_of_training_change_nothing_for_the_others():
  sizes, rng = config(), np.random.default_rng(2)
  params = detector.init(jax.random.key(0), sizes)
  maps = np.float32(rng.normal(size=(2, 2, 8, 8, WIDTH)))
  extent = np.array([[128, 128], [96, 64]])
  run = jax.jit(lambda extra: detector.apply(
      params, sizes, list(maps), extent, with_extra=extra),
                static_argnums=0)
  alone, both = run(False), run(True)
  assert not alone.extra and len(both.extra) == 2
  assert both.extra[0].classes.shape == (2, 5, 3)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=1e-5, atol=1e-4), both.queries, alone.queries)


@pytest.mark.slow  # three programs
@pytest.mark.parametrize('is_set', [True, False])
def test_rows_of_a_mesh_answer_as_without(is_set):
  """Sizes of images are whole everywhere, and a mesh need not be set."""
  sizes, rng = config(), np.random.default_rng(2)
  params = detector.init(jax.random.key(0), sizes)
  maps = np.float32(rng.normal(size=(2, 4, 8, 8, WIDTH)))
  extent = np.array([[128, 128], [96, 64]] * 2)
  run = jax.jit(lambda params, maps: detector.apply(
      params, sizes, list(maps), extent).queries)
  want = run(params, maps)
  mesh = mesh_lib.make(2, 2, jax.devices()[:4])
  given = (jax.device_put(params, jax.NamedSharding(mesh, jax.P())),
           jax.device_put(maps, jax.NamedSharding(
               mesh, jax.P(None, *mesh_lib.ROWS))))
  if is_set:
    with mesh_lib.activate(mesh):
      got = run(*given)
  else:
    got = run(*given)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      jax.device_get(x), y, rtol=1e-5, atol=1e-4), got, want)


def test_the_best_proposals_come_first_and_the_first_of_equal_ones():
  scores = np.float32([[1, 3, 2, 3, 0]])[..., None]
  boxes = np.arange(20, dtype=np.float32).reshape(1, 5, 4)
  got, index = detector.best(losses.Predicted(
      jnp.asarray(scores), jnp.asarray(boxes)), 3)
  assert index.tolist() == [[1, 3, 2]]
  np.testing.assert_array_equal(got[0], boxes[0, [1, 3, 2]])


def test_images_with_fewer_proposals_than_queries_are_refused():
  sizes = config()
  params = jax.eval_shape(lambda: detector.init(jax.random.key(0), sizes))
  with pytest.raises(ValueError, match='1 × 1 patches propose 5 boxes, and '
                     'there are 9 queries'):
    jax.eval_shape(lambda params: detector.apply(
        params, sizes, [jnp.zeros((1, 1, 1, WIDTH))] * 2,
        np.array([[16, 16]]), with_extra=True), params)


@pytest.mark.parametrize('length, count, want', [
    (2048, 3, [0, 688, 1376, 2048]), (64, 2, [0, 32, 64]),
    (96, 5, [0, 32, 64, 96])])
def test_windows_are_whole_patches_but_for_the_last(length, count, want):
  if count == 5:
    with pytest.raises(ValueError, match='96 pixels are too few for 5 windows'):
      windowed.edges(length, count, 16)
  else:
    assert windowed.edges(length, count, 16) == want


def test_layers_are_the_last_of_every_quarter():
  assert detection_heads.read_layers(24) == (5, 11, 17, 23)
  assert detection_heads.read_layers(40) == (9, 19, 29, 39)
  assert detection_heads.read_layers(2) == (0, 1)


@pytest.mark.parametrize('values, text', [
    ({'hidden': 100}, 'detection.hidden=100 is no multiple of 32 and of 8 '
     'heads: set detection.hidden=96'),
    ({'num_heads': 24}, 'of 32 and of 24 heads: set detection.hidden=288'),
    ({'crop_px': 102}, 'crop_px=102 is no whole number of patches of 4 '),
    ({'views_px': (96, 101)}, 'detection.views_px=101 is no whole number '),
    ({'crop_px': 64}, 'crop_px=64 gives 1360 proposals for 1800 quer'),
    ({'views_px': (16,)}, 'views_px=16 gives 85 proposals for 300 queries'),
    ({'crop_px': 16, 'windows': 3, 'num_queries': 2, 'num_extra': 0},
     'windows=3: 16 pixels are too few for 3 windows'),
    ({'num_extra': 500}, 'copies=6 of detection.most_targets=100 objects are '
     'more than detection.num_extra=500 queries: set detection.num_extra=600'),
    ({'scales': (0.5, 2.0)}, 'scales=0.5,2 are no least and greatest scale')])
def test_sizes_that_do_not_fit_are_a_sentence(values, text):
  with pytest.raises(errors.UserError, match=text):
    detection.check(detection.Settings(**values), test_dense.CONFIG)


def test_a_convnext_has_no_blocks_to_read():
  with pytest.raises(errors.UserError, match='reads the blocks of a ViT'):
    detection.check(detection.Settings(), cases.CONVNEXT)


def test_the_recipe_of_plain_detr():
  learning = detection_heads.learning(1200, 100)
  got = [float(learning['schedule'](step)['lr'])
         for step in (0, 50, 100, 1099, 1100)]
  np.testing.assert_allclose(got, [0, 0.5, 1, 1, 0.1], rtol=1e-6)
  decays = learning['decays'](jax.eval_shape(lambda: detector.init(
      jax.random.key(0), config())))
  layer = decays['decoder']['layers']
  assert layer['fc1'] == {'kernel': 1.0, 'bias': 0.0}
  assert layer['cross']['q']['kernel'] == 1.0
  assert layer['cross']['columns']['1']['kernel'] == 0.0
  assert decays['queries'] == decays['level'] == 0.0

"""Features that are asked for by a spec, in one pass of the backbone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.features import backbone
from dinojax.features import spec
from dinojax.kernels import rotary
from dinojax.models import convnext
from dinojax.models import positions
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from tests.interop import cases

VIT = vit.ViTConfig(48, 3, 2, 14, image_px=56, num_registers=4,
                    position='rope')
CONVNEXT = convnext.ConvNeXtConfig((1, 1, 2, 1), (8, 12, 16, 24))
EVERY = (*spec.TOKENS, *spec.ATTENTION)
IMAGES = np.random.default_rng(0).normal(size=(2, 42, 56, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def model():
  return backbone.Backbone.of(cases.weights(VIT))


@pytest.fixture(scope='module')
def pyramid():
  return backbone.Backbone.of(cases.weights(CONVNEXT))


def close(a, b):
  np.testing.assert_allclose(a, b, atol=2e-5)


def test_all_outputs_of_a_layer_have_their_shapes(model):
  layers = model.read(IMAGES, spec.FeatureSpec(EVERY, (0, 2)))
  assert [{name: x.shape[1:] for name, x in layer.items()}
          for layer in layers] == 2 * [{
              'cls': (48,), 'mean': (48,), 'registers': (4, 48),
              'patches': (12, 48), 'map': (3, 4, 48), 'keys': (17, 48),
              'attention': (2, 17, 17),
              'cls_attention': (2, 17)}]
  last = layers[-1]
  close(last['mean'], last['patches'].mean(1))
  close(last['map'].reshape(2, 12, 48), last['patches'])


def test_what_enters_a_block_is_what_the_last_one_gave(model):
  before = model.read(IMAGES, spec.FeatureSpec(
      ('cls', 'patches'), (1, 2), 'before'))
  raw = model.read(IMAGES, spec.FeatureSpec(('cls', 'patches'), (0, 1), 'raw'))
  for a, b in zip(before, raw, strict=True):
    close(a['cls'], b['cls'])
    close(a['patches'], b['patches'])


def test_keys_are_those_of_the_attention(model):
  """Queries against keys, turned by RoPE, are the attention."""
  layer = 1
  features, = model.read(
      IMAGES, spec.FeatureSpec(
          ('keys', 'attention', 'cls_attention'), (layer,)))

  def queries(net, x):
    tokens = net.read(x, [('before', layer)])[0]['prenorm']
    block = jax.tree.map(lambda leaf: leaf[layer], net.blocks)
    return block.attn.project(block.norm1(tokens))[..., :48]

  with mesh_lib.activate(model.mesh):
    q = model.net.program('queries', queries)(
        model.params, processes.to_devices(IMAGES, model.mesh))
  rope = positions.rope((3, 4), VIT.periods, normalize=VIT.rope_normalize,
                        dtype=np.dtype(VIT.rope_dtype))
  split = lambda x: rotary.rotate(x.reshape(2, 17, 2, 24), rope)
  scores = np.einsum('rnhd,rmhd->rhnm', split(q), split(features['keys']))
  close(jax.nn.softmax(scores * 24 ** -0.5), features['attention'])
  close(features['attention'][:, :, 0], features['cls_attention'])


def test_blocks_of_a_frozen_backbone_are_not_copied(model):
  """Features of some blocks are the same bits, in less memory."""
  compiled, wanted = [], {'x': spec.FeatureSpec(('map',), (1,))}
  with mesh_lib.activate(model.mesh):
    images = processes.to_devices(IMAGES[:1], model.mesh)
    for frozen in (True, False):
      program = jax.jit(lambda params, x, frozen=frozen: model.net.apply(
          params, x, functools.partial(
              spec.compute, specs=wanted, frozen=frozen))).lower(
                  model.params, images).compile()
      compiled.append((
          jax.device_get(program(model.params, images)),
          program.memory_analysis().temp_size_in_bytes))
  (got, ours), (want, others) = compiled
  jax.tree.map(np.testing.assert_array_equal, got, want)
  block = sum(x.nbytes for x in jax.tree.leaves(model.params['blocks'])) // 3
  assert ours < others - block


def test_a_pyramid_on_a_grid_of_patches_keeps_its_own_at_the_end(tmp_path):
  """Of DINOv3: intermediate layers are resized, the final map is not."""
  config = dataclasses.replace(CONVNEXT, patch_px=16)
  model = backbone.Backbone.of(cases.weights(config))
  images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype(
      np.float32)
  assert model(images).patches.shape == (2, 6, 24)
  final, = model.read(images, spec.FeatureSpec(('map', 'cls'), 1, 'final'))
  normed, = model.read(images, spec.FeatureSpec(('map', 'cls')))
  assert final['map'].shape == (2, 2, 3, 24)
  assert normed['map'].shape == (2, 4, 6, 24)
  close(final['cls'], normed['cls'])


def test_lists_are_as_good_as_tuples(model):
  lists = spec.FeatureSpec(['cls'], [0, 2])
  assert lists == spec.FeatureSpec(('cls',), (0, 2))
  assert len(model.read(IMAGES, lists)) == 2
  with pytest.raises(errors.UserError, match=r"give \('cls',\)"):
    spec.FeatureSpec('cls')
  with pytest.raises(errors.UserError, match='of the last layer'):
    model.read(IMAGES, spec.FeatureSpec(('cls',), 2, 'final'))


def test_several_specs_are_one_pass_of_the_backbone(model):
  specs = {'first': spec.FeatureSpec(('cls',), (0,)),
           'all': spec.FeatureSpec(('patches', 'attention'), 3),
           'raw': spec.FeatureSpec(('mean',), 1, 'raw')}
  features = model.run(IMAGES, specs)
  for name, feature_spec in specs.items():
    for a, b in zip(
        features[name], model.read(IMAGES, feature_spec), strict=True):
      jax.tree.map(close, a, b)
  together, alone = (model._program(which, False, None) for which in (
      specs, {'all': specs['all']}))
  with mesh_lib.activate(model.mesh):
    rows = processes.to_devices(IMAGES, model.mesh)
    flops = [program.lower(model.params, rows).compile().cost_analysis()[
        'flops'] for program in (together, alone)]
  assert flops[0] < 1.2 * flops[1]
  assert together is model._program(dict(specs), False, None)


def test_a_pyramid_gives_its_stages(pyramid):
  images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype(
      np.float32)
  read = lambda *args: pyramid.read(images, spec.FeatureSpec(*args))
  assert [layer['map'].shape[1:] for layer in read(('map',), 4)] == [
      (16, 24, 8), (8, 12, 12), (4, 6, 16), (2, 3, 24)]
  before, = read(('map', 'cls'), (2,), 'before')
  raw, = read(('map', 'cls'), (1,), 'raw')
  close(before['map'], raw['map'])
  close(before['cls'], raw['cls'])
  feature_spec = spec.FeatureSpec(('cls',), (1, 2), 'before')
  assert feature_spec.widths(CONVNEXT) == (8, 12)
  assert spec.FeatureSpec(('cls',), 2).widths(CONVNEXT) == (16, 24)


@pytest.mark.parametrize('wrong, text', [
    (dict(outputs=('clss',)), "'clss' is no output .* cls, mean"),
    (dict(place='after'), 'normed, raw, before'),
    (dict(layers=4), 'up to 3, or indices from 0 to 2'),
    (dict(layers=(3,)), 'indices from 0 to 2'),
    (dict(layers=()), 'are not in this model')])
def test_what_a_backbone_does_not_have_is_refused(model, wrong, text):
  with pytest.raises(errors.UserError, match=text):
    model.read(IMAGES, dataclasses.replace(spec.FeatureSpec(), **wrong))


@pytest.mark.parametrize('wrong, text', [
    (dict(outputs=('keys',)), 'no attention'),
    (dict(layers=(0,), place='before'), 'layers from 1 to 3')])
def test_what_a_pyramid_does_not_have_is_refused(pyramid, wrong, text):
  with pytest.raises(errors.UserError, match=text):
    pyramid.read(IMAGES, dataclasses.replace(spec.FeatureSpec(), **wrong))

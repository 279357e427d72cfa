"""DPT heads of depth and canopy height, and losses of relative depth."""

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.evals import published_heads
from dinojax.features import backbone
from dinojax.interop import files
from dinojax.interop import reading
from dinojax.interop import translate
from dinojax.interop.heads import dpt as tables
from dinojax.losses import affine_depth
from dinojax.models.dense import bins
from dinojax.models.dense import dpt
from dinojax.probes.tasks import dense
from tests import golden
from tests.kinds import dense as shared
from tests.kinds import depth


def config_of(c, *, num_outputs, readout, **changes):
  return dpt.Config(
      channels=c['channels'], projected=tuple(c['post_process_channels']),
      num_outputs=num_outputs, readout=readout, **changes)


def head_of(case, config, width):
  """Our head of a state dict, every tensor of which is understood."""
  shapes = jax.eval_shape(lambda: dict(zip(('params', 'stats'), dpt.init(
      jax.random.key(0), config, [width] * 4), strict=True)))
  ignored = [name for name in case.weights[''] if name.endswith(
      'num_batches_tracked')]
  return translate.to_ours(case.weights[''], tables.table(config), shapes,
                           ignored=ignored)


def inputs_of(case):
  maps = [jnp.asarray(shared.nhwc(case.inputs[f'patch{i}'])) for i in range(4)]
  return maps, [jnp.asarray(case.inputs[f'cls{i}']) for i in range(4)]


def gradients(case, grads, config):
  """Gradients by their names."""
  tolerance = case.meta['tolerance']
  return {f'grad/{name}': golden.Within(
      value, of_largest=tolerance['grad_rtol'], atol=tolerance['grad_atol'])
          for name, value in translate.to_theirs(
              {'params': grads}, [rule for rule in tables.table(config)
                                  if rule.path.startswith('params/')]).items()}


@golden.kind('dpt_head_v2')
def dpt_head_v2(case):
  c = case.config
  config = config_of(c, num_outputs=1, readout=c['readout_type'])
  head = head_of(case, config, c['embed_dim'])
  maps, cls = inputs_of(case)
  assert maps[0].shape == (c['batch'], *c['size'], c['embed_dim'])
  cotangent = case.inputs['cotangent'][:, 0]

  def run(params):
    merged, _ = dpt.merge(params, {}, config, maps, cls)
    metres = bins.depth(dpt.head(params, merged), min_depth=c['min_depth'],
                        max_depth=c['max_depth'])
    return jnp.sum(metres * cotangent), (merged, metres)

  grads, (merged, metres) = jax.jit(jax.grad(run, has_aux=True))(
      head['params'])
  out = {'fused': shared.nchw(merged), 'depth': np.asarray(metres)[:, None]}
  clipped = jnp.clip(metres, c['min_depth'], c['max_depth'])[..., None]
  out['inference'] = shared.nchw(dense.Pixels().resize(
      clipped, tuple(c['image_size'])))
  return out | gradients(case, grads, config)


@golden.kind('dpt_head_v3', 'chmv2_head')
def dpt_head_v3(case):
  c = case.config
  config = config_of(
      c, num_outputs=c['bins'], readout='project' if c['use_cls_token']
      else 'ignore', norm=c['use_batchnorm'], hidden=c['n_hidden_channels'],
      bias=c['use_bias'], projects=c['projection_after_fusion'])
  head = head_of(case, config, c['embed_dim'])
  maps, cls = inputs_of(case)
  assert maps[0].shape == (c['batch'], *c['size'], c['embed_dim'])
  cotangent = case.inputs['cotangent'][:, 0]
  stride, out = c['logit_stride'], {}
  if 'hf_key_map' in case.outputs:
    theirs, ours = (tables.table(config, words)
                    for words in (tables.HF_CHM, tables.META))
    out['hf_key_map'] = key_map(theirs, ours)
  for mode in c['modes']:
    weight = jnp.ones(c['batch']) if mode == 'train' else None

    def run(params, weight=weight):
      logits, stats = dpt.apply(params, head['stats'], config, maps, cls,
                                weight)
      metres = bins.depth(logits, **depth.depth_options(c))
      return jnp.sum(metres * cotangent), (logits, metres, stats)

    grads, (logits, metres, stats) = jax.jit(jax.grad(run, has_aux=True))(
        head['params'])
    out[f'{mode}/logits'] = shared.nchw(logits)[..., ::stride, ::stride]
    out[f'{mode}/depth'] = np.asarray(metres)[:, None]
    out |= {key: value for key, value in gradients(
        case, grads, config).items()}
    if mode == 'train':
      rules = [rule for rule in tables.table(config)
               if rule.path.startswith('stats/')]
      out |= {f'after_train/{name}': value for name, value in
              translate.to_theirs({'stats': stats}, rules).items()}
  return out


def key_map(theirs, ours):
  """[n, 2] names of the same tensors in two files, sorted."""
  return np.array(sorted(
      (mine, other) for first, second in zip(theirs, ours, strict=True)
      for mine, other in zip(first.keys, second.keys, strict=True)))


@golden.kind('scale_shift_invariant_loss')
def scale_shift_invariant_loss(case):
  c, x = case.config, case.inputs
  c.skip('seed', 'invalid', 'empty', 'size')
  valid, strides = x['mask'] > 0, tuple(2 ** i for i in range(c['scales']))
  loss_and_grad = lambda loss: jax.jit(jax.value_and_grad(loss))(
      x['prediction'])
  scale, shift = jax.jit(affine_depth.scale_and_shift)(
      x['prediction'], x['target'], valid)
  out = {'scale': scale, 'shift': shift}
  for reduction in affine_depth.REDUCTIONS:
    for alpha in (0, c['alpha']):
      value, grad = loss_and_grad(lambda p, a=alpha, r=reduction: (
          affine_depth.least_squares(p, x['target'], valid, alpha=a,
                                     strides=strides, reduction=r)))
      name = f'least_squares/{reduction}-based/alpha{alpha}'
      out |= {f'{name}/loss': value, f'{name}/grad': grad}
  both = lambda p: [affine_depth.standardized(m, valid)
                    for m in (p, x['target'])]
  out['robust/ssi'] = jax.jit(lambda p: affine_depth.absolute(
      *both(p), valid))(x['prediction'])
  out['robust/gradient_matching'] = jax.jit(
      lambda p: affine_depth.gradient_matching(
          *both(p), valid, strides=strides))(x['prediction'])
  _, out['robust/grad'] = loss_and_grad(lambda p: affine_depth.robust(
      p, x['target'], valid, gradient_weight=c['gm_weight'], strides=strides))
  return out


@golden.kind('hf_chmv2')
def hf_chmv2(case):
  """A whole model of transformers, read as one reads it from its folder."""
  c, x = case.config, case.inputs['pixel_values']
  c.skip('head_key_rules', 'batch')
  c['head'].skip_all()
  inner = dict(c['backbone']) | {'model_type': 'dinov3_vit'}
  c['backbone'].skip_all()
  with tempfile.TemporaryDirectory() as folder:
    files.write_safetensors(f'{folder}/model.safetensors', case.weights[''])
    pathlib.Path(folder, 'config.json').write_text(json.dumps({
        'model_type': 'chmv2', 'backbone_config': inner}))
    model = backbone.Backbone.of(reading.read(folder), source=folder)
    head = published_heads.read(folder, model)
  task = head.task
  assert task.layers == tuple(i - 1 for i in inner['out_indices'])
  assert list(x.shape[2:]) == c['image_size']
  images = np.asarray(shared.nhwc(x))
  layers = model.read(images, task.choices[dense.CHOICE])

  @jax.jit
  def run(layers):
    outputs, _ = task.outputs(
        {'params': head.params, 'stats': head.stats}, layers, {}, None)
    return task.predict(outputs)

  out = {'predicted_depth': np.asarray(run(layers))[..., 0]}
  for i, layer in enumerate(layers):
    out |= {f'feature_map{i}': shared.nchw(layer['map']),
            f'cls{i}': layer['cls']}
  return out

"""Mask2Former on an adapted backbone, part by part."""

import functools

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.evals import windows
from dinojax.features import backbone
from dinojax.features import spec
from dinojax.interop import names
from dinojax.interop import reading
from dinojax.interop import translate
from dinojax.interop.heads import mask2former as tables
from dinojax.kernels import resample
from dinojax.models import vit
from dinojax.models.dense import adapter
from dinojax.models.dense import deformable
from dinojax.models.dense import mask2former
from dinojax.models.dense import pixel_decoder
from dinojax.models.dense import queries
from dinojax.models.dense import query_decoder
from dinojax.parallel import mesh as mesh_lib
from tests import golden
from tests.kinds import dense as shared

nchw = lambda x: jnp.transpose(x, (0, 3, 1, 2))


def gradients(case, values):
  """Gradients by their names, within the tolerance for them."""
  tolerance = case.meta['tolerance']
  return {name: golden.Within(value, rtol=tolerance['grad_rtol'],
                              atol=tolerance['grad_atol'])
          for name, value in values.items()}


def named(params, table, chosen=()):
  """Gradients of parameters by the names of the reference.

  Args:
    params: gradients.
    table: names of the parameters.
    chosen: parts of names; (): all.
  """
  rules = [rule for rule in table if rule.path.startswith('params/')]
  return {f'grad/{name}': value for name, value in translate.to_theirs(
      {'params': params}, rules).items()
          if not chosen or any(part in name for part in chosen)}


@golden.kind('ms_deformable_core')
def ms_deformable_core(case):
  c, x = case.config, case.inputs
  c.skip('seed')
  sizes = [tuple(size) for size in c['shapes']]
  np.testing.assert_array_equal(x['spatial_shapes'], sizes)
  given = [jnp.asarray(x[name]) for name in (
      'value', 'sampling_locations', 'attention_weights')]
  assert given[1].shape == (c['batch'], c['queries'], c['heads'], len(sizes),
                            c['points'], 2)
  assert given[0].shape[3] == c['head_dim']
  read = lambda *given: deformable.attend(*given, sizes=sizes)
  out, back = jax.vjp(jax.jit(read), *given)
  grads = jax.jit(back)(jnp.asarray(x['cotangent']))
  return {'output': out} | gradients(case, dict(zip((
      'grad_value', 'grad_sampling_locations', 'grad_attention_weights'),
      grads, strict=True)))


@golden.kind('ms_deformable_attention')
def ms_deformable_attention(case):
  c, x = case.config, case.inputs
  c.skip('seed')
  sizes = [tuple(size) for size in c['shapes']]
  np.testing.assert_array_equal(x['spatial_shapes'], sizes)
  config = deformable.Config(
      c['d_model'], c['heads'], len(sizes), c['points'],
      int(c['d_model'] * c['ratio']))
  table = tables.of_attention('params', '')
  shapes = jax.eval_shape(lambda: {'params': deformable.init(
      jax.random.key(0), config)})
  params = translate.to_ours(case.weights[''], table, shapes)['params']
  padding = None
  if c.get('padding'):
    padding = jnp.asarray(x['padding_mask'])
  assert x['query'].shape[:2] == (c['batch'], c['queries'])
  assert x['reference_points'].shape[-1] == c['ref_dim']

  def run(params, queries, maps):
    return deformable.apply(params, config, queries, x['reference_points'],
                            maps, sizes, padding)

  out, back = jax.vjp(jax.jit(run), params, jnp.asarray(x['query']),
                      jnp.asarray(x['input_flatten']))
  of_params, query, flat = jax.jit(back)(jnp.asarray(x['cotangent']))
  return {'output': out} | gradients(case, named(of_params, table) | {
      'grad_query': query, 'grad_input_flatten': flat})


@golden.kind('ms_deformable_init')
def ms_deformable_init(case):
  case.config.skip('seed')
  out = {}
  for heads, levels, points in case.config['variants']:
    config = deformable.Config(4 * heads, heads, levels, points)
    params = deformable.init(jax.random.key(0), config)
    assert not params['offsets']['kernel'].any()
    assert not jax.tree.reduce(max, jax.tree.map(
        lambda leaf: float(abs(leaf).max()), params['weights']))
    out[f'offset_bias/heads{heads}_levels{levels}_points{points}'] = (
        params['offsets']['bias'])
  return out


def adapter_of(c):
  width = c['embed_dim']
  return adapter.Config(
      width, c['patch_size'], channels=c['conv_inplane'],
      num_heads=c['deform_num_heads'], num_points=c['n_points'],
      values=int(width * c['deform_ratio']),
      hidden=int(width * c['cffn_ratio']),
      num_blocks=len(c['interaction_indexes']))


def adapter_head(case, config, prefix, ours):
  """Parameters and statistics of the adapter of a case, and their names."""
  table = tables.of_adapter(config, ours, prefix)
  shapes = jax.eval_shape(lambda: dict(zip(
      ('params', 'stats'), adapter.init(jax.random.key(0), config),
      strict=True)))
  return translate.to_ours(head_tensors(case, prefix), table, shapes), table


def head_tensors(case, prefix):
  """Tensors of a head, without its backbone and counts of batches."""
  return {name: value for name, value in case.weights[''].items()
          if not name.startswith(f'{prefix}backbone.')
          and not name.endswith('num_batches_tracked')}


def model_of(b, state):
  """The ViT of a case, of its state dict, on the adapter's device."""
  state = {name: value for name, value in state.items()
           if 'rope_embed' not in name}
  config = vit.ViTConfig(
      b['embed_dim'], b['depth'], b['num_heads'], b['patch_size'],
      ffn_hidden=int(b['embed_dim'] * b['ffn_ratio']),
      num_registers=b['n_storage_tokens'], position='rope', layerscale=1.0,
      norm_epsilon=b.get('norm_eps', 1e-6))
  params = translate.to_ours(
      state, names.vit_table(config, names.META_V3), reading.shapes(config))
  return backbone.Backbone.of(
      reading.Weights(config, params, {}, 'meta'),
      mesh_lib.make(devices=jax.devices()[:1]))


def maps_of(model, image, wanted):
  """Maps of layers of an image."""
  with mesh_lib.activate(model.mesh):
    image = jax.device_put(image, jax.NamedSharding(
        model.mesh, mesh_lib.ROWS))
    layers = jax.jit(lambda x: model.net.apply(model.params, x, (
        functools.partial(spec.compute, specs={'maps': wanted}))))(image)
  return [np.asarray(layer['map']) for layer in layers['maps']]


def features_of(case, c, image, prefix):
  """Features of the blocks of the case's ViT."""
  prefix = f'{prefix}backbone.'
  state = {name.removeprefix(prefix): value
           for name, value in case.weights[''].items()
           if name.startswith(prefix)}
  return maps_of(model_of(c['backbone'], state), image, spec.FeatureSpec(
      ('map',), tuple(c['interaction_indexes'])))


@golden.kind('vit_adapter')
def vit_adapter(case):
  c, x = case.config, case.inputs
  c.skip('seed')
  config, image = adapter_of(c), shared.nhwc(x['image'])
  count, *size = c['image']
  assert image.shape == (count, *size, 3)
  head, table = adapter_head(case, config, '', 'params')
  grid = tuple(n // config.patch_px for n in size)
  if 'backbone' in c:
    maps = features_of(case, c, image, '')
  else:
    maps = [x[f'feature{i}'].reshape(count, *grid, -1)
            for i in range(config.num_blocks)]
  weight = jnp.ones(count) if c['mode'] == 'train' else None

  def run(params):
    grids, of_prior = adapter.prior(
        params, head['stats']['prior'], image, weight)
    states = adapter.extracted(params, config, grids[1:], maps)
    pyramid, of_norms = adapter.merged(
        params, head['stats']['norms'], [grids[0], *states[-1]], maps, weight)
    out = {'spm/c1': nchw(grids[0])} | {
        f'spm/c{i + 2}': deformable.joined([y])
        for i, y in enumerate(grids[1:])} | {
            f'queries_after_interaction{i}': deformable.joined(y)
            for i, y in enumerate(states)} | {
                f'f{i + 1}': nchw(y) for i, y in enumerate(pyramid)}
    total = sum(jnp.sum(y * shared.nhwc(x[f'cotangent{i + 1}']))
                for i, y in enumerate(pyramid) if f'cotangent{i + 1}' in x)
    return total, (out, {'prior': of_prior, 'norms': of_norms})

  if 'grads' in c:
    (_, (out, stats)), grads = jax.jit(jax.value_and_grad(
        run, has_aux=True))(head['params'])
    out |= gradients(case, named(grads, table, c['grads']))
  else:
    _, (out, stats) = jax.jit(run)(head['params'])
  buffers = translate.to_theirs(
      {'stats': stats}, [rule for rule in table
                         if rule.path.startswith('stats/')])
  return out | {f'buffer/{name}': buffers[name]
                for name in c.get('buffers', ())}


def pixels_of(c):
  return pixel_decoder.Config(
      tuple(c['in_channels']), c['conv_dim'], c['mask_dim'],
      num_heads=c['nheads'], ffn=c['ffn'], num_layers=c['enc_layers'])


@golden.kind('m2f_pixel_decoder')
def m2f_pixel_decoder(case):
  c, x = case.config, case.inputs
  c.skip('seed')
  config = pixels_of(c)
  table = tables.of_pixels(config, 'params', '')
  params = translate.to_ours(
      case.weights[''], table, jax.eval_shape(lambda: {
          'params': pixel_decoder.init(jax.random.key(0), config)}))['params']
  maps = [jnp.asarray(shared.nhwc(x[str(i)])) for i in range(1, 5)]
  assert [y.shape[:3] for y in maps] == [(c['batch'], *s) for s in c['sizes']]

  def run(params, maps):
    features, scales = pixel_decoder.apply(params, config, maps)
    out = {'mask_features': features} | {
        f'scale{i}': y for i, y in enumerate(scales)}
    return sum(jnp.sum(y * shared.nhwc(x[f'cotangent_{name}']))
               for name, y in out.items() if f'cotangent_{name}' in x), out

  if 'grad' not in c:
    _, out = jax.jit(run)(params, maps)
    return {name: shared.nchw(y) for name, y in out.items()}
  (_, out), (of_params, of_maps) = jax.jit(jax.value_and_grad(
      run, argnums=(0, 1), has_aux=True))(params, maps)
  return {name: shared.nchw(y) for name, y in out.items()} | gradients(
      case, named(of_params, table, c['grad']) | {
          f'grad_feature/{i + 1}': shared.nchw(y)
          for i, y in enumerate(of_maps)})


def decoder_of(c, projects=False):
  return query_decoder.Config(
      c['in_channels'], c['hidden_dim'], c['mask_dim'], c['num_classes'],
      c['queries'], num_heads=c['nheads'], ffn=c['ffn'],
      num_layers=c['dec_layers'], pre_norm=c.get('pre_norm', False),
      projects=projects)


def predictions(case, predicted, sizes):
  """What is predicted, and where queries do not look, by layer."""
  out, rows = {}, 0
  for i, each in enumerate(predicted):
    name = f'aux{i}/' if i + 1 < len(predicted) else ''
    out |= {f'{name}pred_logits': each.classes, f'{name}pred_masks': each.masks}
  for i, each in enumerate(predicted[:-1]):
    small = resample.resize_linear(each.masks[..., None], sizes[i % 3])
    blocked = np.asarray(small < 0).reshape(*each.masks.shape[:2], -1)
    rows += int(blocked.all(-1).sum())
    out[f'blocked/layer{i}'] = blocked
  return out | {'rows_fully_blocked': rows}


@golden.kind('m2f_transformer_decoder')
def m2f_transformer_decoder(case):
  c, x = case.config, case.inputs
  c.skip('seed', 'want_full', 'enforce_input_project')
  config = decoder_of(c, 'input_proj.0.weight' in case.weights[''])
  params = translate.to_ours(
      case.weights[''], tables.of_queries(config, 'params', ''),
      jax.eval_shape(lambda: {
          'params': query_decoder.init(jax.random.key(0), config)}))['params']
  maps = [jnp.asarray(shared.nhwc(x[f'scale{i}'])) for i in range(3)]
  features = jnp.asarray(shared.nhwc(x['mask_features']))
  assert [y.shape[:3] for y in (*maps, features)] == [
      (c['batch'], *size) for size in c['sizes']]
  predicted = jax.jit(lambda params, features, maps: query_decoder.apply(
      params, config, features, maps))(params, features, maps)
  return predictions(case, predicted, c['sizes'])


@golden.kind('m2f_whole_head')
def m2f_whole_head(case):
  c = case.config
  c.skip('seed')
  # Sizes and batches of parts are those of the image.
  for part in ('pixel', 'decoder'):
    c[part].skip('sizes', 'batch', 'seed')
  c['adapter'].only('mode', 'eval')
  config = mask2former.Config(
      adapter_of(c['adapter']), pixels_of(c['pixel']),
      decoder_of(c['decoder']))
  image = shared.nhwc(case.inputs['image'])
  assert list(image.shape[:3]) == c['adapter']['image']
  head = translate.to_ours(
      head_tensors(case, tables.ADAPTER), tables.table(config),
      jax.eval_shape(lambda: dict(zip(
          ('params', 'stats'), mask2former.init(jax.random.key(0), config),
          strict=True))))
  maps = features_of(case, c['adapter'], image, tables.ADAPTER)
  predicted, _ = jax.jit(lambda head, image, maps: mask2former.apply(
      head['params'], head['stats'], config, image, maps))(head, image, maps)
  sizes = [tuple(n // stride for n in image.shape[1:3])
           for stride in (32, 16, 8)]
  out = predictions(case, predicted, sizes)
  masks = resample.resize_linear(
      predicted[-1].masks[..., None], tuple(c['rescale_to']))[..., 0]
  scores = queries.semantic(queries.Predicted(predicted[-1].classes, masks))
  return out | {'predict/pred_masks': masks, 'semantic': shared.nchw(scores)}


def toy(weights, image):
  """Prediction of the reference's stand-in for a crop [y, x, c]."""
  rows, columns = (n // 4 * 4 for n in image.shape[:2])
  pooled = rearrange(image[:rows, :columns],
                     '(y i) (x j) c -> y x i j c', i=4, j=4).mean((2, 3))
  classes = jnp.einsum('qkc,c->qk', weights['w_cls'], pooled.mean((0, 1)))
  masks = jnp.einsum('qc,yxc->yxq', weights['w_mask'], pooled) + (
      weights['b_mask'][None, None])
  return queries.Predicted(
      (classes + weights['b_cls'])[None], jnp.moveaxis(
          resample.resize_linear(masks, image.shape[:2]), -1, 0)[None])


@golden.kind('m2f_semantic_inference')
def m2f_semantic_inference(case):
  c, x, out = case.config, case.inputs, {}
  c.skip('seed')
  c.only('mode', 'slide')
  weights, size = case.weights[''], tuple(c['gt_size'])
  assert weights['w_cls'].shape[:2] == (c['queries'], c['classes'] + 1)
  cutter = windows.Windows(c['crop'][0], c['stride'][0])
  assert (c['crop'], c['stride']) == ([cutter.crop_px] * 2,
                                      [cutter.stride_px] * 2)
  score = jax.jit(lambda crop: queries.semantic(toy(weights, crop))[0])
  views, count = [], len(c['views'])
  for i, shape in enumerate(c['views']):
    image, flip = shared.nhwc(x[f'view{i}'])[0], (
        c['flip_tta'] and i >= count // 2)
    assert image.shape == (*shape[1:], shape[0])
    crops = cutter.cut(image)
    values = np.stack([score(crop) for crop in crops])
    starts = cutter.starts(image.shape[:2])
    grid = windows.side_by_side(values, len(starts[0]))
    axes = [windows.matrix(n, m, first, np.eye(m), size[axis])
            for axis, (n, m, first) in enumerate(zip(
                image.shape, crops.shape[1:3], starts, strict=False))]
    scores = windows.assembled(
        ((grid, *axes),), num_rows=size[0], is_class=False)
    out |= {f'{way}/view{i}/scores': jnp.moveaxis(scores, -1, 0)[None]
            for way in ('f32', 'bf16')}
    out[f'f32/view{i}/crops'] = np.array([crop.shape[:2] for crop in crops])
    views.append((grid, axes[0], axes[1][::-1] if flip else axes[1]))
  merged = functools.partial(windows.assembled, tuple(views), softmax=True,
                             num_rows=size[0])
  out |= {f'{way}/average': jnp.moveaxis(merged(is_class=False), -1, 0)[None]
          for way in ('f32', 'bf16')}
  out['f32/argmax'] = merged(is_class=True)[None]
  # The reference's own rounds to bfloat16.
  return {name: golden.Within(value, atol=2e-2) if name.startswith('bf16')
          else value for name, value in out.items()}


@golden.kind('m2f_tta_sizes')
def m2f_tta_sizes(case):
  c = case.config
  c.skip('seed')
  return {f'height_width/{width}x{height}': np.array([
      windows.view_size((height, width), c['small_size'], ratio)
      for ratio in c['ratios']]) for width, height in c['images']}

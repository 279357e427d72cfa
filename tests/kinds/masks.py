"""Heads whose queries become masks."""

import dataclasses
import functools
import re

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dinojax.augment import photometric
from dinojax.engine import schedules
from dinojax.evals import segments
from dinojax.evals import windows
from dinojax.features import backbone
from dinojax.features import spec
from dinojax.interop import names
from dinojax.interop import reading
from dinojax.interop import translate
from dinojax.interop.heads import masks as tables
from dinojax.kernels import resample
from dinojax.losses import masks as losses
from dinojax.models import vit
from dinojax.models.dense import batch_norm
from dinojax.models.dense import mask_decoder
from dinojax.models.dense import queries
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes.tasks import masks
from tests import golden
from tests.kinds import dense as shared


def decoder_of(c, *, prefix, norm):
  size = tuple(n // c['patch'] for n in c['size'])
  c.only('rope_base', mask_decoder.ROPE_BASE)
  c.skip('seed')
  config = mask_decoder.Config(
      width=c['dim'], num_heads=c['heads'], num_classes=c['classes'],
      patch_px=c['patch'], num_queries=c['queries'],
      num_blocks=c['num_blocks'], num_levels=len(c['indices']),
      hidden=c['hidden_dim'] or 4 * c['dim'], norm=norm, masked=c['masked'],
      lateral=c['lateral'], residual=c['residual'], rope=c.get('rope', True))
  return config, size, tables.table(config, *prefix)


def with_gradients(case, head, table, run, given=(), prefix='grad/'):
  """Outputs of a decoder by the names of the cases, and gradients.

  Args:
    case: the case.
    head: parameters and statistics.
    table: names of the parameters.
    run: function of the parameters and of `given`.
    given: arrays, by the names that their gradients have.
    prefix: stands before the names of the parameters' gradients.
  """
  tolerance = case.meta['tolerance']

  def loss(params, given):
    predicted, _ = run(params, given)
    total = sum(
        jnp.sum(getattr(each, kind) * case.inputs[f'cotangent/{name}{i}'])
        for i, each in enumerate(predicted)
        for kind, name in (('masks', 'mask'), ('classes', 'class')))
    return total, predicted

  (grads, of_given), predicted = jax.jit(jax.grad(
      loss, argnums=(0, 1), has_aux=True))(head['params'], dict(given))
  out = {}
  for i, each in enumerate(predicted):
    out |= {f'block{i}/mask_logits': each.masks,
            f'block{i}/class_logits': each.classes}
  rules = [rule for rule in table if rule.path.startswith('params/')]
  named = {f'{prefix}{name}': value for name, value in translate.to_theirs(
      {'params': grads}, rules).items()} | of_given
  return out | {name: golden.Within(
      value, rtol=tolerance['grad_rtol'], atol=tolerance['grad_atol'])
                for name, value in named.items()}, predicted


def allowed_by(masks, grid):
  """Patches that queries may look at, of masks that are resized whole."""
  small = resample.resize_linear(masks[..., None], grid)[..., 0]
  return np.asarray(queries.allowed(rearrange(small, 'b q y x -> b q (y x)')))


def looks_of(case, predicted, grid, out):
  """What queries could look at before each block but the last prediction."""
  rows = 0
  for i, each in enumerate(predicted[:-1]):
    allowed = allowed_by(each.masks, grid)
    rows += int((~allowed.any(-1)).sum())
    if f'allowed/block{i}' in case.outputs:
      out[f'allowed/block{i}'] = allowed
  if 'rows_fully_blocked' in case.outputs:
    out['rows_fully_blocked'] = rows


@golden.kind('pmt_decoder')
def pmt_decoder(case):
  c = case.config
  c.only('eps', mask_decoder.EPSILON)
  c.only('probs', [1.0] * c['num_blocks'])
  config, grid, table = decoder_of(c, prefix=('', ''), norm=False)
  head = translate.to_ours(
      case.weights[''], table, jax.eval_shape(lambda: dict(zip(
          ('params', 'stats'), mask_decoder.init(jax.random.key(0), config),
          strict=True))))
  features = {f'grad_feature{i}': case.inputs[f'feature{i}']
              for i in range(config.num_levels)}
  assert features['grad_feature0'].shape == (
      c['batch'], c['prefix'] + grid[0] * grid[1], config.width)
  sin, cos = mask_decoder.positions.rope(
      grid, mask_decoder.positions.rope_periods(
          config.width // config.num_heads, base=mask_decoder.ROPE_BASE))
  np.testing.assert_allclose(sin, case.inputs['rope_sin'], atol=2e-6)
  np.testing.assert_allclose(cos, case.inputs['rope_cos'], atol=2e-6)
  out, predicted = with_gradients(
      case, head, table, lambda params, given: mask_decoder.apply(
          params, {}, config, list(given.values()), grid), features)
  looks_of(case, predicted, grid, out)
  return out


def targets_of(case, count):
  """Targets of the images of a case, filled up to as many each."""
  x, most = case.inputs, max(max(count), 1)
  fill = lambda a: np.concatenate([a, np.zeros(
      (most - len(a), *a.shape[1:]), a.dtype)])
  each = range(len(count))
  return losses.Targets(
      jnp.asarray(np.stack([fill(x[f'class_labels{b}']) for b in each])),
      jnp.asarray(np.stack([fill(x[f'mask_labels{b}']) for b in each])),
      jnp.asarray(np.arange(most)[None] < np.array(count)[:, None]))


def points_of(case, layer, targets, query):
  """Points of a prediction, which are listed by pair: image, then query."""
  x = case.inputs
  of = lambda name: x[f'layer{layer}/{name}']
  out = []
  for name in ('candidate_points', 'random_points'):
    rows, place = of(name), 0
    full = np.zeros((*targets.present.shape, *rows.shape[1:]), np.float32)
    for b, queries_of in enumerate(np.asarray(query)):
      for t in np.argsort(queries_of, kind='stable'):
        if queries_of[t] >= 0:
          full[b, t] = rows[place]
          place += 1
    assert place == len(rows)
    out.append(jnp.asarray(full))
  matching = np.concatenate([of(f'matcher_points{b}') for b in range(
      len(targets.present))])
  return losses.Points(jnp.asarray(matching), *out)


def losses_of(case, layer, classes, masks, targets, no_object, out):
  """Matches, points and losses of a prediction."""
  matching = jnp.asarray(np.concatenate([
      case.inputs[f'layer{layer}/matcher_points{b}']
      for b in range(len(targets.present))]))
  query = jax.jit(losses.match)(classes, masks, targets, matching)
  points = points_of(case, layer, targets, query)
  chosen = []
  for b, of in enumerate(np.asarray(query)):
    target = np.argsort(of, kind='stable')
    target = target[of[target] >= 0]
    out[f'layer{layer}/match{b}'] = np.stack([of[target], target]).reshape(
        2, -1)
    if len(target):
      chosen.append(np.asarray(jax.jit(losses.uncertain_points)(
          masks[b][of[target]], jax.tree.map(
              lambda x, b=b: x[b], dataclasses.replace(
                  points, candidates=points.candidates[:, target],
                  fresh=points.fresh[:, target])))))
  out[f'layer{layer}/points'] = np.concatenate(chosen)
  return points


@golden.kind('m2f_loss')
def m2f_loss(case):
  c, x = case.config, case.inputs
  c.skip('seed', 'hole', 'batch', 'queries', 'classes', 'pred_size',
         'mask_size', 'num_points', 'oversample_ratio',
         'importance_sample_ratio')
  weights = {name: c[f'{name}_weight'] for name in losses.WEIGHTS}
  assert weights == losses.WEIGHTS
  targets, out = targets_of(case, c['targets']), {}
  given = [(jnp.asarray(x[f'layer{i}/class_logits']),
            jnp.asarray(x[f'layer{i}/mask_logits']))
           for i in range(c['layers'])]
  points = [losses_of(case, i, *pair, targets, c['no_object_weight'], out)
            for i, pair in enumerate(given)]
  assert points[0].matching.shape[1] == c['num_points']

  def total(given):
    each = [losses.losses(*pair, targets, some,
                          no_object=c['no_object_weight'])
            for pair, some in zip(given, points, strict=True)]
    return sum(weights[name] * value for one in each
               for name, value in one.items()), each

  (value, each), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(given)
  out['total'] = value
  for i, (numbers, grad) in enumerate(zip(each, grads, strict=True)):
    out |= {f'layer{i}/loss_cross_entropy': numbers['class'],
            f'layer{i}/loss_mask': numbers['mask'],
            f'layer{i}/loss_dice': numbers['dice'],
            f'layer{i}/grad_class_logits': grad[0],
            f'layer{i}/grad_mask_logits': grad[1]}
  return out


@golden.kind('mask_schedules')
def mask_schedules(case):
  c, steps = case.config, case.inputs['steps']
  c.skip('seed')
  np.testing.assert_array_equal(steps, c['steps'])
  at = lambda curve: np.array([curve(int(step)) for step in steps])
  out = {'mask_probability': np.stack([
      at(schedules.Annealed(start, end, c['poly_power']))
      for start, end in zip(c['start'], c['end'], strict=True)], axis=1)}
  if c['which'] == 'eomt':
    heads, backbone = c['warmup']
    curves = (schedules.RiseFall(c['total'], backbone, heads),
              schedules.RiseFall(c['total'], heads))
    out['lr'] = c['lr'] * np.stack([at(curve) for curve in curves], axis=1)
  else:
    c.only('which', 'pmt')
    final = 1e-9 / c['lr']
    out['lr'] = c['lr'] * at(schedules.RiseFall(
        c['total'], c['warmup'], power=None, final=final))
  return out


@golden.kind('mask_post')
def mask_post(case):
  """What EoMT makes of masks; what transformers makes is another matter."""
  c, x = case.config, case.inputs
  side, = set(c['img_size'])
  c.skip('seed', 'batch', 'queries', 'classes', 'mask_grid', 'hf_threshold',
         'overlap_thresh', 'mask_thresh', 'stuff', 'top_k')
  for name in [name for name in case.outputs if name.startswith('hf_')]:
    case.outputs.pop(name)
  if c['task'] == 'semantic':
    return semantic_post(case, side)
  out, scaled = {}, []
  for i, size in enumerate(c['image_sizes']):
    factor = min(side / n for n in size)
    scaled.append([round(n * factor) for n in size])
    masks = segments.at_image(x['mask_logits'][i], side, scaled[-1], size)
    classes = x['class_logits'][i]
    out[f'image_logits{i}'] = masks
    if c['task'] == 'panoptic':
      out[f'panoptic{i}'] = segments.panoptic(
          classes, masks, c['stuff'], threshold=c['mask_thresh'],
          overlap=c['overlap_thresh'])
    else:
      c.only('task', 'instance')
      each = segments.instances(classes, masks, top=c['top_k'])
      for name, values in (('query', [e.query for e in each]),
                           ('label', [e.label for e in each]),
                           ('score', [e.score for e in each]),
                           ('area', [e.mask.sum() for e in each])):
        out[f'instance{i}/{name}'] = np.array(values)
  return out | {'scaled_sizes': np.array(scaled)}


def semantic_post(case, side):
  """Windows of two images, their scores, and the scores of the images."""
  c, x, out = case.config, case.inputs, {}
  cutter, place = windows.Windows(side, None), 0
  origins, crops, scores = [], [], []
  for i, size in enumerate(c['image_sizes']):
    picture = Image.fromarray(np.uint8(x[f'image{i}'].transpose(1, 2, 0)))
    view = windows.view_size(size, side)
    cut = cutter.cut(np.asarray(picture.resize(
        view[::-1], Image.Resampling.BILINEAR)))
    crops.append(cut.transpose(0, 3, 1, 2))
    starts = cutter.starts(view)
    long = int(np.argmax(view))
    origins += [(i, first, first + side) for first in starts[long]]
    some = slice(place, place + len(cut))
    place += len(cut)
    each = queries.semantic(queries.Predicted(
        jnp.asarray(x['class_logits'][some]), jnp.asarray(np.stack([
            segments.at_image(masks, side, (side, side), (side, side))
            for masks in x['mask_logits'][some]]))))
    scores.append(shared.nchw(each))
    whole = windows.side_by_side(
        np.asarray(each)[:, None], len(starts[0]))[0]
    matrices = [windows.matrix(
        view[axis], side, starts[axis], np.eye(side, dtype=np.float32),
        size[axis]) for axis in (0, 1)]
    merged = np.einsum('oy,px,yxk->kop', *matrices, whole)
    out[f'scores{i}'], out[f'labels{i}'] = merged, merged.argmax(0)
  return out | {'origins': np.array(origins), 'crops': np.concatenate(crops),
                'crop_scores': np.concatenate(scores)}


def backbone_of(case):
  """The frozen backbone of a case, whose tensors carry names of its own."""
  c, prefix = case.config, 'encoder.backbone.'
  c.only('form', 'dinov3')
  renamed = {}
  for name, value in case.weights[''].items():
    if name.startswith(prefix):
      name = name.removeprefix(prefix).replace('patch_embed.', 'embeddings.')
      renamed[re.sub(r'^blocks\.', 'layer.', name)] = value
  config = vit.ViTConfig(
      c['dim'], c['depth'], c['heads'], c['patch'], ffn_hidden=c['ffn'],
      num_registers=c['registers'], position='rope', mask_k_bias=True,
      norm_epsilon=c['eps'], layerscale=1.0)
  width = config.embed_dim
  renamed |= {'embeddings.mask_token': np.zeros((1, 1, width), np.float32)}
  renamed |= {f'layer.{i}.attention.k_proj.bias': np.zeros(width, np.float32)
              for i in range(config.depth)}
  params = translate.to_ours(renamed, names.vit_table(config, names.HF_V3),
                             reading.shapes(config))
  return backbone.Backbone.of(
      reading.Weights(config, params, {}, 'hf'),
      mesh_lib.make(devices=jax.devices()[:1]))


@golden.kind('pmt_whole')
def pmt_whole(case):
  c = case.config
  c.only('lateral_bn', True)
  c.only('probs', [1.0] * c['num_blocks'])
  config, grid, table = decoder_of(c, prefix=('decoder.', 'bn.'), norm=True)
  model = backbone_of(case)
  head = translate.to_ours(
      {name: value for name, value in case.weights[''].items()
       if name.startswith(('decoder.', 'bn.'))
       and not name.endswith('num_batches_tracked')}, table,
      jax.eval_shape(lambda: dict(zip(('params', 'stats'), mask_decoder.init(
          jax.random.key(0), config), strict=True))))
  task = masks.Masks(decoder=config, layers=tuple(c['indices']))
  with mesh_lib.activate(model.mesh):
    image = jax.device_put(
        shared.nhwc(case.inputs['image']),
        jax.NamedSharding(model.mesh, mesh_lib.ROWS))
    normal = photometric.normalize(255 * image, model.mean, model.std)
    features = jax.jit(lambda x: model.net.apply(
        model.params, x, functools.partial(
            spec.compute, specs=dict(task.choices))))(normal)['patches']
    weight = (jnp.ones(c['batch']) if case.config.get('training') else None)
    out, predicted = with_gradients(
        case, head, table, lambda params, given: task.outputs(
            {'params': params, 'stats': head['stats']}, features,
            {'weight': weight}, None if weight is None else {}))
  looks_of(case, predicted, grid, out)
  for i, layer in enumerate(features):
    tokens = np.concatenate([
        np.asarray(layer['cls'])[:, None], np.asarray(layer['registers']),
        np.asarray(layer['map']).reshape(c['batch'], -1, c['dim'])], axis=1)
    out[f'encoder_feature{i}'] = tokens
    level = head['params']['levels'][str(i)]['norm']
    out[f'normalised_feature{i}'] = batch_norm.apply(
        level, head['stats'][str(i)], tokens[:, None], weight)[0][:, 0]
  return out

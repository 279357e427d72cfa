"""Plain-DETR on windows of a backbone, part by part."""

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.features import spec
from dinojax.interop import names
from dinojax.interop import translate
from dinojax.interop.heads import detector as tables
from dinojax.models import positions
from dinojax.models.dense import box_decoder
from dinojax.models.dense import detector
from dinojax.models.dense import proposals
from dinojax.probes.tasks import detect
from tests import golden
from tests.kinds import mask2former

STARTS = (*tables.BACKBONES, '0._backbone.backbone.', '0.backbone.')
nchw = lambda x: rearrange(x, 'b y x c -> b c y x')


def gradients(case, values):
  """Gradients by their names, within the tolerance for them."""
  tolerance = case.meta['tolerance']
  return {name: golden.Within(value, rtol=tolerance['grad_rtol'],
                              atol=tolerance['grad_atol'])
          for name, value in values.items()}


@golden.kind('detr_decoder')
def detr_decoder(case):
  c, x = case.config, case.inputs
  c.skip('seed', 'padding', 'one2one')
  d = c['decoder']
  d.skip('decoder_use_checkpoint')
  d.only('dropout', 0.0)
  rows, columns = c['feature_size']
  config = box_decoder.Config(
      num_classes=1, hidden=d['hidden_dim'], num_heads=d['nheads'],
      ffn=d['dim_feedforward'], num_layers=d['dec_layers'],
      bias_hidden=d['decoder_rpe_hidden_dim'],
      stride_px=d['proposal_in_stride'], in_pixels=d['reparam'],
      log_bias=d['decoder_rpe_type'] == 'abs_log8',
      pre_norm=d['norm_type'] == 'pre_norm',
      looks_twice=d['look_forward_twice'])
  assert d['decoder_rpe_type'] in ('linear', 'abs_log8')
  shapes = jax.eval_shape(lambda: {
      'decoder': box_decoder.init(jax.random.key(0), config),
      'heads': jax.vmap(lambda key: {'box': box_decoder.head_init(
          key, config)['box']})(jax.random.split(
              jax.random.key(0), config.num_layers))})
  table = tables.of_decoder(config, 'decoder', '') + tables.of_heads(
      'heads', '', config.num_layers, classes=False)
  params = translate.to_ours(case.weights[''], table, shapes)
  heads = params['heads'] | {'class': {
      'kernel': np.zeros((config.num_layers, config.hidden, 1), np.float32)}}
  inside = ~x['padding_mask'].reshape(-1, rows, columns)
  cells = np.stack([inside[:, :, 0].sum(1), inside[:, 0].sum(1)], axis=-1)
  extent = jnp.asarray(cells[:, ::-1] * config.stride_px, jnp.float32)
  grid = lambda flat: rearrange(
      jnp.asarray(flat), 'b (y x) d -> b y x d', y=rows)
  blocked = x.get('self_attention_blocked')
  assert x['target'].shape[:2] == (c['batch'], c['queries'])

  def run(target, memory, boxes):
    return box_decoder.apply(
        params['decoder'], heads, config, target, x['query_position'], boxes,
        box_decoder.Map(grid(memory), grid(x['memory_position']),
                        jnp.asarray(cells)), extent, blocked)

  given = [jnp.asarray(x[name]) for name in (
      'target', 'memory', 'reference_boxes')]
  (out, hidden), back = jax.vjp(jax.jit(run), *given)
  grads = jax.jit(back)((jax.tree.map(jnp.zeros_like, out), jnp.asarray(
      x['cotangent'])))
  return {'hidden': hidden, 'boxes': out.boxes} | gradients(case, dict(zip((
      'grad_target', 'grad_memory', 'grad_reference_boxes'), grads,
      strict=True)))


def padded(case):
  """Images at the top left of zeros, and their rows and columns."""
  images = [case.inputs[f'image{i}'] for i in range(len(case.config['images']))]
  sizes = np.array([image.shape[1:] for image in images])
  assert sizes.tolist() == case.config['images']
  whole = np.zeros((len(images), *sizes.max(0), 3), np.float32)
  for image, row in zip(images, whole, strict=True):
    row[:image.shape[1], :image.shape[2]] = image.transpose(1, 2, 0)
  return jnp.asarray(whole), jnp.asarray(sizes)


def network(case):
  """The backbone, what is read of it, the head, and the head's tensors."""
  weights, b, h = case.weights[''], case.config['backbone'], case.config['head']
  start = next(word for word in STARTS
               if any(name.startswith(word) for name in weights))
  state = {name.removeprefix(start): value for name, value in weights.items()
           if name.startswith(start)}
  model = mask2former.model_of(b, state)
  h.skip('topk', 'k_one2many')
  h.only('position_embedding', 'sine', 'sine_unnorm')
  windows = h['n_windows_sqrt']
  wanted = spec.FeatureSpec(
      ('map',), tuple(case.config['layers_to_use']), windows=windows)
  config = detector.Config(
      wanted.widths(model.config), box_decoder.Config(
          h['num_classes'], h['hidden_dim'], h['nheads'],
          h['dim_feedforward'], h['dec_layers'],
          h['decoder_rpe_hidden_dim'], b['patch_size'],
          in_pixels=h['reparam']),
      num_queries=h['num_queries_one2one'],
      num_extra=h['num_queries_one2many'],
      num_encoder_layers=h['num_encoder_layers'],
      encoder_ffn=case.config.get('encoder_ffn', 2048),
      box_px=float(h['proposal_min_size']), windows=windows,
      norms=bool(h.get('backbone_use_layernorm')),
      normalize_places=h.get('position_embedding') != 'sine_unnorm')
  return model, wanted, config, {
      name: value for name, value in weights.items()
      if not name.startswith(start)}


@golden.kind('detr_windows_backbone')
def detr_windows_backbone(case):
  case.config.skip('seed')
  images, sizes = padded(case)
  model, wanted, config, rest = network(case)
  maps = mask2former.maps_of(model, images, wanted)
  norms = {}
  if config.norms:
    table = [rule for i in range(len(config.widths))
             for rule in names.layer_norm(
                 f'norms/{i}', f'0.layer_norms.{i}.ln')]
    norms = translate.to_ours(rest, table, jax.eval_shape(lambda: {
        'norms': detector.init(jax.random.key(0), config)['norms']}))
  patch = case.config['backbone']['patch_size']
  cells = -(-sizes // patch)
  grid = maps[0].shape[1:3]
  inside = box_decoder.Map(jnp.asarray(maps[0]), None, cells).inside
  pixels = box_decoder.Map(images, None, sizes).inside
  return {
      'padded': nchw(images), 'padding_mask': ~pixels,
      'features': nchw(detector.joined(norms, config, maps)),
      'feature_mask': ~inside, 'position': nchw(positions.sine_within(
          cells, grid, config.decoder.hidden,
          normalize=config.normalize_places))}


@golden.kind('detr_whole')
def detr_whole(case):
  c = case.config
  c.skip('seed')
  c.only('branch', 'inference', 'training')
  images, sizes = padded(case)
  model, wanted, config, rest = network(case)
  maps = mask2former.maps_of(model, images, wanted)
  params = translate.to_ours(
      rest, tables.table(config), jax.eval_shape(lambda: {
          'params': detector.init(jax.random.key(0), config)}))['params']
  training = c['branch'] == 'training'
  number = config.num_queries + (config.num_extra if training else 0)

  @jax.jit
  def run(params, maps):
    maps = [jnp.asarray(x) for x in maps]
    out = detector.apply(params, config, maps, sizes, with_extra=training)
    x, places, cells = detector.entered(params, config, maps, sizes)
    seen = box_decoder.Map(x, places, cells)
    memory = detector.encoded(params['encoder'], config, seen)
    rows = proposals.apply(
        params['proposals'], config.proposals, memory, cells)
    _, index = detector.best(out.proposals, number)
    answers = detect.answers(out.queries[-1], sizes, c['head']['topk'],
                             in_pixels=c['head']['reparam'])
    return out, jnp.where(seen.inside[..., None], memory, 0), rows, index, (
        answers)

  out, memory, rows, index, answers = run(params, maps)
  got = {'encoder_memory': rearrange(memory, 'b y x d -> b (y x) d'),
         'two_stage/memory': rows.states, 'two_stage/proposals': rows.boxes}
  got |= {f'two_stage/top{i}': each for i, each in enumerate(index)}
  for start, layer in (('', out.queries[-1]), ('enc/', out.proposals),
                       *((f'aux{i}/', layer) for i, layer in enumerate(
                           out.queries[:-1]))):
    got |= {f'{start}pred_logits': layer.classes,
            f'{start}pred_boxes': layer.boxes}
    if layer.changes is not None:
      got |= {f'{start}pred_boxes_old': layer.before,
              f'{start}pred_deltas': layer.changes}
  if training:
    got |= {'one2many/pred_logits': out.extra[-1].classes,
            'one2many/pred_boxes': out.extra[-1].boxes}
  for i, original in enumerate(c['original_sizes']):
    scale = np.tile(np.array(original)[::-1] / np.asarray(sizes[i])[::-1], 2)
    got |= {f'post{i}/scores': answers.scores[i],
            f'post{i}/labels': answers.labels[i],
            f'post{i}/boxes': np.asarray(answers.boxes[i]) * scale}
  return got

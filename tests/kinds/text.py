"""Text alignment: towers, losses, training, tokenizers and what reads text."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import tree
from dinojax.data import clip_words
from dinojax.data import tokenizers
from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.evals import open_vocabulary
from dinojax.evals import zero_shot
from dinojax.features import spec
from dinojax.interop import meta
from dinojax.interop import reading
from dinojax.interop import translate
from dinojax.interop.heads import text as tables
from dinojax.losses import contrastive
from dinojax.losses import unit
from dinojax.metrics import classification
from dinojax.metrics import segmentation
from dinojax.models import network
from dinojax.models import rates
from dinojax.models.text import tower
from dinojax.models.text import vision_head
from dinojax.parallel import mesh as mesh_lib
from tests import golden
from tests.kinds import dense as shared
from tests.kinds import models


def with_gradients(case, net, part, table, rows, call, loss):
  """Outputs, and gradients of the parameters by their names.

  Args:
    case: the case.
    net: a network, as pure functions.
    part: its entry in the table.
    table: names of the parameters.
    rows: its inputs.
    call: function of the network and the inputs.
    loss: function of the outputs.
  """
  tolerance = case.meta['tolerance']
  params = translate.to_ours(
      case.weights[''], table, {part: net.shapes})[part]

  def run(params, rows):
    out = net.apply(params, rows, call)
    return loss(out), out

  split = jax.NamedSharding(jax.sharding.get_mesh(), mesh_lib.ROWS)
  grads, out = jax.jit(jax.grad(run, has_aux=True))(
      params, jax.device_put(rows, split))
  return out, {
      f'grad/{name}': golden.Within(
          value, rtol=tolerance['grad_rtol'], atol=tolerance['grad_atol'])
      for name, value in translate.to_theirs({part: grads}, table).items()}


def tower_config(c, **changes):
  return tower.Config(
      width=c['dim'], depth=c['num_layers'], num_heads=c['num_heads'],
      ffn_ratio=c['ffn_ratio'], context=c['context_length'],
      vocabulary=c['vocab_size'], causal=c['is_causal'],
      remat='none', **changes)


@golden.kind('dinotxt_text_tower')
def dinotxt_text_tower(case):
  c, x = case.config, case.inputs
  config = tower_config(
      c, embed_dim=c['embed_dim'], layerscale=c['ls_init_value'],
      pooling=c['tokens_pooler_type'], head_depth=c['num_head_blocks'],
      head_causal=c['head_blocks_is_causal'],
      projects=c['use_linear_projection'])
  assert x['tokens'].shape == (c['batch'], c['length'])
  with mesh_lib.activate(mesh_lib.make(devices=jax.devices()[:1])) as _:
    net = network.functional(tower.Tower, config, jax.sharding.get_mesh())
    (features, tokens), grads = with_gradients(
        case, net, tables.TEXT, tables.text_table(
            config, tables.TextNames('', '', 'blocks')), x['tokens'],
        lambda net, ids: (net(ids), net.tokens(ids)),
        lambda out: jnp.sum(out[0] * x['cotangent']))
  return grads | {
      'features': features, 'backbone_tokens': tokens,
      'features_normalised': unit.normalize(features, 1e-12)}


@golden.kind('dinotxt_vision_head')
def dinotxt_vision_head(case):
  c, x = case.config, case.inputs
  config = vision_head.Config(
      width=c['input_dim'], num_heads=c['num_heads'], depth=c['num_blocks'],
      embed_dim=c['embed_dim'], use_cls=c['use_class_token'],
      use_patches=c['use_patch_tokens'], pooling=c['pooler'],
      projects=c['use_linear_projection'],
      drop_path_rate=c.get('drop_path', 0.0), remat='none')
  rows = {name: x[name] for name in vision_head.TOKENS}
  assert rows['registers'].shape[:2] == (c['batch'], c['registers'])
  assert rows['patches'].shape[:2] == (c['batch'], c['patches'])
  if config.drop_path_rate:
    kept = np.stack([x[f'kept_{i}'] for i in range(2 * config.depth)])
    rows['draws'] = {'attn': kept[None, ::2], 'ffn': kept[None, 1::2]}
    drawn = vision_head.draw(
        jax.random.key(0), config, num_groups=1, rows=c['batch'])
    assert {name: value.shape for name, value in drawn.items()} == {
        name: value.shape for name, value in rows['draws'].items()}
  with mesh_lib.activate(mesh_lib.make(devices=jax.devices()[:1])):
    net = network.functional(
        vision_head.VisionHead, config, jax.sharding.get_mesh())
    out, grads = with_gradients(
        case, net, tables.VISION, tables.vision_table(
            config, tables.TextNames('', '', 'blocks')), rows,
        lambda net, rows: net(rows), lambda out: jnp.sum(
            out['embedding'] * x['cotangent']) + jnp.sum(
                out['patches'] * x['cotangent_patches']))
  return grads | {'embedding': out['embedding'], 'head_cls': out['cls'],
                  'head_patches': out['patches']}


@golden.kind('clip_loss')
def clip_loss(case):
  c, x = case.config, case.inputs
  assert x['image'].shape == (c['world'], c['batch'], c['dim'])
  np.testing.assert_allclose(x['log_scale'], [c['log_scale']], rtol=1e-6)
  within = lambda value: golden.Within(
      value, rtol=case.meta['tolerance']['grad_rtol'],
      atol=case.meta['tolerance']['grad_atol'])
  image, text = (x[name].reshape(-1, c['dim']) for name in ('image', 'text'))
  by_rank = lambda a: a.reshape(c['world'], c['batch'])
  loss, grads = jax.jit(jax.value_and_grad(
      contrastive.contrastive, argnums=(0, 1, 2)))(image, text, x['log_scale'])
  # A rank's part of the gradient comes from the logits of its images.
  parts = jax.jit(jax.grad(contrastive.contrastive, argnums=2))(
      image, text, np.broadcast_to(x['log_scale'], len(image)))
  each = jax.jit(contrastive.per_pair)(image, text, x['log_scale'])
  return {
      'loss': loss, 'per_rank_loss': by_rank(each).mean(1),
      'grad_image': within(grads[0].reshape(x['image'].shape)),
      'grad_text': within(grads[1].reshape(x['text'].shape)),
      'grad_log_scale': within(grads[2]), 'per_rank_grad_log_scale': within(
          c['world'] * by_rank(parts).sum(1)[:, None])}


@golden.kind('dinotxt_gram_loss')
def dinotxt_gram_loss(case):
  c, x, out = case.config, case.inputs, {}
  shape = (c['batch'], c['patches'])
  assert x['patches'].shape == (*shape, c['dim'])
  assert x['backbone_patches'].shape == (*shape, c['dim_backbone'])
  for call in shared.calls_of(case):
    name = call['id']
    index = x[f'index_{name}']
    drawn = contrastive.sample(
        jax.random.key(0), c['patches'], call['patch_sampling_rate'])
    assert drawn.shape == index.shape
    loss, grad = jax.jit(jax.value_and_grad(
        lambda patches, index=index, call=call: contrastive.patch_gram(
            patches, x['backbone_patches'], index,
            normalize=call['normalize'])))(x['patches'])
    out |= {f'{name}/loss': loss, f'{name}/grad_patches': golden.Within(
        grad, rtol=case.meta['tolerance']['grad_rtol'],
        atol=case.meta['tolerance']['grad_atol'])}
  return out


class Alignment:
  """The whole of dino.txt, of a case that trains it."""

  def __init__(self, case, mesh):
    c, state = case.config, case.weights['']
    vision = dataclasses.replace(models.v3_config(c['vision']), remat='none')
    self.head = vision_head.Config(
        width=vision.embed_dim, num_heads=vision.num_heads,
        depth=c['vision_head_blocks'], embed_dim=c['embed_dim'],
        projects=c['vision_projection'], patch_layer=c['patch_token_layer'],
        drop_path_rate=0.0, remat='none')
    self.text = tower_config(c['text'], embed_dim=c['embed_dim'])
    self.table = tables.table(self.text, self.head)
    self.nets = {
        tables.TEXT: network.functional(tower.Tower, self.text, mesh),
        tables.VISION: network.functional(
            vision_head.VisionHead, self.head, mesh)}
    self.backbone = reading.functional(vision, mesh)
    prefix = 'visual_model.backbone.'
    inside = lambda name: name.startswith(prefix)
    tensors, _ = meta.complete({
        name.removeprefix(prefix): value for name, value in state.items()
        if inside(name)})
    self.frozen = translate.to_ours(
        tensors, meta.table(vision), self.backbone.shapes)
    self.params = translate.to_ours(
        {name: value for name, value in state.items() if not inside(name)},
        self.table, {name: net.shapes for name, net in self.nets.items()} | {
            tables.LOG_SCALE: jax.ShapeDtypeStruct((1,), jnp.float32)})
    self.weight_decay = rates.weight_decays(self.params) | {
        tables.LOG_SCALE: np.float32(0)}

  def embed(self, params, images, ids):
    """Embeddings, patches of the head and of the backbone, in one pass."""
    layers = self.head.layers(self.backbone.config.depth)
    rows = self.backbone.apply(
        self.frozen, images, lambda net, images: vision_head.inputs(
            spec.compute(net, images, {'': spec.FeatureSpec(
                vision_head.TOKENS, layers)})['']))
    seen = self.nets[tables.VISION].apply(
        params[tables.VISION], rows, lambda net, rows: net(rows))
    text = self.nets[tables.TEXT].apply(
        params[tables.TEXT], ids, lambda net, ids: net(ids))
    return seen['embedding'], text, seen['patches'], rows['patches']

  def loss(self, params, images, ids, gram_weight):
    image, text, patches, backbone = self.embed(params, images, ids)
    value = contrastive.contrastive(image, text, params[tables.LOG_SCALE])
    gram = contrastive.patch_gram(patches, backbone)
    return value + gram_weight * gram, (value, gram)


@golden.kind('dinotxt_train_steps')
def dinotxt_train_steps(case):
  c, x, tolerance = case.config, case.inputs, case.meta['tolerance']
  curve = schedules.linear_warmup_cosine_decay(
      0.0, c['lr'], 0.0, warmup_steps=c['warmup'], total_steps=c['total'])
  rule = optimizer.adamw(beta1=c['betas'][0], beta2=c['betas'][1])
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    model = Alignment(case, mesh)
    lr = jax.tree.map(lambda _: 1.0, model.params)

    @jax.jit
    def step(params, opt, i, images, ids):
      rate = {'lr': curve(i), 'weight_decay': c['weight_decay']}
      (_, losses), grads = jax.value_and_grad(model.loss, has_aux=True)(
          params, images, ids, c['gram_weight'])
      new, opt = rule.update(grads, opt, params, rate, optimizer.Multipliers(
          lr, model.weight_decay))
      new[tables.LOG_SCALE] = contrastive.clamped(new[tables.LOG_SCALE])
      return new, opt, losses, grads, rate['lr']

    split = jax.NamedSharding(mesh, mesh_lib.ROWS)
    put = lambda i: jax.device_put(
        (shared.nhwc(x['images'][i]), x['tokens'][i]), split)
    assert x['images'].shape[:2] == (c['steps'], c['batch'])
    params = jax.tree.map(jnp.asarray, model.params)
    image, text, patches, backbone = jax.jit(model.embed)(params, *put(0))
    opt, used = rule.init(params), []
    out = {'image_features': unit.normalize(image, 1e-12),
           'text_features': unit.normalize(text, 1e-12),
           'patch_tokens': patches, 'backbone_patch_tokens': backbone}
    for i in range(c['steps']):
      out[f'step{i}/logit_scale_used'] = jnp.exp(params[tables.LOG_SCALE])
      params, opt, losses, grads, rate = step(
          params, opt, jnp.int32(i), *put(i))
      used.append(rate)
      out[f'step{i}/contrastive_loss'], out[f'step{i}/gram_loss'] = losses
      if not i:
        out |= {f'grad0/{name}': golden.Within(
            value, rtol=tolerance['grad_rtol'], atol=tolerance['grad_atol'])
                for name, value in translate.to_theirs(
                    grads, model.table).items()}
  out |= {f'final/{name}': value for name, value in translate.to_theirs(
      params, model.table).items()}
  decays = dict(tree.items(model.weight_decay))
  for name, wanted in (('decayed', 1), ('not_decayed', 0)):
    listed = case.outputs[name].tolist()
    assert sorted(listed) == sorted(
        key for rule in model.table for key in rule.keys
        if decays[rule.path] == wanted)
    out[name] = case.outputs[name]
  return out | {'lr': np.array(used)}


@golden.kind('zero_shot_classifier')
def zero_shot_classifier(case):
  c, x = case.config, case.inputs
  assert x['text_embeddings'].shape == (c['classes'], c['templates'], c['dim'])
  assert x['image_features'].shape == (c['images'], c['dim'])
  weights = zero_shot.class_vectors(x['text_embeddings'])
  logits = zero_shot.logits(x['image_features'], weights)
  top = lambda n: np.int32([classification.in_top(
      logits, x['labels'], n).sum()])
  return {'weights': np.asarray(weights).T, 'logits': logits,
          'probabilities': jax.nn.softmax(logits), 'top1': top(1),
          'top5': top(5)}


@golden.kind('open_vocab_segmentation')
def open_vocab_segmentation(case):
  c, x = case.config, case.inputs
  patch, out = c['patch'], {}
  image = x['image'].transpose(1, 2, 0)
  assert image.shape[:2] == tuple(c['image'])
  assert x['text_features'].shape == (
      c['classes'], c['templates'], 2 * c['dim'])
  classes = zero_shot.patch_class_vectors(x['text_features'])
  c['argmax_min_gap'].skip_all()

  def encode(images, kernel):
    return jax.lax.conv_general_dilated(
        images, kernel, (patch, patch), 'VALID',
        dimension_numbers=('NHWC', 'OIHW', 'NHWC'))

  for call in shared.calls_of(case):
    name, tokens = call['id'], call['tokens']
    call.only('mode', 'whole', 'slide')
    views = open_vocabulary.whole(image, patch) if (
        call['mode'] == 'whole') else open_vocabulary.slid(
            image, patch, window_px=call['side'], stride_px=call['stride'])
    scores = open_vocabulary.scores(views, encode(
        views.images, case.weights[''][f'{tokens}_weight']), classes)
    size, chw = tuple(c['target']), lambda a: np.moveaxis(a, -1, 0)
    large = open_vocabulary.resized(scores, size)
    labels = open_vocabulary.labels(scores, size)
    areas = segmentation.areas(labels, x['target'], c['classes'])
    out |= {f'{name}/scores': chw(scores), f'{name}/scores_target': chw(large),
            f'{name}/argmax': near_ties(
                labels, case.outputs[f'{name}/argmax'], np.asarray(large)),
            f'{name}/miou': golden.Within(
                segmentation.scores(areas)['mIoU'], atol=1e-3)}
  return out | {'text': classes}


def near_ties(labels, wanted, scores):
  """Labels, those of near ties as they are wanted."""
  gap = np.diff(np.sort(scores, axis=-1)[..., -2:], axis=-1)[..., 0]
  assert (gap < 1e-5).mean() < 0.01
  return np.where(gap < 1e-5, wanted, labels)


@golden.kind('dinotxt_tokenizer')
def dinotxt_tokenizer(case):
  c, context = case.config, case.config['context_length']
  texts = case.inputs['texts'].tolist()
  assert texts == c['texts']
  if c['vocabulary'] == 'mini':
    words = clip_words.ClipWords(c['lines'][1:])
    assert case.inputs['vocab_file_lines'].tolist() == c['lines']
  else:
    c.only('vocabulary', 'clip')
    c.only('sha256', clip_words.SHA256)
    words = clip_words.read(clip_file())
  return {
      'ids': tokenizers.Tokenizer(words, context).encode(texts, markers=True),
      'vocab_size': np.int32(words.num_tokens), 'decoded': np.array([
          words.text(list(words.ids(text, markers=True)))
          for text in texts])}


def clip_file():
  """The vocabulary of CLIP in a package, which is not imported."""
  package = importlib.util.find_spec('open_clip')
  assert package, 'needs open_clip_torch: pip install -e ".[test,torch]"'
  return f'{package.submodule_search_locations[0]}/{clip_words.FILE}'

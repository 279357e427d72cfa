"""Queries in the last blocks of a ViT."""

import dataclasses
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.augment import photometric
from dinojax.features import backbone
from dinojax.features import spec
from dinojax.interop import names
from dinojax.interop import reading
from dinojax.interop import translate
from dinojax.interop.heads import eomt as tables
from dinojax.losses import masks as losses
from dinojax.models import network
from dinojax.models import vit
from dinojax.models.dense import eomt
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes import finetuning
from dinojax.probes.tasks import masks as task_lib
from tests import golden
from tests.kinds import dense as shared
from tests.kinds import masks

# Options that say the feed-forward network has a gate, as the weights do.
GATED = ('swiglu', 'use_swiglu_ffn', 'gated', 'gated_mlp', 'use_gated_mlp')


class Placed(vit.ViT):
  """A ViT whose learned positions are of a grid that is not square."""

  def __init__(self, config, *, rngs):
    super().__init__(config, rngs=rngs)
    self.places = nnx.Param(jnp.zeros((self.num_places, config.embed_dim)))

  def embed(self, images, mask=None):
    tokens = super().embed(images, mask)
    first = tokens.shape[1] - self.num_places
    return tokens.at[:, first:].add(self.places[...][None])


class Model:
  """A backbone and a head of a case, and how its tensors are called."""

  def __init__(self, case, words):
    c = case.config
    self.words, self.case = words, case
    size = c['size'] if 'size' in c else (c['image'],) * 2
    self.grid = tuple(n // c['patch'] for n in size)
    config = backbone_of(case, self.grid, words)
    self.config = eomt.Config(
        config, num_classes=c['classes'], num_queries=c['queries'],
        num_blocks=c['num_blocks'], num_upscales=c.get('upscale'))
    self.mesh = mesh_lib.make(devices=jax.devices()[:1])
    with mesh_lib.activate(self.mesh):
      self.model = backbone.Backbone(
          config, reading.shapes(config), self.mesh,
          mean=photometric.IMAGENET_MEAN, std=photometric.IMAGENET_STD)
    self.table = self._table()
    shapes = {'backbone': self.model.params, 'head': jax.eval_shape(
        lambda: eomt.init(jax.random.key(0), self.config))}
    if config.position == 'learned' and self.grid[0] != self.grid[1]:
      shapes['backbone'] |= self._places()
    state = tables.complete(case.weights[''], config, words)
    self.params = translate.to_ours(state, self.table, shapes)
    for name in ('blocks', 'norm'):  # of both: a copy
      np.testing.assert_equal(
          self.params['head'][name],
          eomt.taken(self.params['backbone'], self.config)[name])

  def _table(self):
    """Rules of both, and what the head has of the backbone in both."""
    place = lambda rule, part, path: dataclasses.replace(
        rule, path=f'{part}/{path}')
    return [place(rule, 'backbone', rule.path) for rule in (
        tables.backbone_table(self.config.backbone, self.words))] + [
            place(rule, 'head', rule.path.removeprefix('params/'))
            for rule in tables.table(self.config, self.words)]

  def _places(self):
    """Makes the positions of all patches a parameter of their own."""
    config, count = self.config.backbone, self.grid[0] * self.grid[1]
    kind = type('PlacedHere', (Placed,), {'num_places': count})
    self.model.net = network.functional(kind, config, self.mesh)
    rule, = (rule for rule in self.table
             if rule.path == 'backbone/pos_embed')
    self.table.remove(rule)
    self.table.append(dataclasses.replace(
        rule, path='backbone/places', layout=names.ROW))
    zeros = np.zeros(self.model.params['pos_embed'].shape, np.float32)
    self.case.weights['']['zeros'] = zeros
    self.table.append(names.Rule('backbone/pos_embed', ('zeros',)))
    return {'places': jax.ShapeDtypeStruct(
        (count, config.embed_dim), jnp.float32)}

  def run(self, params, images, probs, *, train=True):
    """Predictions and normed tokens, and which queries see everything.

    Masks are on where training, or any probability, has them so.
    """
    c, config = self.case.config, self.config
    draws, turned = {}, None
    if 'rope_rescale' in c:
      factor = jnp.float32(np.log(c['rope_rescale']))
      draws = {'rope': {'log_rescale': jnp.full(
          (1, config.backbone.depth), factor)}}
      turned = {'log_rescale': jnp.full(len(images), factor)}
    wanted = spec.FeatureSpec(
        task_lib.OUTPUTS, (config.first_block,), 'before')
    layer, = finetuning.features(
        self.model, params['backbone'], images, {'x': wanted}, draws)['x']
    masked = train or any(probs)
    predicted, x = eomt.apply(
        params['head'], dataclasses.replace(config, masked=masked),
        task_lib.tokens_of(layer), self.grid,
        jnp.asarray(self.opened(probs)), turned)
    if masked and not train:  # open blocks predict nothing
      predicted = [each for each, p in zip(
          predicted, (*probs, 1), strict=True) if p]
    return predicted, x

  def opened(self, probs):
    """[b, l, q] bool, of the numbers that were drawn."""
    shape = self.case.config['batch'], self.config.num_queries
    drawn = [self.case.inputs.get(f'random/block{i}', np.full(shape, not p))
             for i, p in enumerate(probs)]
    return np.stack([x > p for x, p in zip(drawn, probs, strict=True)], axis=1)

  def outputs(self, predicted, tokens, probs):
    """Predictions and what was seen, by the names of the cases."""
    out = {'last_hidden_state': tokens}
    is_all = len(predicted) == len(probs) + 1
    opened = [x for x, p in zip(
        np.moveaxis(self.opened(probs), 1, 0), probs, strict=True)
              if p or is_all]
    for i, each in enumerate(predicted):
      out |= {f'block{i}/mask_logits': each.masks,
              f'block{i}/class_logits': each.classes}
    rows = 0
    for i, each in enumerate(predicted[:-1]):
      allowed = masks.allowed_by(each.masks, self.grid)
      rows += int((~allowed.any(-1)).sum())  # before any is opened
      out[f'allowed/block{i}'] = allowed | opened[i][..., None]
    return out | {'rows_fully_blocked': np.int32(rows)}

  def gradients(self, grads, prefix='grad/'):
    """Gradients by the names of the file.

    Those of the head are written last: the backbone's own last blocks are
    not run, and have none.
    """
    tolerance = self.case.meta['tolerance']
    state = tables.reduce(translate.to_theirs(grads, self.table),
                          self.config.backbone, self.words)
    return {f'{prefix}{name}': golden.Within(
        value, rtol=tolerance['grad_rtol'], atol=tolerance['grad_atol'])
            for name, value in state.items()}


def backbone_of(case, grid, words):
  """The configuration of the ViT; weights tell the kind of its networks."""
  c = case.config
  c.skip('seed', 'batch')
  form = c['form']
  assert form in ('dinov2', 'dinov3')
  at = words.prefix + words.learned.block.format(i=0)
  if form == 'dinov3':
    at = words.prefix + words.rope.block.format(i=0)
  shape = lambda name: case.weights[''][f'{at}mlp.{name}.weight'].shape
  has = lambda name: f'{at}mlp.{name}.weight' in case.weights['']
  last = 'fc2' if has('fc2') else 'down_proj'
  hidden, ffn = shape(last)[1], 'mlp'
  if has('gate_proj') or has('fc1') and shape('fc1')[0] == 2 * hidden:
    # transformers' DINOv3 gates by hidden_act, whose default is gelu.
    act = c.get('hidden_act', 'silu' if form == 'dinov2' else 'gelu')
    ffn = {'silu': 'swiglu', 'gelu': 'geglu'}[act]
  if ffn == 'mlp':
    assert hidden == c['ffn']
  c.skip('ffn', 'hidden_act')
  for name in GATED:
    c.only(name, ffn != 'mlp')
  assert c['eps'] > 0
  return vit.ViTConfig(
      c['dim'], c['depth'], c['heads'], c['patch'], ffn=ffn,
      ffn_hidden=hidden, num_registers=c['registers'], layerscale=1.0,
      position='learned' if form == 'dinov2' else 'rope',
      image_px=min(grid) * c['patch'], interpolate_offset=0.0,
      interpolate_antialias=True, mask_k_bias=form == 'dinov3',
      norm_epsilon=c['eps'], rope_base=c['rope_base'])


def forward(case, model, name, probs, *, train, prepare=lambda x: x):
  """Outputs of a case, and gradients of the sum with its cotangents.

  Args:
    case: the case.
    model: its model.
    name: name of the images.
    probs: probabilities of masks by block.
    train: see Model.run.
    prepare: normalises images.
  """
  def loss(params, images):
    predicted, tokens = model.run(params, prepare(images), probs, train=train)
    total = sum(
        jnp.sum(getattr(each, kind) * case.inputs[f'cotangent/{name}{i}'])
        for i, each in enumerate(predicted)
        for kind, name in (('masks', 'mask'), ('classes', 'class')))
    return total, (predicted, tokens)

  with mesh_lib.activate(model.mesh):
    (grads, of_images), (predicted, tokens) = jax.jit(jax.grad(
        loss, argnums=(0, 1), has_aux=True))(
            model.params, split(case, model, name))
  tolerance = case.meta['tolerance']
  return model.outputs(predicted, tokens, probs) | model.gradients(grads) | {
      f'grad_{name}': golden.Within(
          shared.nchw(of_images), rtol=tolerance['grad_rtol'],
          atol=tolerance['grad_atol'])}


def split(case, model, name):
  """Images of a case on the mesh of the model."""
  return jax.device_put(shared.nhwc(case.inputs[name]), jax.NamedSharding(
      model.mesh, mesh_lib.ROWS))


@golden.kind('eomt_forward')
def eomt_forward(case):
  c = case.config
  return forward(case, Model(case, tables.HF), 'pixel_values', c['probs'],
                 train=c.get('train', False))


@golden.kind('eomt_repo')
def eomt_repo(case):
  c = case.config
  model = Model(case, tables.REPOSITORY)
  probs = c['probs'] if c['masked'] else [0.0] * c['num_blocks']
  return forward(
      case, model, 'image', probs, train=c['masked'],
      prepare=lambda x: photometric.normalize(
          255 * x, model.model.mean, model.model.std))


@golden.kind('eomt_loss')
def eomt_loss(case):
  c = case.config
  c.skip('mask_size')
  model = Model(case, tables.HF)
  images = split(case, model, 'pixel_values')
  run = lambda params: model.run(
      params, images, c['probs'], train=c.get('train', False))
  targets, points = masks.targets_of(case, c['targets']), []
  with mesh_lib.activate(model.mesh):
    predicted, tokens = jax.jit(run)(model.params)
  predicted = jax.tree.map(np.asarray, predicted)
  out = model.outputs(predicted, tokens, c['probs'])
  for i, each in enumerate(predicted):
    points.append(masks.losses_of(
        case, i, each.classes, each.masks, targets,
        c.get('no_object_weight', losses.NO_OBJECT), out))
  assert points[0].matching.shape[1] == c['points']

  with mesh_lib.activate(model.mesh):
    targets, points = jax.device_put((targets, points), jax.NamedSharding(
        model.mesh, mesh_lib.ROWS))

  def total(params):
    each = [losses.losses(some.classes, some.masks, targets, at,
                          no_object=c.get('no_object_weight', losses.NO_OBJECT))
            for some, at in zip(run(params)[0], points, strict=True)]
    each = [{name: losses.WEIGHTS[name] * value
             for name, value in numbers.items()} for numbers in each]
    return sum(sum(numbers.values()) for numbers in each), each

  with mesh_lib.activate(model.mesh):
    (value, each), grads = jax.jit(jax.value_and_grad(
        total, has_aux=True))(model.params)
  theirs = {'class': 'cross_entropy', 'mask': 'mask', 'dice': 'dice'}
  for i, numbers in enumerate(each):
    out |= {f'layer{i}/weighted_loss_{theirs[name]}': number
            for name, number in numbers.items()}
  return out | {'total': value} | model.gradients(grads)


# Names of parameters in the order in which the reference's modules have them.
ORDER = {'dinov2': (
    'cls_token', 'reg_token', 'pos_embed', r'patch_embed\.', r'blocks\.',
    r'norm\.'), 'dinov3': (
        r'norm\.', 'patch_embed.cls_token', 'patch_embed.register_tokens',
        r'patch_embed\.', r'blocks\.')}
WITHIN = (r'norm1\.', r'attention\.k', r'attention\.v', r'attention\.q',
          r'attention\.o', r'attn\.qkv', r'attn\.proj', r'l(ayer_)?s(cale)?1',
          r'norm2\.', r'mlp\.gate', r'mlp\.up', r'mlp\.down', r'mlp\.fc1',
          r'mlp\.fc2', r'l(ayer_)?s(cale)?2')
OF_HEAD = (r'q\.', r'class_head\.', r'mask_head\.', r'upscale\.')


def place(name, order):
  """Sorting key of a parameter's name, without the prefix of its part."""
  first = next(i for i, x in enumerate(order) if re.match(x, name))
  numbers = tuple(map(int, re.findall(r'\.(\d+)\.', name)))
  within = next((i for i, x in enumerate(WITHIN)
                 if re.search(rf'\.\d+\.{x}', name)), 0)
  ends = ('conv1', 'conv2', 'norm')
  part = next((i for i, x in enumerate(ends) if f'.{x}.' in name), 0)
  return first, numbers, within, part, name.endswith('bias')


@golden.kind('eomt_param_groups')
def eomt_param_groups(case):
  c = case.config
  c.skip('seed', 'batch', 'size', 'ffn', 'eps', 'rope_base', 'masked',
         'probs', 'hidden_act', *GATED)
  form = c['form']
  config = vit.ViTConfig(
      c['dim'], c['depth'], c['heads'], c['patch'],
      num_registers=c['registers'], layerscale=1.0,
      position='learned' if form == 'dinov2' else 'rope',
      mask_k_bias=form == 'dinov3')
  whole = eomt.Config(config, num_classes=c['classes'],
                      num_queries=c['queries'], num_blocks=c['num_blocks'])
  # A rate of the backbone's own, which the reference does not apply, makes
  # its last blocks learn at the full one.
  factors = eomt.layer_factors(
      config.depth, whole.num_blocks, decay=c['llrd'],
      full=not c['llrd_l2_enabled'] or c['lr_mult'] != 1.0)
  of_vit, words = {}, tables.REPOSITORY
  table = tables.backbone_table(config, words)
  for rule in table:
    at_end = rule.path.startswith('norm/')
    of_vit |= {key: 1.0 if at_end else factors[rule.layer or 0]
               for key in rule.keys}
  of_vit = tables.reduce(of_vit, config, words)
  others = {key: 1.0 for rule in tables.table(whole, words)
            for key in rule.keys if not key.startswith(words.prefix)}
  listed = [
      *sorted(of_vit, reverse=True, key=lambda key: place(
          key.removeprefix(words.prefix), ORDER[form])),
      *sorted(others, reverse=True, key=lambda key: place(key, OF_HEAD))]
  return {'names': np.array([f'network.{key}' for key in listed]),
          'lr': c['lr'] * np.array([(of_vit | others)[key] for key in listed]),
          'is_backbone': np.array([key in of_vit for key in listed])}

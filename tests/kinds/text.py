"""Text alignment: towers, losses, training, tokenizers and what reads text."""

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.interop import translate
from dinojax.interop.heads import text as tables
from dinojax.losses import contrastive
from dinojax.losses import unit
from dinojax.models import network
from dinojax.models.text import tower
from dinojax.models.text import vision_head
from dinojax.parallel import mesh as mesh_lib
from tests import golden
from tests.kinds import dense as shared


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
      vocabulary=c['vocab_size'], causal=c['is_causal'], **changes)


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
      drop_path_rate=c.get('drop_path', 0.0))
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

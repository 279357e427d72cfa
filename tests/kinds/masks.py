"""Heads whose queries become masks."""

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.interop import translate
from dinojax.interop.heads import masks as tables
from dinojax.models.dense import mask_decoder
from dinojax.models.dense import queries
from tests import golden


def decoder_of(c, *, prefix, norm):
  size = tuple(n // c['patch'] for n in c['size'])
  c.only('lateral', 'mlp')
  c.only('residual', True)
  c.only('rope', True)
  c.only('rope_base', mask_decoder.ROPE_BASE)
  c.skip('seed')
  config = mask_decoder.Config(
      width=c['dim'], num_heads=c['heads'], num_classes=c['classes'],
      patch_px=c['patch'], num_queries=c['queries'],
      num_blocks=c['num_blocks'], num_levels=len(c['indices']),
      hidden=c['hidden_dim'] or 4 * c['dim'], norm=norm, masked=c['masked'])
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


def looks_of(case, predicted, grid, out):
  """What queries could look at before each block but the last prediction."""
  rows = 0
  for i, each in enumerate(predicted[:-1]):
    allowed = np.asarray(queries.allowed(each.masks, grid))
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

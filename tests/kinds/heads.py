"""Projection heads of both generations, gradients included."""

import jax
import jax.numpy as jnp

from dinojax.interop import meta
from dinojax.interop import translate
from dinojax.models import heads
from dinojax.models import network
from dinojax.parallel import mesh as mesh_lib
from tests import golden


@golden.kind('v2_dino_head', 'v3_dino_head')
def head(case):
  case.config.skip('heads')
  out = {}
  for call in case.calls:
    name = call['id']
    config = heads.HeadConfig(
        num_prototypes=call['out_dim'], hidden_dim=call['hidden_dim'],
        bottleneck_dim=call['bottleneck_dim'], num_layers=call['nlayers'],
        mlp_bias=call['mlp_bias'],
        weight_norm=case.meta['kind'] == 'v2_dino_head')
    state = case.weights[name]
    told = meta.head_config(state)
    if call['nlayers'] == 1:  # nothing in the file has the hidden width
      told = heads.dataclasses.replace(told, hidden_dim=config.hidden_dim)
    assert told == config
    got = run(config, call['in_dim'], state, case.inputs[f'{name}/x'],
              case.inputs[f'{name}/cotangent'])
    out |= {f'{name}/{key}': value for key, value in got.items()}
  return out


def run(config, width, state, x, cotangent):
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    model = network.Functional(
        lambda rngs: heads.Head(width, config, dtype=jnp.float32, rngs=rngs),
        mesh)
    table = meta.head_table(config)
    params = translate.to_ours(state, table, model.shapes)
    rows = jax.device_put(
        x, jax.NamedSharding(mesh, mesh_lib.ROWS))

    def call(net, x):
      bottleneck = net.bottleneck(x)
      return net(x), bottleneck, net.last_layer(bottleneck)

    @jax.jit
    def everything(params, x, cotangent):
      forward = lambda params, x: model.apply(params, x, call)
      (y, bottleneck, logits), back = jax.vjp(forward, params, x)
      grads = back((cotangent, *map(jnp.zeros_like, (bottleneck, logits))))
      return y, bottleneck, logits, *grads

    y, bottleneck, logits, grad, grad_x = everything(
        params, rows, jax.device_put(cotangent, rows.sharding))
  grads = translate.to_theirs(grad, table)
  return {'y': y, 'no_last_layer': bottleneck, 'only_last_layer': logits,
          'grad_x': grad_x} | {f'grad/{k}': v for k, v in grads.items()}

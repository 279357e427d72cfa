"""Collectives of a program, counted with the trips of its loops."""

import jax
import jax.numpy as jnp

from dinojax.parallel import hlo
from dinojax.parallel import mesh as mesh_lib

TEXT = '''HloModule jit_step

%body.1 (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %p = (s32[], bf16[8,4]) parameter(0)
  %all-gather.1 = bf16[8,16]{1,0} all-gather(%x), GROUPS
  %f.1 = bf16[8,16]{1,0} fusion(%x), kind=kCustom, calls=%fused.1
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %y)
}

%fused.1 (q: bf16[8,4]) -> bf16[8,16] {
  %all-gather.2 = bf16[32,8]{1,0} all-gather(%q), GROUPS, chain_id="5"
}

%fused.2 (q: bf16[8,4]) -> bf16[8,16] {
  %all-gather.3 = bf16[32,8]{1,0} all-gather(%q), GROUPS, chain_id="5"
}

%condition.1 (p: (s32[], bf16[8,4])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(40)
  ROOT %less = pred[] compare(%i, %constant.9), direction=LT
}

ENTRY %main (a: f32[64]) -> f32[16] {
  %while.1 = (s32[], bf16[8,4]) while(%t0), condition=%condition.1, body=%body.1
  %f.2 = bf16[8,16]{1,0} fusion(%x), kind=kCustom, calls=%fused.2
  %all-reduce.1 = (f32[10]{0}, f32[100]{0}) all-reduce(%a, %b), WIDE
  ROOT %reduce-scatter.1 = f32[16]{0} reduce-scatter(%a), GROUPS
}
'''.replace('GROUPS', 'replica_groups={{0,1,2,3}}').replace(
    'WIDE', 'replica_groups=[2,8]<=[16]')


def test_loops_chains_and_groups_are_counted():
  found = {(c.kind, c.elements): c for c in hlo.collectives(TEXT)}
  plain = found['all-gather', 8 * 16]
  assert (plain.count, plain.devices, plain.dtype) == (40, 4, 'bf16')
  assert plain.sent_bytes == 40 * 8 * 16 * 2 * 3 / 4
  assert found['all-gather', 32 * 8].count == 40  # its chain's parts are one
  scatter = found['reduce-scatter', 64]
  assert scatter.sent_bytes == 64 * 4 * 3 / 4
  reduce, = (c for c in found.values() if c.kind == 'all-reduce')
  assert (reduce.devices, reduce.elements) == (8, 110) and len(found) == 4


def test_a_real_program_agrees_with_the_count():
  mesh = mesh_lib.make(data=1, fsdp=4, devices=jax.devices()[:4])
  with mesh_lib.activate(mesh):
    weights = jnp.zeros((5, 8, 32), out_sharding=jax.P(None, None, 'fsdp'))
    x = jnp.zeros((4, 8), out_sharding=jax.P('fsdp'))

    def local(weights, x):
      def body(x, w):
        whole = jax.lax.all_gather(w, 'fsdp', axis=1, tiled=True)
        return jnp.tanh(x @ whole @ whole.T), None
      return jax.lax.scan(body, x, weights)[0]

    text = jax.jit(jax.shard_map(
        local, in_specs=(jax.P(None, None, 'fsdp'), jax.P('fsdp')),
        out_specs=jax.P('fsdp'))).lower(weights, x).compile().as_text()
  one, = hlo.collectives(text)
  assert (one.kind, one.elements, one.devices, one.count) == (
      'all-gather', 8 * 32, 4, 5)

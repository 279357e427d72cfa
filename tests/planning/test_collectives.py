"""Collectives of a program, counted with the trips of its loops."""

import jax
import jax.numpy as jnp
import pytest

from dinojax.parallel import mesh as mesh_lib
from dinojax.planning import collectives

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
  operations = {(c.kind, c.elements): c for c in collectives.of_program(TEXT)}
  plain = operations['all-gather', 8 * 16]
  assert (plain.count, plain.devices, plain.dtype) == (40, 4, 'bf16')
  assert plain.sent_bytes == 40 * 8 * 16 * 2 * 3 / 4
  # Its chain's parts are one.
  assert operations['all-gather', 32 * 8].count == 40
  scatter = operations['reduce-scatter', 64]
  assert scatter.sent_bytes == 64 * 4 * 3 / 4
  reduce, = (c for c in operations.values() if c.kind == 'all-reduce')
  assert (reduce.devices, reduce.elements) == (8, 110) and len(operations) == 4


@pytest.mark.parametrize('groups, devices', [
    ('{{0,1,2},{3,4,5}}', 3), ('[2,8]<=[16]', 8),
    ("mesh['x'=16,'y'=1,'z'=4] {'x','y'}", 16),
    ("mesh['x'=16,'z'=4] {'z','x'}", 64), ("mesh['x'=16] {'x':(2)4}", 4),
    ("mesh['x'=1,'y'=16,'z'=16], device_ids=([16,16]T(1,0)) {'y'}", 16)])
def test_every_way_to_name_a_group_is_read(groups, devices):
  collective, = collectives.of_program(f'''
ENTRY %main (a: f32[64]) -> f32[64] {{
  ROOT %r = f32[64]{{0}} all-reduce(%a), replica_groups={groups}, to_apply=%b
}}
''')
  assert collective.devices == devices
  assert collective.sent_bytes == 2 * 64 * 4 * (devices - 1) / devices


def test_an_unknown_way_to_name_a_group_is_an_error():
  with pytest.raises(ValueError, match='cannot read'):
    collectives.of_program(
        TEXT.replace('replica_groups={{', 'replica_groups=<<'))


def test_what_starts_counts_what_comes_out():
  operations = collectives.of_program('''
ENTRY %main (a: f32[64]) -> f32[64] {
  %g = ((bf16[4], bf16[8]), (bf16[16], bf16[32])) all-gather-start(%a), GROUPS
  %h = (bf16[16]{0}, bf16[32]{0}) all-gather-done(%g)
  %p = (f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%a)
  ROOT %q = f32[64]{0} collective-permute-done(%p)
}
'''.replace('GROUPS', 'replica_groups={{0,1,2,3}}'))
  assert [(c.kind, c.dtype, c.elements, c.sent_bytes) for c in operations] == [
      ('all-gather', 'bf16', 48, 48 * 2 * 3 / 4),
      ('collective-permute', 'f32', 64, 64 * 4)]


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
  collective, = collectives.of_program(text)
  assert (collective.kind, collective.elements, collective.devices,
          collective.count) == ('all-gather', 8 * 32, 4, 5)

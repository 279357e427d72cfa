"""What a program computes and moves, on texts by hand and real programs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dinojax.core import chips
from dinojax.core import errors
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import topologies
from dinojax.planning import collectives
from dinojax.planning import layouts
from dinojax.planning import links
from dinojax.planning import roofline

V5E = chips.CHIPS['v5e']
TILED = 'T(8,128)(2,1)'

LOOP = '''HloModule jit_step

%inner (p0: bf16[5,256,768], p1: s32[]) -> bf16[256,768,1] {
  %p0 = bf16[5,256,768]{2,1,0:TILED} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %slice = bf16[1,256,768]{2,1,0:TILED} dynamic-slice(%p0, %p1, %p1, %p1), dynamic_slice_sizes={1,256,768}
  ROOT %cast = bf16[256,768,1]{1,0,2:TILED} bitcast(%slice)
}

%multiply (q0: bf16[8,201,256], q1: bf16[5,256,768], q2: s32[]) -> bf16[8,201,768] {
  %q0 = bf16[8,201,256]{2,1,0:TILEDS(1)} parameter(0)
  %stack = bf16[5,256,768]{2,1,0:TILED} parameter(1)
  %q1 = bf16[5,256,768]{2,1,0:TILED} bitcast(%stack)
  %q2 = s32[]{:T(128)S(6)} parameter(2)
  %weight = bf16[256,768,1]{1,0,2:TILED} fusion(%q1, %q2), kind=kLoop, calls=%inner
  ROOT %product = bf16[8,201,768]{2,1,0:TILED} convolution(%q0, %weight), window={size=1}, dim_labels=0bf_io0->0bf
}

%body (p: (s32[], bf16[8,201,256], bf16[5,256,768])) -> (s32[], bf16[8,201,256], bf16[5,256,768]) {
  %p = (s32[], bf16[8,201,256]{2,1,0:TILEDS(1)}, bf16[5,256,768]{2,1,0:TILED}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%p), index=0
  %x = bf16[8,201,256]{2,1,0:TILEDS(1)} get-tuple-element(%p), index=1
  %w = bf16[5,256,768]{2,1,0:TILED} get-tuple-element(%p), index=2
  %y = bf16[8,201,768]{2,1,0:TILED} fusion(%x, %w, %i), kind=kOutput, calls=%multiply, metadata={op_name="jit(step)/while/body/dot_general"}, backend_config={"window_config":{"estimated_cycles":"18849"}}
  %vit_attention.3 = bf16[8,201,256]{2,1,0:TILEDS(1)} custom-call(%y, %y, %y), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/while/body/vit_attention/pallas_call"}, backend_config={"custom_call_config":{"body":"TUzvUg(","cost_estimate":{"flops":"330956800","transcendentals":"1292832","bytes_accessed":"3293184"}}}
  ROOT %t = (s32[], bf16[8,201,256]{2,1,0:TILEDS(1)}, bf16[5,256,768]{2,1,0:TILED}) tuple(%i, %vit_attention.3, %w)
}

%condition (p: (s32[], bf16[8,201,256], bf16[5,256,768])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i, %five), direction=LT
}

ENTRY %main (a: bf16[8,201,256], b: bf16[5,256,768]) -> bf16[8,201,256] {
  %b = bf16[5,256,768]{2,1,0:TILED} parameter(1)
  %t0 = (s32[], bf16[8,201,256]{2,1,0:TILEDS(1)}, bf16[5,256,768]{2,1,0:TILED}) tuple(%zero, %a, %b)
  ROOT %while = (s32[], bf16[8,201,256]{2,1,0:TILEDS(1)}, bf16[5,256,768]{2,1,0:TILED}) while(%t0), condition=%condition, body=%body
}
'''.replace('TILED', TILED)  # noqa: E501  lines as the compiler writes them


@pytest.mark.parametrize('shape, padded', [
    ('bf16[257,100]{1,0:T(8,128)(2,1)}', 264 * 128 * 2),
    ('bf16[3,50,60]{1,2,0:T(8,128)(2,1)}', 3 * 64 * 128 * 2),
    ('f32[5]{0:T(128)}', 128 * 4),
    ('bf16[3,7]{1,0:T(1,128)(2,1)}', 3 * 2 * 128 * 2),
    ('pred[600]{0:T(512)(128)(4,1)}', 1024),
    ('f32[5,7]{1,0}', 5 * 7 * 4),
    ('s4[10]{0}', 5),
    ('f32[]', 4)])
def test_tiles_are_filled_up(shape, padded):
  array, = layouts.arrays(shape)
  assert array.padded_bytes == array.bytes_in(layouts.HBM) == padded


def test_what_lies_on_the_chip_is_not_in_hbm():
  on_chip, there = layouts.arrays(
      '(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, f32[8,128]{1,0:T(8,128)})')
  assert on_chip.bytes_in(layouts.HBM) == 0
  assert on_chip.padded_bytes == 2048 and on_chip.bytes_in(1) == 2048
  assert there.bytes_in(layouts.HBM) == 4096


def test_loops_slices_and_kernels_are_counted():
  product, kernel = roofline.work(LOOP)
  assert (product.count, kernel.count, product.cycles) == (5, 5, 18849)
  assert product.flops == 2 * 8 * 201 * 256 * 768
  # 1,608 rows are eights already, 256 and 768 are 128s.
  assert product.padded_flops == product.flops
  # One of five weights is read; x lies on the chip; 201 tokens are 208.
  assert product.hbm_bytes == (256 * 768 + 8 * 208 * 768) * 2
  assert kernel.kind == 'vit_attention' and kernel.flops == 330956800
  # Heads of 64 fill half of the unit's depth, 201 keys are 256, rows 208.
  assert kernel.padded_flops / kernel.flops == pytest.approx(
      2 * 256 / 201 * 208 / 201)
  # Of its 4 · b·n·d the 3 of the projection lie in HBM.
  assert kernel.hbm_bytes == pytest.approx(3293184 * 3 / 4 * 208 / 201)


def test_seconds_are_those_of_the_slower_unit():
  product = roofline.work(LOOP)[0]
  moving = dataclasses.replace(product, count=2, flops=0, padded_flops=0)
  assert moving.seconds(V5E) == 2 * moving.hbm_bytes / 0.819e12
  computing = dataclasses.replace(product, count=2, hbm_bytes=0, cycles=3e6)
  assert computing.seconds(V5E) == 2 * product.padded_flops / 197e12
  assert computing.expected_seconds(V5E) == pytest.approx(2 * 3e6 / 1.5e9)
  # A device is half of a chip there.
  v4 = chips.CHIPS['v4']
  assert computing.seconds(v4) == pytest.approx(
      2 * product.padded_flops / (275e12 / 2))
  sums = roofline.total([moving, computing], V5E)
  assert sums['busy_s'] == pytest.approx(sums['matrix_s'] + sums['hbm_s'])


def entry(lines: str, rest: str = '') -> list[roofline.Work]:
  return roofline.work(f'''HloModule m
{rest}
ENTRY %main (a: f32[64,1024]) -> f32[64,1024] {{
  %a = f32[64,1024]{{1,0:T(8,128)}} parameter(0)
  %i = s32[]{{:T(128)S(6)}} constant(0)
{lines}
}}
''')


@pytest.mark.parametrize('lines, moved', [
    # A copy counts once, where it starts; from HBM to the chip is one way.
    ('''  %s = (CHIP, f32[64,1024]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  ROOT %d = CHIP copy-done(%s)''', 64 * 4096),
    ('  ROOT %c = f32[64,1024]{0,1:T(8,128)} copy(%a)', (64 + 128) * 4096),
    ('''  %s = ((f32[64,1024]{1,0}), PART, s32[]{:S(2)}) slice-start(%a)
  ROOT %d = PART slice-done(%s)''', 8 * 4096),
    # Updated in place: the update is read and written.
    ('''  %u = f32[8,1024]{1,0:T(8,128)} slice(%a), slice={[0:8], [0:1024]}
  ROOT %d = f32[64,1024]{1,0:T(8,128)} dynamic-update-slice(%a, %u, %i, %i)''',
     4 * 8 * 4096),
    ('  ROOT %n = f32[64,1024]{1,0:T(8,128)} bitcast(%a)', 0),
    ('  ROOT %g = f32[64,1024]{1,0:T(8,128)} all-gather(%a)', 0)])
def test_traffic_of_an_instruction(lines, moved):
  items = entry(lines.replace('CHIP', 'f32[64,1024]{1,0:T(8,128)S(1)}')
                .replace('PART', 'f32[8,1024]{1,0:T(8,128)S(1)}'))
  assert sum(x.count * x.hbm_bytes for x in items) == moved


def test_what_goes_to_the_host_is_counted_at_both_ends():
  item, = entry('''
  %s = (HOST, f32[64,1024]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  ROOT %d = HOST copy-done(%s)'''.replace(
      'HOST', 'f32[64,1024]{1,0:T(8,128)S(5)}'))
  assert item.hbm_bytes == item.host_bytes == 64 * 4096
  assert roofline.total([item], V5E)['host_bytes'] == 64 * 4096


def test_a_fusion_writes_only_what_it_updates():
  items = entry(
      '  ROOT %f = f32[64,1024]{1,0:T(8,128)} fusion(%a, %i), kind=kLoop, '
      'calls=%update', '''
%update (t: f32[64,1024], j: s32[]) -> f32[64,1024] {
  %t = f32[64,1024]{1,0:T(8,128)} parameter(0)
  %j = s32[]{:T(128)S(6)} parameter(1)
  %zero = f32[]{:T(128)} constant(0)
  %rows = f32[8,1024]{1,0:T(8,128)} broadcast(%zero), dimensions={}
  ROOT %u = f32[64,1024]{1,0:T(8,128)} dynamic-update-slice(%t, %rows, %j, %j)
}
''')
  assert [x.hbm_bytes for x in items] == [8 * 4096]


def test_of_branches_the_dearest_counts():
  items = entry(
      '  ROOT %c = f32[64,64]{1,0:T(8,128)} conditional(%i, %a, %a), '
      'branch_computations={%small, %large}', '''
%small (s: f32[64,1024]) -> f32[64,64] {
  %s = f32[64,1024]{1,0:T(8,128)} parameter(0)
  ROOT %r = f32[64,64]{1,0:T(8,128)} slice(%s), slice={[0:64], [0:64]}
}

%large (l: f32[64,1024]) -> f32[64,64] {
  %l = f32[64,1024]{1,0:T(8,128)} parameter(0)
  ROOT %m = f32[64,64] dot(%l, %l), DIMENSIONS
}
'''.replace('DIMENSIONS', 'lhs_contracting_dims={1}, rhs_contracting_dims={1}'))
  assert [x.kind for x in items] == ['dot']
  assert items[0].flops == 2 * 64 * 64 * 1024
  assert items[0].padded_flops == 2 * 64 * 128 * 1024


def executed(run, *args) -> tuple[float, float]:
  """FLOPs by our count, and by the compiler's."""
  program = jax.jit(run).lower(*args).compile()
  return (roofline.executed(roofline.work(program.as_text())),
          program.cost_analysis()['flops'])


def test_a_scan_counts_as_often_as_it_runs():
  weights, x = jnp.zeros((6, 32, 32)), jnp.zeros((16, 32))
  body = lambda x, w: (jnp.tanh(x @ w), None)
  ours, theirs = executed(lambda w, x: jax.lax.scan(body, x, w)[0],
                          weights, x)
  assert ours == 6 * 2 * 16 * 32 * 32
  assert theirs < 2 * ours / 6  # one trip, and tanh
  batch = jnp.zeros((3, 8, 16))
  ours, _ = executed(lambda a: jnp.einsum('bnd,bmd->bnm', a, a), batch)
  assert ours == 2 * 3 * 8 * 8 * 16


@pytest.mark.parametrize('options', [
    dict(window_strides=(1, 1), padding='SAME'),
    dict(window_strides=(2, 2), padding=((1, 0), (2, 3))),
    dict(window_strides=(1, 1), padding=((1, 1), (0, 2)),
         lhs_dilation=(2, 2)),
    dict(window_strides=(1, 1), padding='SAME', feature_group_count=8)])
def test_convolutions_count_as_the_compiler_counts(options):
  groups = options.get('feature_group_count', 1)
  x, kernel = jnp.zeros((2, 9, 11, 8)), jnp.zeros((3, 5, 8 // groups, 16))
  ours, theirs = executed(lambda x, w: jax.lax.conv_general_dilated(
      x, w, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options), x, kernel)
  assert ours == pytest.approx(theirs)


@pytest.mark.parametrize('topology, devices, links_used', [
    ('v5e:16x16', 16, 2), ('v5e:16x16', 256, 2), ('v5e:16x16', 8, 1),
    ('v5e:8x16', 16, 2), ('v5e:8x16', 8, 1), ('v5e:8x16', 128, 1),
    ('v5e:2x4', 8, 1), ('v5p:4x4x4', 4, 2), ('v5p:4x4x4', 16, 2),
    ('v5p:2x2x1', 4, 1), ('v4:4x4x4', 8, 2)])
def test_a_ring_needs_an_axis_that_closes(topology, devices, links_used):
  chip = chips.of_topology(topology)
  assert links.used(chip, topology, devices) == links_used


def test_collectives_take_their_bytes_or_their_hops():
  # 16 · 1e9 elements of two bytes, of which a device sends 15/16.
  large = collectives.Collective('all-gather', 'bf16', 10**9, 16, 1)
  assert links.seconds(V5E, 'v5e:16x16', [large]) == pytest.approx(
      2e9 * 15 / 16 / 100e9)
  assert links.seconds(V5E, 'v5e:4x4', [dataclasses.replace(
      large, devices=4)]) == pytest.approx(2e9 * 3 / 4 / 50e9)
  small = collectives.Collective('all-reduce', 'f32', 1, 16, 40)
  assert links.seconds(V5E, 'v5e:16x16', [small]) == pytest.approx(
      40 * 2 * 8e-6)
  alone = collectives.Collective('all-reduce', 'f32', 1, 1, 40)
  assert links.seconds(V5E, 'v5e:16x16', [alone]) == 0


@pytest.mark.parametrize('kind, name', [
    ('TPU v5 lite', 'v5e'), ('TPU v5', 'v5p'), ('TPU v4', 'v4'),
    ('TPU v6 lite', 'v6e'), ('TPU7x', 'tpu7x'), ('NVIDIA H200', 'H200'),
    ('NVIDIA A100-SXM4-80GB', 'A100-80GB'), ('NVIDIA L4', 'L4'),
    ('NVIDIA H100 80GB HBM3', 'H100-SXM')])
def test_chips_are_known_by_what_jax_calls_them(kind, name):
  assert chips.of_device_kind(kind) is chips.CHIPS[name]
  assert chips.of_device_kind(kind + ' Super') is None


@pytest.mark.slow
def test_a_chain_of_products_on_a_tpu_has_known_work():
  try:
    device = topologies.devices('v5e:2x2')[0]
  except errors.UserError as error:
    pytest.skip(str(error))
  mesh = mesh_lib.make(devices=[device])
  array = lambda *shape: jax.ShapeDtypeStruct(
      shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P()))
  chain = lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]
  with mesh_lib.activate(mesh):
    text = jax.jit(chain).lower(
        array(8192, 4096), array(3, 4096, 4096)).compile().as_text()
  sums = roofline.total(roofline.work(text), V5E)
  assert sums['flops'] == sums['padded_flops'] == 3 * 2 * 8192 * 4096 ** 2
  # Weights once; x read and written each time, and copied at most once.
  weights, x = 3 * 4096 ** 2 * 2, 8192 * 4096 * 2
  assert weights + 4 * x <= sums['hbm_bytes'] <= weights + 9 * x

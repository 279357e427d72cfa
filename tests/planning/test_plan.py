"""`dinojax compile`: the step's needs, without the machine."""

import json

import jax
import pytest

from dinojax.core import errors
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import topologies
from dinojax.planning import collectives
from dinojax.planning import estimate
from dinojax.planning import fit
from dinojax.planning import plan
from dinojax.planning import roofline
from dinojax.planning import text as plan_text
from tests.train import tiny


@pytest.fixture(autouse=True)
def jax_has_started():
  """With eight devices; else a plan for fewer would be all that is left."""
  assert jax.device_count() == 8


@pytest.mark.slow  # make test plans a small step
def test_the_dearest_steps_are_planned():
  small = dict(model__depth=1, model__drop_path_rate=0.0)
  numbers = plan.compiled(tiny.config(
      **small, crops__sizes=((8, 8, None, 0.9), (16, 8, None, 0.1))), 'cpu:8')
  alone = plan.compiled(tiny.config(**small), 'cpu:8')
  assert alone['dearest_of'] is None
  assert numbers['model_flops_per_step'] == alone['model_flops_per_step']
  assert ('of the dearest, with crops of 16 and 8 pixels; the whole'
          in plan_text.table(numbers))


def test_the_plan_of_a_small_step():
  config = tiny.config(train__batch_size=16, model__remat='none')
  config['mesh'] = dict(data=1, fsdp=2)
  numbers = plan.compiled(config, 'cpu:2')  # of the eight there are
  assert numbers['devices'] == 2 and numbers['images_per_step'] == 16
  assert numbers['peak_gib'] > 0 and numbers['hbm_gib'] is None
  assert 0.75 < numbers['estimated_gib'] / numbers['peak_gib'] < 1.25
  # Stochastic depth, packing and sharding compute nothing that is not needed.
  wasted = numbers['executed_flops_per_step'] / numbers['model_flops_per_step']
  assert 0.99 < wasted < 1.05
  kinds = {name.split()[0] for name in numbers['collectives']}
  assert {'all-gather', 'reduce-scatter'} <= kinds
  assert 'all-to-all' not in kinds
  gathers = sum(x['count'] for name, x in numbers['collectives'].items()
                if name.startswith('all-gather'))
  assert gathers >= tiny.config()['model']['depth']
  text = plan_text.table(numbers)
  assert '2 devices (data 1 × fsdp 2)' in text and 'all-gather' in text
  assert 'no roofline' in text and 'model.remat=none' in text
  assert json.loads(json.dumps(numbers)) == numbers


PROGRAM = '''HloModule m

FileNames
1 "/home/me/dinojax/models/heads.py"
2 "/usr/lib/flax/linear.py"

FunctionNames
1 "Head.__call__.<locals>.<lambda>"
2 "Linear.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=9 end_line=9 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

ENTRY %main (a: bf16[197000,1000]) -> bf16[197000,512] {
  %a = bf16[197000,1000]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[1000,512]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[197000,512]{1,0:T(8,128)(2,1)} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/transpose(jvp())/while/body/dot_general" stack_frame_id=2}
}
'''  # noqa: E501  as the compiler writes it


def test_the_estimate_of_a_program_by_hand():
  work = {'model_flops_per_step': 16e12, 'total_steps': 36000}
  sent = [collectives.Collective('all-gather', 'bf16', 10**9, 4, 1)]
  numbers = estimate.of_program(PROGRAM, 'v5e:4x4', 16, sent, work)
  product = 2 * 197000 * 1000 * 512
  assert numbers['executed_flops_per_step'] == 16 * product
  r = numbers['roofline']
  place = 'backward, blocks: heads.Head.__call__ dot_general'
  moved = 2 * (197000 * 1024 + 1000 * 512 + 197000 * 512)
  assert r['hbm_bytes'] == moved and r['padded_flops'] == product * 1.024
  busy, links = max(product * 1.024 / 197e12, moved / 0.819e12), 0.03
  assert r['busy_s'] == pytest.approx(busy)
  assert r['link_s'] == pytest.approx(links)  # 1.5 GB on one link
  assert r['host_s'] == 0
  assert r['step_s']['no_overlap'] == pytest.approx(busy + links)
  assert r['step_s']['full_overlap'] == pytest.approx(links)
  assert numbers['roofline_mfu_pct'] == pytest.approx(
      100 * 16e12 / (16 * 197e12) / (busy + links))
  assert r['chip_hours']['no_overlap'] == pytest.approx(160 * (busy + links))
  assert r['items'][0]['name'] == place
  shown = plan_text.table({
      **numbers, **work, 'topology': 'v5e:4x4', 'devices': 16, 'mesh': {},
      'attention': 'tpu', 'remat': 'none', 'images_per_step': 64,
      'dearest_of': None, 'parameters': {}, 'peak_gib': 4.0,
      'arguments_gib': 1.0, 'estimated_gib': 4.5, 'hbm_gib': 16,
      'temporaries_gib': 3.0, 'model_flops_per_image': 1e12,
      'collectives': {}}, explain=True)
  for part in ('25 % of the 16 GiB', 'chip-hours', 'takes for granted',
               place):
    assert part in shown


@pytest.mark.parametrize('op_name, place', [
    ('jit(step)/jvp()/while/body/dot', 'forward, blocks: f dot'),
    ('jit(step)/reduce_sum', 'no gradient: f reduce_sum'),
    ('jit(step)/transpose(jvp())/while/body/checkpoint/rematted_computation/'
     'vit_attention/pallas_call', 'recomputed, blocks: f vit_attention'),
    ('', 'compiler: copy')])
def test_an_instruction_is_placed_in_the_step(op_name, place):
  work = roofline.Work('copy.1', op_name, 'f', 'copy', 1, 0.0, 0.0, 0.0)
  assert estimate.place(work) == place


def fake(state_gib: float, image_gib: float, compiled: list):
  """A compiler whose programs need memory that is linear in images."""
  def compile_(config, topology):
    images = config['train']['batch_size'] // 8
    compiled.append(images)
    peak = state_gib + image_gib * images
    if peak > 16:
      raise plan.DoesNotFit(topology, peak, 15.75)
    return {'peak_gib': peak, 'images_per_step': 8 * images}
  return compile_


@pytest.mark.parametrize('state_gib, image_gib, group, best', [
    (1.0, 0.5, 2, 28), (0.1, 0.1, 2, 150), (14.0, 0.5, 2, 2),
    (1.0, 3.0, 4, 4), (9.0, 0.4, 6, 12)])
def test_the_largest_batch_is_found(monkeypatch, state_gib, image_gib, group,
                                    best):
  monkeypatch.setattr(topologies, 'devices', lambda topology: [None] * 8)
  for first in (group, 5 * group):  # fits at once, or perhaps does not
    compiled, messages = [], []
    config = tiny.config(train__batch_size=8 * first,
                         train__group_images=group)
    numbers = fit.largest(config, 'v5e:2x4', messages.append,
                          compiled=fake(state_gib, image_gib, compiled))
    assert numbers['fit']['images_per_device'] == best
    assert numbers['images_per_step'] == 8 * best
    assert len(set(compiled)) == len(compiled) <= 5
    assert len(messages) == 2 * len(compiled)


def test_what_never_fits_answers_in_a_sentence(monkeypatch):
  monkeypatch.setattr(topologies, 'devices', lambda topology: [None] * 8)
  with pytest.raises(errors.UserError, match='not even 2 images a device'):
    fit.largest(tiny.config(), 'v5e:2x4', lambda text: None,
                compiled=fake(20.0, 1.0, []))
  with pytest.raises(errors.UserError, match='--fit needs a memory'):
    fit.largest(tiny.config(), 'cpu:8', lambda text: None)


@pytest.mark.parametrize('message', [
    'XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
    'Used 512.5M of 15.75G hbm.',
    'Ran out of memory on HBM, the total memory required for HLO temporaries '
    '(512.5M) exceeds available HBM (15.75G).'])
def test_a_program_that_does_not_fit_answers_in_a_sentence(message):
  class Lowered:
    def compile(self, options):
      raise jax.errors.JaxRuntimeError(f'RESOURCE_EXHAUSTED: {message}')

  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with pytest.raises(plan.DoesNotFit, match='0.50 GiB of the 15.75.*fsdp'):
    plan._compile(Lowered(), mesh, 'v5e:2x4')


@pytest.mark.parametrize('topology', ['cpu:0', 'cpu:9'])
def test_cpus_that_are_not_here_answer_in_a_sentence(topology):
  assert topologies.devices('cpu:2') == jax.devices('cpu')[:2]
  with pytest.raises(errors.UserError, match='cpu:1 to cpu:8, or for'):
    topologies.devices(topology)


@pytest.mark.parametrize('topology', ['v9x:4x4', 'gpu:8', 'v5e', 'H200:8'])
def test_unknown_topologies_answer_in_a_sentence(topology):
  with pytest.raises(errors.UserError, match='v5e|libtpu'):
    topologies.devices(topology)

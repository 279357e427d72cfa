"""`dinojax doctor`: what it finds wrong, and that it says what to do."""

import io
import os
import pathlib
import subprocess
import sys

from PIL import Image
import pytest

from dinojax.configs import demo
from dinojax.data import inspection
from dinojax.data import sources
from dinojax.doctor import findings
from dinojax.doctor import machine
from dinojax.doctor import report
from dinojax.doctor import sanity
from dinojax.doctor import supply
from dinojax.doctor import versions
from dinojax.doctor import views
from dinojax.parallel import hardware
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import platforms
from dinojax.planning import memory
from dinojax.planning import throughput
from dinojax.runs import catalog
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib

ROOT = pathlib.Path(__file__).parents[2]


def settings(**changes):
  """The demo's, with changes as section__key=value."""
  config = demo.get_config()
  config.update_from_flattened_dict(
      {key.replace('__', '.'): value for key, value in changes.items()})
  return settings_lib.read(config)


def levels(part_findings):
  return {finding.name: finding.level for finding in part_findings
          if finding.level != 'ok'}


def test_the_demo_is_sane_and_every_check_speaks():
  s, run = settings(), sanity.Scale(1, 2535)
  demo_findings = sanity.findings_of(s, run) + views.settings_findings(s)
  assert levels(demo_findings) == {}
  assert {'length', 'warm-ups', 'learning rate', 'teacher', 'batch on devices',
          'KoLeo', 'dino prototypes', 'ibot prototypes', 'crops', 'masks'} == {
              finding.name for finding in demo_findings}


@pytest.mark.parametrize('changes, name, level, fix', [
    (dict(train__total_steps=0.5), 'length', 'error', 'train.total_steps'),
    (dict(checkpoint__every_steps=161.0), 'checkpoints', 'warn', '40'),
    (dict(schedules__lr__warmup_steps=160.0), 'lr warm-up', 'warn',
     'schedules.lr.warmup_steps to 16'),
    (dict(schedules__freeze_last_layer_steps=160.0), 'frozen prototypes',
     'warn', 'shorten'),
    (dict(schedules__lr__peak=0.0, schedules__lr__end=0.0), 'learning rate',
     'error', 'schedules.lr.peak'),
    (dict(schedules__lr__peak=0.02), 'learning rate', 'warn', '0.0057'),
    # The rate that never comes counts less than the rule.
    (dict(schedules__lr__peak=1.0, schedules__lr_rule='sqrt_1024',
          schedules__lr__warmup_steps=320.0), 'learning rate', 'warn',
     '0.023 or less'),
    # 0.02 · √(64 / 1024) = 0.005 has worked.
    (dict(schedules__lr__peak=0.02, schedules__lr_rule='sqrt_1024'),
     'learning rate', 'ok', ''),
    (dict(schedules__momentum__peak=0.996), 'teacher', 'warn', '0.94'),
    (dict(schedules__teacher_temperature__end=0.1), 'temperatures', 'warn',
     '0.07'),
    (dict(koleo__group_images=2), 'KoLeo', 'warn', 'group_images to 64'),
    (dict(koleo__group_images=2, train__num_micro_batches=4,
          train__group_images=16), 'KoLeo', 'warn', 'group_images to 16'),
    (dict(koleo__group_images=4, train__batch_size=4, train__group_images=4),
     'KoLeo', 'warn', 'train.batch_size to a multiple of 16'),
    (dict(koleo__group_images=8), 'KoLeo', 'ok', ''),
    (dict(dino__num_prototypes=1024), 'dino prototypes', 'ok', ''),
    (dict(dino__num_prototypes=1025), 'dino prototypes', 'warn', '1024'),
    (dict(ibot__num_prototypes=65536), 'ibot prototypes', 'warn', '1024'),
    (dict(dino__num_prototypes=65536, train__batch_size=1024),
     'dino prototypes', 'ok', ''),
    (dict(dino__num_prototypes=65536, teacher__centering='softmax'),
     'dino prototypes', 'ok', ''),
    (dict(model__drop_path_rate=0.3, train__group_images=1), 'drop path',
     'warn', 'group_images'),
    (dict(gram__loss_weight=1.0, gram__start_steps=160.0), 'Gram teacher',
     'warn', 'gram.start_steps'),
    (dict(gram__loss_weight=1.0, gram__start_steps=10.0, crops__gram_px=24),
     'Gram teacher', 'warn', 'crops.gram_px to 96'),
    (dict(gram__loss_weight=1.0, gram__start_steps=10.0), 'Gram teacher', 'ok',
     ''),
])
def test_settings_that_cannot_learn_well(changes, name, level, fix):
  sanity_findings = sanity.findings_of(
      settings(**changes), sanity.Scale(1, 2535))
  matching = [f for f in sanity_findings if f.name == name and f.level == level]
  assert matching, levels(sanity_findings)
  assert fix in matching[0].fix


def test_batches_that_devices_cannot_share():
  sanity_findings = sanity.findings_of(settings(), sanity.Scale(1, None))
  assert {f.name for f in sanity_findings if f.level == 'skip'} == {'length'}
  assert not {'teacher', 'learning rate'} & {f.name for f in sanity_findings}
  sanity_findings = sanity.groups(settings(), sanity.Scale(8, None))
  assert levels(sanity_findings) == {'batch on devices': 'error'}
  assert '512' in sanity_findings[0].text  # the batch that would work


@pytest.mark.parametrize('changes, name, level', [
    (dict(crops__local_px=16), 'crops', 'warn'),
    (dict(crops__local_px=48), 'crops', 'warn'),
    (dict(crops__num_local=0), 'crops', 'ok'),
    (dict(masks__probability=0.0), 'masks', 'error'),
    (dict(masks__ratio=(0.0, 0.5)), 'masks', 'warn'),
    (dict(ibot__loss_weight=0.0, masks__probability=0.0), 'masks', None),
    (dict(augment__blur_sigma=(0.1, 2.0)), 'blur', 'warn'),
])
def test_views_that_show_nothing(changes, name, level):
  view_findings = {
      f.name: f for f in views.settings_findings(settings(**changes))}
  assert (view_findings[name].level if name in view_findings else None) == level
  assert all(f.fix for f in view_findings.values() if f.level != 'ok')


def write(folder, name, side, cut=None):
  data = io.BytesIO()
  Image.effect_noise((side, 2 * side), 50).save(data, 'PNG')
  (folder / name).write_bytes(data.getvalue()[:cut])


def test_a_look_at_the_images(tmp_path):
  for i in range(20):
    write(tmp_path, f'{i:02}.png', 64, cut=100 if i in (3, 4) else None)
  sample = inspection.sample(sources.open_source(f'folder:{tmp_path}'), 10)
  assert sample.num_images == 20 and sample.num_seen == 10
  assert sample.short_px == 64
  assert [name for name, _ in sample.problems] == ['04.png']
  s = settings()
  assert levels(views.sample_findings(s, sample)) == {'readable': 'warn'}
  many = inspection.Sample('x', 64, sample.sides, [('a', 'truncated')] * 6)
  assert levels(views.unreadable(s, many)) == {'readable': 'error'}
  # Of all there are, one is no chance.
  every = inspection.Sample('x', 10, sample.sides, [('a', 'truncated')])
  assert levels(views.unreadable(s, every)) == {'readable': 'error'}
  tiny = inspection.Sample('x', 64, sample.sides // 4, [])
  for local_px, times in ((16, '5.3'), (40, '8.8')):
    # 48 pixels from √0.32 of 16; 40 from √0.08 of 16.
    image_findings = views.sample_findings(
        settings(crops__local_px=local_px), tiny)
    assert levels(image_findings) == {'image sizes': 'warn'}
    assert f'enlarged {times} times' in image_findings[1].text


@pytest.mark.parametrize('config', [
    f'{name}:smoke' for name in catalog.configs() if name != 'dinotxt'] + [
        'convnext_distill:tiny', 'convnext_distill:tiny,smoke'])
def test_crops_of_every_config_are_looked_at(config):
  s = settings_lib.read(catalog.load(config))
  for student in (s, *s.students.values()):
    view_findings = {f.name: f for f in views.settings_findings(student)}
    assert f' of {student.model.token_px} pixels' in view_findings['crops'].text


def test_folders_that_are_no_classes_and_a_knn_of_few_images(tmp_path):
  for split in ('train', 'val'):
    for name in ('cat', 'dog'):
      (tmp_path / split / name).mkdir(parents=True)
      write(tmp_path / split / name, '1.png', 64)
  s = settings(data__train=f'folder:{tmp_path}',
               data__validation=f'folder:{tmp_path}/val')
  data_findings = report._open(s, 2).source_findings
  assert any(f.fix.startswith('set data.train=') for f in data_findings)
  s = settings(data__train=f'folder:{tmp_path}/train',
               data__validation=f'folder:{tmp_path}/val')
  data_findings = report._open(s, 2).source_findings
  assert '2 images: each is 50 % of k-NN' in [
      f.text for f in data_findings if f.name == 'data.validation']
  assert not any(f.fix.startswith('set data.train=') for f in data_findings)


def test_more_images_in_a_batch_than_there_are():
  assert levels(supply.epochs(settings(), 100, 63)) == {'epochs': 'warn'}
  epoch_findings = supply.epochs(settings(), 100, 3200)
  assert 'seen 2 times' in epoch_findings[0].text


def test_workers_need_cores_and_shared_memory():
  s = settings(data__num_workers=4)
  assert levels(supply.workers(s, 4, 1.0, 64)) == {}
  assert levels(supply.workers(s, 2, None, 64)) == {'workers': 'warn'}
  # (64 + 2·4) rows of 3·(2·48² + 4·24²) bytes.
  assert levels(supply.workers(s, 4, 1.3e-3, 64)) == {'shared memory': 'warn'}
  assert levels(supply.workers(s, 4, 1.5e-3, 64)) == {}
  assert levels(supply.workers(settings(), 1, 0.0, 64)) == {}


def test_what_fits():
  assert [supply.memory(need, 10.0, 'it takes').level
          for need in (8.9, 9.5, 10.1)] == ['ok', 'warn', 'error']
  assert levels(supply.space(2.0, 6.1, keep=2)) == {}
  assert levels(supply.space(2.0, 5.9, keep=2)) == {'checkpoints': 'error'}
  assert levels(supply.space(2.0, 2.1, keep=2, have=2)) == {}
  assert supply.space(2.0, None, keep=2) == []


def test_which_of_step_and_input_limits():
  s = settings(data__train='folder:images')
  balance = lambda *rates, **facts: supply.balance(
      *rates, s, **dict(cores=8, platform='gpu') | facts)
  assert balance(1000, 500).level == 'ok'
  slow = balance(100, 400)
  assert slow.level == 'warn' and 'idle 75% of the time' in slow.text
  assert 'data.num_workers to 5' in slow.fix  # 1.2 · 400 / 100
  assert 'dinojax convert records' in slow.fix
  assert 'cores instead' not in slow.fix
  few = balance(100, 400, cores=4).fix
  assert 'data.num_workers to 4' in few and '5 cores instead of 4' in few
  assert 'num_workers' not in balance(100, 400, cores=1).fix
  assert balance(500, 500).level == 'warn'
  # On a CPU the two take turns: 1 / (1/300 + 1/100).
  shared = balance(300, 100, platform='cpu')
  assert shared.level == 'ok' and '75 images/s' in shared.text
  assert balance(100, 100, platform='cpu').level == 'warn'


def test_a_device_that_is_slower_than_its_kind():
  assert supply.products(7e14, 'bfloat16', 9.9e14).level == 'ok'
  assert supply.products(4e14, 'bfloat16', 9.9e14).level == 'warn'
  assert supply.products(1e9, 'float32', None).level == 'ok'


def test_the_start_of_the_pipeline_is_not_counted():
  # Three batches come at once, the others one a second.
  assert throughput.rate(
      [9.0, 9.0, 9.0, 9.0, 10.0, 11.0], 4) == pytest.approx(4)
  assert throughput.rate([0.0, 2.0], 4) == pytest.approx(2)


@pytest.mark.parametrize('need, level', [
    (7.9, 'ok'), (8.1, 'warn'), (11.9, 'warn'), (12.1, 'error')])
def test_memory_before_it_is_compiled(need, level):
  finding = supply.estimated(
      memory.Estimate(1.0, 0.5, 0.5, need - 2), 10.0, 'set less')
  assert finding.level == level and f'{need:.3g} GiB' in finding.text
  assert (finding.fix == 'set less') == (level != 'ok')


def test_time_that_nobody_waits_for():
  assert supply.time(3600.0, 'text', 'cpu').level == 'ok'
  assert supply.time(26 * 3600.0, '1d02h', 'cpu').level == 'warn'
  assert supply.time(26 * 3600.0, '1d02h', 'gpu').level == 'ok'


def test_the_memory_of_the_state_is_split_over_devices():
  sizes = {}
  for fsdp in (1, 4):
    mesh = mesh_lib.make(-1, fsdp)
    with mesh_lib.activate(mesh):
      method = method_lib.build(settings(), mesh, 1)
      state = state_lib.abstract(method, mesh)
      sizes[fsdp] = memory.gib(state), throughput.state_gib(method, mesh)
  assert sizes[1][0] == pytest.approx(sizes[1][1], rel=1e-5)
  assert sizes[4][0] < 0.3 * sizes[1][0] and sizes[4][1] == sizes[1][1]


@pytest.mark.parametrize('facts, fix', [
    (dict(nvidia=True), 'pip install -e ".[cuda13]"'),
    (dict(nvidia=True, plugins=['jax-cuda13-plugin']), 'JAX_PLATFORMS=cuda'),
    (dict(nvidia=True, forced='cpu'), 'unset JAX_PLATFORMS'),
    (dict(tpu=True, plugins=['jax-cuda13-plugin']), '".[tpu]"'),
    (dict(nvidia=True, seen=['gpu']), None),
    (dict(plugins=['libtpu']), None)])
def test_accelerators_that_are_not_used(facts, fix):
  nothing = dict(seen=['cpu'], forced='', nvidia=False, tpu=False, plugins=[])
  machine_findings = machine.accelerators(**nothing | facts)
  assert [f.level for f in machine_findings] == ['warn'] * (fix is not None)
  assert not machine_findings or fix in machine_findings[0].fix


def test_cards_without_bfloat16():
  assert levels(machine.capability('Tesla T4', '7.5')) == {'bfloat16': 'warn'}
  assert machine.capability('H200', '9.0') == []
  assert machine.capability('TPU v5e', None) == []


@pytest.mark.parametrize('tpu, nvidia, plugins, chosen', [
    (False, False, ['jaxlib'], 'cpu'), (True, False, ['libtpu'], ''),
    (False, True, ['jax-cuda13-plugin'], 'cuda,cpu'),
    (False, True, ['libtpu'], 'cpu')])
def test_tpus_are_not_looked_for_where_there_are_none(
    tpu, nvidia, plugins, chosen):
  assert platforms.without_tpus(
      tpu=tpu, nvidia=nvidia, plugins=plugins) == chosen


def test_versions_against_requirements():
  package_findings = versions.packages(
      ['jax<0.12,>=0.10.2', 'flax==0.12.8', 'grain==0.2.18', 'einops==0.8.2',
       'torch==2.13.0; extra == "torch"'],
      {'jax': '0.13.0', 'flax': '0.12.8', 'einops': '0.8.2'})
  assert levels(package_findings) == {'jax': 'warn', 'grain': 'error'}
  assert 'pip install "grain==0.2.18"' in [f.fix for f in package_findings]


def test_requirements_of_another_python_are_left_out():
  package_findings = versions.packages(
      ['jax==0.1; python_version < "3"', 'jax==0.2; python_version > "3"'],
      {'jax': '0.1'})
  assert [f.text for f in package_findings] == ['0.1, tested with ==0.2']
  assert levels(versions.python('3.99.0', ['3.11', '3.12'])) == {
      'Python': 'warn'}
  assert versions.python('3.12.1', ['3.11', '3.12']) == []


def test_it_starts_where_the_rest_cannot_be_imported(tmp_path):
  (tmp_path / 'jax.py').write_text('raise AttributeError("no HiPrimitive")')
  done = subprocess.run(
      [sys.executable, '-m', 'dinojax', 'doctor'], cwd=ROOT, text=True,
      capture_output=True, env=os.environ | {'PYTHONPATH': str(tmp_path)})
  assert done.returncode == 1 and not done.stderr
  assert 'HiPrimitive' in done.stdout and '  flax ' in done.stdout
  assert done.stdout.splitlines()[-1].startswith('1 error')


def test_other_programs_spoil_what_is_timed():
  assert machine.processors(4, 8.0, 1.9).level == 'ok'
  assert machine.processors(4, 8.0, 2.1).level == 'warn'
  assert 1 <= hardware.num_cores() <= os.cpu_count()


def test_rows_are_aligned_and_nothing_is_cut():
  path = '/a/very/long/path/' + 100 * 'x'
  text = findings.table('part', [
      findings.ok('short', 'fine'), findings.warn('long name', path, 'a fix')])
  title, first, second, *rest = text.splitlines()
  assert first.index('fine') == second.rindex('  ') + 2 or path in second
  assert path in text and rest[-1].strip() == 'fix: a fix'
  assert first.index('fine') == rest[-1].index('fix:')
  assert findings.summary([findings.error('a', 'b')]) == '1 error, 0 warnings'

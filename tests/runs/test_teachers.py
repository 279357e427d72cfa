"""Teachers that a config names, and students that come and go."""

import functools
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest

from dinojax.configs import demo
from dinojax.core import errors
from dinojax.core import tree
from dinojax.engine import checkpoint
from dinojax.parallel import mesh as mesh_lib
from dinojax.runs import assemble
from dinojax.runs import initial_weights
from dinojax.runs import models as models_lib
from dinojax.runs import patch_picture
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib


def config(**changes):
  """The smoke demo without k-NN and local crops; section__key=value."""
  c = demo.get_config('smoke').unlock()
  c.train.group_images = 1
  c.train.total_steps = 4.0
  c.model.depth = 1
  c.data.validation = None
  c.data.value_range = (0.0, 4095.0)  # the patterns have 8 bits
  c.crops.num_local = 0  # less to compile
  c.koleo.loss_weight = c.ibot.loss_weight = 0.0
  c.checkpoint.every_steps = 2.0
  c.log.tensorboard = False
  for key, value in changes.items():
    section, _, name = key.partition('__')
    if name:
      c[section][name] = value
    else:
      c[section] = value
  return c


@pytest.fixture(scope='module', autouse=True)
def one_device():
  """Programs of one device compile sooner."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(mesh_lib, 'make', functools.partial(
        mesh_lib.make, devices=jax.devices()[:1]))
    yield


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished run."""
  folder = str(tmp_path_factory.mktemp('run'))
  assemble.train(config(), folder)
  return folder


def part(workdir, name='', which='ema'):
  path = f'{workdir}/{name}' if name else str(workdir)
  read = models_lib.read(path, part=which)
  return {'backbone': read.params} | {
      key: head.params for key, head in read.heads.items()}


def go_back(workdir):
  """As it was after step 2 of 4: what tells of later steps goes too."""
  shutil.rmtree(workdir / 'checkpoints' / '4')
  for name in ('metrics.jsonl', 'results.json'):
    (workdir / name).unlink(missing_ok=True)


def entry(state, name):
  """An entry of a state, or of its only student."""
  return state[name] if name in state else state['students']['student'][name]


def gap(a, b):
  return max(np.abs(x - y).max() for x, y in zip(
      jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def begun(**changes):
  """EMA and student before the first step."""
  settings = settings_lib.read(config(**changes))
  mesh = mesh_lib.make()
  with mesh_lib.activate(mesh):
    method = method_lib.build(settings, mesh, epoch_steps=2)
    state = initial_weights.InitialWeights(method, mesh).begin(
        state_lib.create(method, mesh, 0))
  student = state['students']['student']
  return student['ema'], student['student']


@pytest.mark.parametrize('which, want', [
    # 'both' reads the one and the other.
    pytest.param('ema', ('ema', 'ema'), marks=pytest.mark.slow),
    pytest.param('student', ('student', 'student'), marks=pytest.mark.slow),
    ('both', ('ema', 'student'))])
def test_student_and_ema_start_from_their_own(run, which, want):
  assert gap(part(run), part(run, which='student')) > 0
  got = begun(init__source=run, init__part=which)
  for a, b in zip(got, want, strict=True):
    assert gap(a, part(run, which=b)) == 0


@pytest.mark.slow  # make test has the loss in the goldens
@pytest.mark.parametrize('steps', [(2,), (2, 3)],
                         ids=['boundary', 'and-behind-it'])
def test_a_gram_teacher_comes_from_a_run_and_stays(run, tmp_path, capsys,
                                                   steps):
  anchored = dict(gram__loss_weight=1.0, gram__source=run,
                  gram__start_steps=2.0, crops__gram_px=64)
  state = assemble.train(config(**anchored), str(tmp_path)).state
  assert 'Gram anchoring begins' in capsys.readouterr().err
  assert gap(state['gram'], part(run)['backbone']) == 0
  # A start at the boundary, and one behind it, continue.
  for step in steps:
    copied = tmp_path.parent / f'from{len(steps)}-{step}'
    shutil.copytree(tmp_path, copied)
    go_back(copied)
    if step == 2:
      assert checkpoint.Checkpoints(copied).latest() == 2
    again = assemble.train(config(**anchored), str(copied)).state
    for name in ('student', 'gram', 'opt'):
      assert gap(entry(state, name), entry(again, name)) == 0


@pytest.mark.slow
def test_a_source_that_goes_on_is_read_where_it_was(run, tmp_path, capsys):
  """A distilled run continues with the teacher that it began with."""
  source = tmp_path / 'source'
  shutil.copytree(run, source)
  go_back(source)
  distilled = dict(distillation__source=str(source))
  whole = assemble.train(config(**distilled), str(tmp_path / 'a')).state
  assert 'teacher: backbone' in capsys.readouterr().out
  assert gap(whole['frozen']['teacher'], part(f'{run}@2')) == 0
  saved = {path.name for path in (
      tmp_path / 'a' / 'checkpoints' / '4').iterdir() if path.is_dir()}
  assert 'ema.student' in saved and not any(
      'teacher' in name or 'frozen' in name for name in saved)
  shutil.copytree(run + '/checkpoints/4', source / 'checkpoints' / '4')
  go_back(tmp_path / 'a')
  again = assemble.train(config(**distilled), str(tmp_path / 'a')).state
  assert gap(part(source), part(f'{run}@2')) > 0
  for name in ('frozen', 'student'):
    assert gap(entry(whole, name), entry(again, name)) == 0


VIT = dict(
    family='vit', embed_dim=16, depth=1, num_heads=2, patch_px=8,
    position='rope', dtype='auto', packing='auto', attention='auto')


def several(run, *names):
  c = config(distillation__source=run)
  c.students = {name: dict(model=VIT) for name in names}
  return c


@pytest.mark.slow
def test_students_come_and_go(run, tmp_path, capsys):
  assemble.train(several(run, 'one', 'two'), str(tmp_path))
  before = part(tmp_path, 'one')
  assert set(before) == {'backbone', 'dino_head'}
  two = part(tmp_path, 'two')
  assert two['backbone']['patch_embed']['kernel'].shape == (8, 8, 3, 16)
  go_back(tmp_path)  # two steps are left
  second = several(run, 'late', 'one')
  state = assemble.train(second, str(tmp_path)).state
  assert gap(before, part(tmp_path, 'one')) == 0  # whoever else learns
  output = capsys.readouterr().out
  assert 'students late begin now' in output
  assert 'students two are no longer trained' in output
  assert int(state['students']['late']['begun']) == 2
  assert int(state['students']['late']['opt']['count']) == 2
  assert int(state['students']['one']['opt']['count']) == 4
  with pytest.raises(errors.UserError, match='no student .two.*late'):
    part(tmp_path, 'two')
  with pytest.raises(errors.UserError, match='ended at step 4.*students new'):
    assemble.train(several(run, 'late', 'one', 'new'), str(tmp_path))
  with pytest.raises(errors.UserError, match='none of the students'):
    assemble.train(several(run, 'other'), str(tmp_path))
  # What a student is cannot change on the way.
  second.students.one.koleo = dict(topk=2)
  with pytest.raises(errors.UserError,
                     match='students.one.koleo.topk: 1 → 2'):
    assemble.train(second, str(tmp_path))


@pytest.mark.parametrize('changes, parts', [
    (dict(gram__loss_weight=1.0), ('gram.source', 'gram.start_steps')),
    (dict(gram__loss_weight=1.0, gram__source='/nowhere'),
     ('gram.source=/nowhere',)),
    (dict(distillation__source='/nowhere'),
     ('distillation.source=/nowhere',)),
    (dict(distillation__source='RUN', augment__std=(0.2, 0.2, 0.2)),
     ('augment.std=(0.2, 0.2, 0.2)', '(0.229, 0.224, 0.225)')),
    (dict(distillation__source='RUN', dino__num_prototypes=128),
     ('dino.num_prototypes=128', 'has 64')),
    (dict(distillation__source='RUN', distillation__model='dinov2_vits14'),
     ('is not what distillation.model', 'embed_dim 384, the source has 32')),
    (dict(gram__loss_weight=1.0, gram__source='RUN', model__embed_dim=64),
     ('gram.source', 'model.embed_dim=64, the source has 32')),
])
def test_wrong_teachers_answer_before_work_starts(run, tmp_path, changes,
                                                  parts):
  changes = {key: run if value == 'RUN' else value
             for key, value in changes.items()}
  with pytest.raises(errors.UserError) as caught:
    assemble.train(config(**changes), str(tmp_path))
  for text in parts:
    assert text in str(caught.value)
  # The workdir is not claimed by a config that could not run.
  assert not (tmp_path / models_lib.CONFIG).exists()


def test_a_reader_leaves_a_run_that_writes_alone(run):
  writing = pathlib.Path(run) / 'checkpoints' / '6.orbax-checkpoint-tmp'
  writing.mkdir()
  part(run)
  assert writing.exists()
  checkpoint.Checkpoints(run, writes=True).close()
  for _ in range(100):  # orbax removes it in a thread of its own
    if not writing.exists():
      return
    time.sleep(0.1)
  raise AssertionError('what was left half-written is still there')


def test_a_file_in_the_workdir_is_not_a_student(run):
  (pathlib.Path(run) / 'notes').mkdir()
  assert models_lib.find_run(f'{run}/notes') is None
  assert models_lib.find_run(f'{run}/b').student == 'b'


def test_an_earlier_checkpoint_has_a_name(run):
  assert gap(part(f'{run}@4'), part(run)) == 0
  assert gap(part(f'{run}@2'), part(run)) > 0
  with pytest.raises(errors.UserError, match='no checkpoint of step 3.*2, 4'):
    part(f'{run}@3')


def test_runs_are_drawn_beside_each_other(run):
  drawn = patch_picture.draw([run, f'{run}@2'])
  # Without --out a student's or a step's goes beside the folder of the run.
  assert patch_picture.default_out(run) == f'{run}/pca.png'
  assert patch_picture.default_out(f'{run}@2') == f'{run}@2_pca.png'
  sheet = np.asarray(drawn.convert('RGB'), int)
  assert sheet.shape[1] == 5 * 224 + 6 * 8  # image, and two of each
  column = lambda i: sheet[30:, 8 + 232 * i:232 * (i + 1)]
  assert column(2).std() > 10 and (column(2) != column(4)).any()


def test_greys_are_read_as_in_training(run):
  assert models_lib.read(run).value_range == (0, 4095)


def test_a_teacher_keeps_its_precision(run):
  """Reading a run gives the float32 weights of its checkpoint."""
  assert {x.dtype for x in jax.tree.leaves(part(run))} == {
      np.dtype('float32')}
  assert len(tree.names(part(run))) > 10

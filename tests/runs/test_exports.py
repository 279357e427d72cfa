"""What a run leaves for others when it ends, and the checkpoint it keeps."""

import json
import types

from etils import epath
import numpy as np
import pytest

import dinojax
from dinojax.configs import demo
from dinojax.core import errors
from dinojax.engine import checkpoint
from dinojax.engine import loop
from dinojax.engine import report
from dinojax.interop import files
from dinojax.interop import graphs
from dinojax.interop import store
from dinojax.runs import assemble
from dinojax.runs import ending
from dinojax.runs import exports
from dinojax.runs import models
from dinojax.runs.report import page
from dinojax.train import settings as settings_lib
from tests.reliability import test_checkpoints
from tests.runs import finished
from tests.runs import test_run

run = pytest.fixture(finished.run)


def settings_of(**changes):
  config = demo.get_config('smoke')
  for name, value in changes.items():
    section, key = name.split('__')
    config[section][key] = value
  return settings_lib.read(config)


def test_the_export_is_the_ema_of_the_run(run):
  folder, _ = run
  ours, theirs = (dinojax.load(path) for path in (folder, folder / 'export'))
  images = ours.preprocess([np.random.default_rng(0).integers(
      0, 256, (40, 40, 3), dtype=np.uint8)], resize_px=32, crop_px=32)
  np.testing.assert_array_equal(ours(images).patches, theirs(images).patches)
  heads = models.read(folder / 'export').heads
  assert heads.keys() == {'dino_head', 'ibot_head'}
  tokens = files.read(str(folder / 'export/hf/model.safetensors'))
  np.testing.assert_array_equal(
      tokens['embeddings.cls_token'].ravel(),
      np.asarray(ours.params['cls_token']).ravel())
  assert (folder / 'export/timm/model.safetensors').exists()


def test_the_card_says_what_it_was_made_from(run):
  folder, _ = run
  card = (folder / 'export/README.md').read_text()
  knn = json.loads((folder / 'results.json').read_text())['knn_top1_pct']
  for text in ('license: unknown', '# plankton', '6 steps of 8 images',
               'losses: dino, ibot, koleo', '`patterns:train`, 128 images',
               f'| trained | {knn["trained"]:.2f} |',
               f'| raw pixels | {knn["raw_pixels"]:.2f} |'):
    assert text in card, text


def test_the_best_checkpoint_is_kept_besides_the_last(run):
  folder, _ = run
  scores = {row['step']: row['knn/trained'] for row in test_run.rows(folder)
            if 'knn/trained' in row}
  assert len(scores) == 6
  best = min(step for step in scores if scores[step] == max(scores.values()))
  assert checkpoint.Checkpoints(folder).steps() == sorted({best, 6})
  assert best < 6  # else nothing was tested


def test_a_best_step_outlives_all_later_ones(tmp_path):
  saved = checkpoint.Checkpoints(tmp_path, keep=1, writes=True)
  for step in (1, 2, 3, 4):
    saved.save(step, test_checkpoints.split(step))
    if step == 2:
      saved.best = 2
  saved.wait()
  assert saved.steps() == [2, 4]


def test_a_step_that_is_not_saved_is_not_the_best():
  """After gradients that are not finite a save is left out."""
  class Saved:
    best = None
    def steps(self):
      return [2]
    def save(self, step, *_):
      self.best_at_save = (step, self.best)

  session = loop._Session.__new__(loop._Session)
  session.saved = Saved()
  session.job = types.SimpleNamespace(
      score=lambda numbers: numbers['a'], is_lost=lambda: False,
      trainable=types.SimpleNamespace(named='heads'), info={},
      current=types.SimpleNamespace(split=lambda state: {}))
  session.clock, session.scores = 0.0, {2: {'a': 1.0}}
  session.evaluation, session.measured = {'a': 9.0}, 4  # and 4 is not saved
  session.save(6, {'heads': {}})
  assert session.saved.best is None and 4 not in session.scores
  session.evaluation, session.measured = {'a': 5.0}, 8
  session.save(8, {'heads': {}})
  assert session.saved.best_at_save == (8, 8)


@pytest.mark.parametrize('scores, expected', [
    ({}, None), ({2: {'a': 1.0}}, 2), ({2: {'a': 1.0}, 4: {'a': 3.0},
                                        6: {'a': 3.0}}, 4)])
def test_the_best_step_is_the_first_with_the_best_score(scores, expected):
  assert report.best(scores, lambda numbers: numbers['a']) == expected
  assert report.best(scores, None) is None


def test_a_resumed_run_knows_its_best(tmp_path):
  rows = [{'step': 1, 'loss': 3.0}, *(
      {'step': step, 'knn/trained': score, 'time/evaluation_s': 1.0}
      for step, score in ((2, 70.0), (4, 60.0)))]
  (tmp_path / 'metrics.jsonl').write_text(
      ''.join(json.dumps(row) + '\n' for row in rows))
  scores = report.evaluations(epath.Path(tmp_path))
  assert scores == {2: {'knn/trained': 70.0}, 4: {'knn/trained': 60.0}}
  assert report.best(scores, lambda numbers: numbers['knn/trained']) == 2


@pytest.mark.parametrize('changes, message', [
    ({'export__formats': 'hf,torch'}, "'torch' is not known: use any of meta"),
    ({'export__formats': 'hf', 'export__weights': False},
     'only with export.weights=True'),
    ({'export__formats': 'hf', 'model__untie_cls_and_patch_norms': True},
     'export.formats=hf: untie_cls_and_patch_norms=True is not an option')])
def test_what_cannot_be_written_is_said_before_training(changes, message):
  with pytest.raises(errors.UserError, match=message):
    exports.check(settings_of(**changes))


def test_a_format_whose_library_is_missing_is_said_before_training(monkeypatch):
  monkeypatch.setattr(graphs.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match=(
      r'export.formats=onnx: onnx needs jax2onnx and onnx: pip install')):
    exports.check(settings_of(export__formats='onnx'))
  exports.check(settings_of(export__formats='stablehlo'))


@pytest.mark.parametrize('changes, message', [
    ({'data__validation': None}, 'needs k-NN: set data.validation'),
    ({'knn__every_steps': 3.0}, 'every 3 steps, and checkpoints are saved '
     'every 4: set')])
def test_a_best_checkpoint_needs_numbers_where_it_is_saved(
    changes, message, tmp_path):
  config = demo.get_config('smoke')
  config.checkpoint.keep_best = True
  config.train.batch_size = 32
  for name, value in changes.items():
    section, key = name.split('__')
    config[section][key] = value
  with pytest.raises(errors.UserError, match=message):
    assemble.train(config, str(tmp_path))


@pytest.mark.parametrize('error', [
    OSError(28, 'No space left on device'), RuntimeError('out of memory')])
def test_an_export_that_fails_is_a_warning(
    error, run, tmp_path, monkeypatch, capsys):
  """Weeks of training do not end in an error of their last second."""
  folder, _ = run
  def broken(*_):
    raise error
  monkeypatch.setattr(store, 'save', broken)
  result = loop.Result({}, 6, True, False, 60.0, {'knn/trained': 50.0})
  place = epath.Path(folder)
  exports.write(place, settings_of(), result,
                exports.read(place, settings_of()))
  message = capsys.readouterr().err
  assert str(error) in message and 'dinojax convert import' in message
  # The report needs them, too.
  monkeypatch.setattr(exports, 'read', broken)
  monkeypatch.setattr(page, 'write', broken)
  place = epath.Path(tmp_path)
  ending.end(place, settings_of(report__at_end=True), result)
  message = capsys.readouterr().err
  assert 'no weights are written' in message and 'no report: ' in message
  assert json.loads((tmp_path / 'results.json').read_text())['steps'] == 6

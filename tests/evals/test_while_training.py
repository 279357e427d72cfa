"""Protocols within a run: their numbers, and what a stop leaves of them."""

import json
import os
import signal
import types

import jax
import pytest

from dinojax.configs import common
from dinojax.configs import demo
from dinojax.core import errors
from dinojax.evals import learned
from dinojax.evals import training
from dinojax.evals import while_training
from dinojax.models import vit
from dinojax.parallel import hardware
from dinojax.parallel import mesh as mesh_lib
from dinojax.planning import memory
from dinojax.runs import assemble
from dinojax.runs import evaluation
from dinojax.train import settings as settings_lib
from tests.interop import cases


def config():
  c = demo.get_config('smoke')
  c.train.group_images, c.crops.num_local = 1, 0  # eight devices
  c.knn.max_train_images = c.knn.max_validation_images = 1000
  c.knn.k = 5
  common.measure(c, 'rankme')
  common.measure(c, 'knn', k=(5,))
  common.measure(c, 'linear', cached=True, layers=(1,), averages=(True,),
                 min_steps=30, epochs=1.0, learning_rates=(0.01, 0.1))
  return c


def rows(folder):
  return {row['step']: row for row in map(
      json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
          if 'time/evaluation_s' in row}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole')
  assemble.train(config(), str(folder))
  return folder


@pytest.mark.slow  # it adds a run, and the command after it
def test_numbers_are_those_of_the_command(whole):
  """At the end they are what `dinojax evaluate` gives for the checkpoint."""
  got = rows(whole)
  assert set(got) == {4, 6}
  for row in got.values():
    assert {'rankme/effective rank', 'knn/top-1, k 5', 'linear/top-1',
            'linear/mean per class', 'knn/trained'} <= row.keys()
    assert row['knn/trained'] == row['knn/top-1, k 5']
  evaluation.evaluate(evaluation.Request(
      [str(whole)], ['rankme', 'knn', 'linear'], cache=True,
      train='patterns:train', test=['patterns:validation'],
      config={'knn': {'k': (5,)}, 'linear': {
          'layers': (1,), 'averages': (True,), 'min_steps': 30, 'epochs': 1.0,
          'learning_rates': (0.01, 0.1)}}, out=str(whole / 'e')))
  for line in (whole / 'e/results.jsonl').read_text().splitlines():
    line = json.loads(line)
    name = f'{line["protocol"]}/{line["metric"]}'
    if line['protocol'] != 'rankme':  # it reads fewer images within the run
      assert got[6][name] == pytest.approx(line['value'], abs=1e-3), name


@pytest.mark.slow  # it adds a stop within an evaluation
def test_a_stop_within_drops_it_and_the_next_start_repeats_it(
    whole, tmp_path, monkeypatch):
  nested, asked = training._nested, []

  def stops(job, inner, *args):
    if inner.plan:
      return nested(job, inner, *args)
    if not asked:
      os.kill(os.getpid(), signal.SIGTERM)
    asked.append(inner.stop())
    return nested(job, inner, *args)

  monkeypatch.setattr(training, '_nested', stops)
  result = assemble.train(config(), str(tmp_path))
  assert not result.finished and asked == [True] and not rows(tmp_path)
  assert 'step 4 is evaluated by the next start' in (
      tmp_path / 'events.jsonl').read_text()
  assert assemble.train(config(), str(tmp_path)).finished
  strip = lambda found: {step: {
      k: v for k, v in row.items() if not k.startswith('time/')}
                         for step, row in found.items()}
  assert strip(rows(tmp_path)) == strip(rows(whole))


@pytest.mark.parametrize('evals, message', [
    ({'kn': {}}, r'evals.kn is no protocol: did you mean knn'),
    ({'knn': {'ks': (5,)}}, 'evals.knn.ks is not a key'),
    ({'knn': None}, 'evals.knn=None is not a section')])
def test_mistakes_are_sentences(evals, message):
  with pytest.raises(errors.UserError, match=message):
    while_training.read(evals)


def test_a_time_that_no_evaluation_falls_on_is_refused(tmp_path):
  c = config()
  common.set_duration(c.evals.knn, 'every', steps=3)
  with pytest.raises(errors.UserError, match=(
      r'evals.knn.every is 3 steps, and the run evaluates every 4')):
    assemble.train(c, str(tmp_path))


def test_heads_that_do_not_fit_beside_the_run_are_refused(
    tmp_path, monkeypatch, capsys):
  """Before the first step: their shapes tell, from features or from images."""
  c = config()
  c.evals.linear.learning_rates = (1e-3,) * 20_000
  monkeypatch.setattr(hardware, 'available_gib', lambda _: 0.03)
  with pytest.raises(errors.UserError, match=(
      r'evals.linear is estimated to take .* does not fit; give it fewer')):
    assemble.train(c, str(tmp_path))
  assert not (tmp_path / 'checkpoints').exists()


def test_heads_that_get_images_are_planned_too(tmp_path, monkeypatch):
  c = config()
  c.evals.linear.cached, seen = False, []

  def look(fit, name, state_gib, mesh, *_):
    seen.append((name, fit.takes_images))
    need = memory.estimate(fit, mesh)
    assert need.state > memory.gib(fit.model.params) and state_gib > need.state
    raise errors.UserError('planned')

  monkeypatch.setattr(memory, 'check_evaluation', look)
  with pytest.raises(errors.UserError, match='planned'):
    assemble.train(c, str(tmp_path))
  assert seen == [('evals.linear', True)]


@pytest.mark.slow  # two students to compile
def test_students_have_programs_of_their_own(monkeypatch):
  """Images have the same shape for a narrow network and for a wide one."""
  c = demo.get_config('smoke')
  common.measure(c, 'linear', layers=(1,), averages=(True,), min_steps=6,
                 epochs=0.01, batch_size=32, learning_rates=(1.0,))
  c.knn.max_train_images = c.knn.max_validation_images = 1000
  settings, mesh = settings_lib.read(c), mesh_lib.make(
      devices=jax.devices()[:1])
  weights = {name: cases.weights(vit.ViTConfig(
      width, depth, 2, 8, image_px=settings.knn.crop_px))
             for name, width, depth in (('narrow', 32, 2), ('wide', 48, 4))}

  made, programs = [], training._programs
  monkeypatch.setattr(learned, 'make', lambda *_: None)
  monkeypatch.setattr(training, '_programs', lambda fit: (
      made.append(fit.model.config), programs(fit))[1])
  each = {name: types.SimpleNamespace(
      settings=settings, student=types.SimpleNamespace(
          config=types.SimpleNamespace(backbone=weight.config)))
          for name, weight in weights.items()}
  evaluate = while_training.make(
      types.SimpleNamespace(settings=settings, each=each), mesh,
      lambda duration: None, 1)
  emas = {name: {'backbone': weight.params}
          for name, weight in weights.items()}
  with mesh_lib.activate(mesh):
    first, again = (evaluate(1, emas, lambda: False) for _ in range(2))
  assert first == again and set(first) >= {
      'narrow/linear/top-1', 'wide/linear/top-1'}
  assert made == [weight.config for weight in weights.values()], (
      'each its own, once')

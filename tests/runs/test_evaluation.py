"""`dinojax evaluate`: numbers of a run, once each, in one table."""

import csv
import json
import os
import random
import signal
import socket
import time

from etils import epath
import numpy as np
from PIL import Image
import pytest

import dinojax
from dinojax import commands
from dinojax.core import errors
from dinojax.data import sources
from dinojax.evals import knn as knn_functions
from dinojax.evals import linear_probe
from dinojax.evals import protocol
from dinojax.evals import registry
from dinojax.runs import evaluation
from dinojax.runs import models
from dinojax.runs import scores
from dinojax.runs.report import page
from tests import forked
from tests.runs import finished

CACHE = f'--compile_cache={forked.CACHE}'


def rows(out):
  return [json.loads(line) for line in
          (out / 'results.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def run():
  return finished.run()[0]


@pytest.fixture(scope='module')
def out(run, tmp_path_factory):
  """Results of some protocols on the run's own images."""
  folder = tmp_path_factory.mktemp('evaluation')
  code = commands.run('evaluate', [
      f'--model={run}', '--protocols=knn,linear,retrieval,rankme',
      f'--out={folder}', CACHE, '--config.linear.layers=(1,)',
      '--config.linear.min_steps=20', '--config.linear.epochs=0.1'])
  assert code == 0
  return folder


@pytest.mark.slow  # it adds heads of every kind, and parts of the backbone
def test_all_protocols_of_labelled_images(run, tmp_path):
  assert commands.run('evaluate', [
      f'--model={run}', '--suite=all', f'--out={tmp_path}', CACHE,
      '--config.linear.layers=(1,2)', '--config.linear.min_steps=40',
      '--config.finetune.min_steps=20', '--config.finetune.epochs=0.1']) == 0
  data = registry.read({'data': {'train': 'a', 'test': ('b',)}})
  assert {row['protocol'] for row in rows(tmp_path)} == {
      name for name in registry.PROTOCOLS if not registry.missing(name, data)}


def accuracy_by_hand(run, k):
  """k-NN of the run on its own images, by numpy alone."""
  model, features = dinojax.load(str(run)), []
  sizes = models.read_workdir(str(run)).knn
  for name in ('patterns:train', 'patterns:validation'):
    source = sources.open_source(name)
    records = [source[i] for i in range(len(source))]
    cls = np.asarray(model(model.preprocess(
        [record.image for record in records], resize_px=sizes.resize_px,
        crop_px=sizes.crop_px)).cls)
    features.append((cls / np.linalg.norm(cls, axis=1, keepdims=True),
                     np.array([record.label for record in records])))
  (train, labels), (test, answers) = features
  right = 0
  for row, answer in zip(test @ train.T, answers, strict=True):
    near = np.argsort(-row, kind='stable')[:k]
    votes = np.bincount(labels[near], np.exp(row[near] / 0.07), 4)
    right += votes.argmax() == answer
  return 100 * right / len(answers)


def test_numbers_are_those_of_other_code(run, out):
  values = {(row['protocol'], row['metric']): row for row in rows(out)}
  for k in (10, 20, 100):
    assert values['knn', f'top-1, k {k}']['value'] == pytest.approx(
        accuracy_by_hand(run, k))
  linear = values['linear', 'top-1']
  assert linear['facts']['augmentation'] == 'random crops'
  assert linear['facts']['heads'] == 13 * 2
  effective = values['rankme', 'effective rank']
  assert effective['low'] is None and 1 < effective['value'] < 32
  for row in rows(out):
    assert row['protocol'] in ('rankme', 'lidar') or (
        row['low'] <= row['value'] <= row['high']), row
    assert len(row['key']) == 8 and row['model'] == f'{run}@6'


def test_rows_of_images_give_the_numbers_again(out):
  for row in rows(out):
    if row['metric'].startswith('top-'):
      with np.load(out / row['rows']) as columns:
        assert 100 * columns[row['metric']].mean() == pytest.approx(
            row['value'])
        assert len(columns[row['metric']]) == row['images']


def test_what_was_measured_is_not_measured_again(run, out, monkeypatch):
  before = (out / 'results.jsonl').read_bytes()
  monkeypatch.setattr(registry, 'run', lambda *_: pytest.fail('again'))
  table = evaluation.evaluate(evaluation.Request(
      [str(run)], ['knn', 'retrieval'], out=str(out)))
  assert (out / 'results.jsonl').read_bytes() == before
  assert table == (out / 'results.md').read_text()
  # Other values are other numbers.
  with pytest.raises(pytest.fail.Exception, match='again'):
    evaluation.evaluate(evaluation.Request(
        [str(run)], ['knn'], config={'knn': {'k': (5,)}}, out=str(out)))


def test_models_are_columns_and_keys_are_lines(run, out):
  table = evaluation.evaluate(evaluation.Request(
      [str(run), f'{run}@1'], ['knn'], out=str(out)))
  head, _, *lines = table.splitlines()
  assert head.endswith(f'| {run}@6 | {run}@1 | key |')
  shared = [line for line in lines if line.split('|')[6] != ' – ']
  assert shared == [line for line in lines if line.startswith('| knn ')]
  other = scores.markdown([
      *rows(out), rows(out)[0] | {'key': 'other', 'model': 'm'}])
  assert len(other.splitlines()) == len(table.splitlines()) + 1


@pytest.mark.parametrize('words, message', [
    (['--protocols=kn'], '--protocols=kn is not known: did you mean knn'),
    ([], 'no protocol is asked for: give --protocols=knn,linear'),
    (['--suite=fast'], '--suite=fast is not known: use one of quick'),
    (['--protocols=knn', '--test=folder:/nowhere'], '/nowhere'),
    (['--protocols=knn', '--sizes=big'], '--sizes=big is no number of pixels'),
    (['--protocols=knn', '--train=patterns:train'], 'data.test is missing')])
def test_mistakes_are_said_before_work(words, message, tmp_path, capsys):
  folder, _ = finished.run()
  code = commands.run('evaluate', [
      f'--model={folder}/export', f'--out={tmp_path}/o', CACHE, *words])
  assert code == 2 and message in capsys.readouterr().err


def test_sets_sizes_and_predictions(run, tmp_path):
  """Every set and size has lines of its own, images a line of a file."""
  assert commands.run('evaluate', [
      f'--model={run}', '--protocols=knn,linear,retrieval', '--cache',
      '--predictions', '--config.retrieval.database=patterns:validation',
      '--test=patterns:validation,held_out:patterns:train', '--sizes=32,16',
      '--train=patterns:train', f'--out={tmp_path}', CACHE,
      '--config.linear.layers=(1,)', '--config.linear.min_steps=40']) == 0
  whole, lines = [], []
  for row in rows(tmp_path):
    (whole if row['protocol'] == 'retrieval' else lines).append(row)
  # It has images of their own sizes, so that --sizes mean nothing to it.
  assert {row['px'] for row in whole} == {''}
  assert len(whole) == len({row['metric'] for row in whole})
  assert {(row['protocol'], row['test'], row['px']) for row in lines} == {
      (protocol, test, px) for protocol in ('knn', 'linear')
      for test in ('patterns:validation', 'held_out:patterns:train')
      for px in (32, 16)}
  row = next(row for row in lines if row['metric'] == 'mean per class')
  assert row['facts']['augmentation'] == 'none'
  name = row['rows'].removeprefix('rows/').removesuffix('.npz')
  with open(tmp_path / 'predictions' / f'{name}.csv', newline='') as file:
    told = list(csv.DictReader(file))
  by_class = {}
  for image in told:
    by_class.setdefault(image['label'], []).append(
        image['label'] == image['prediction'])
  classes = sources.open_source('patterns:validation').classes
  assert set(by_class) == set(classes) and len(told) == row['images']
  assert 100 * np.mean([np.mean(hits) for hits in by_class.values()]) == (
      pytest.approx(row['value']))


def test_a_signal_leaves_no_line_and_the_code_of_a_signal(
    run, tmp_path, monkeypatch):
  def stopped(name, job, settings):
    raise errors.Stopped
  monkeypatch.setattr(registry, 'run', stopped)
  assert commands.run('evaluate', [
      f'--model={run}', '--protocols=knn', f'--out={tmp_path}', CACHE]) == 143
  assert not (tmp_path / 'results.jsonl').exists()


@pytest.mark.slow  # minutes of a real process; it adds SIGTERM and SIGKILL
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_a_stop_in_the_middle_ends_in_the_same_table(run, tmp_path, number):
  def start(out):
    return forked.Command([
        f'--model={run}', '--protocols=linear,retrieval', f'--out={out}', CACHE,
        '--config.linear.layers=(1,2)', '--config.linear.min_steps=800'],
        module='dinojax.commands.evaluate', JAX_PLATFORMS='cpu')

  whole = start(tmp_path / 'whole')
  assert 'resumed' not in whole.communicate()[0] and whole.wait() == 0
  first = start(tmp_path / 'out')
  for line in first.stdout:
    if line.startswith('step 320/800'):
      first.send_signal(number)
  assert first.wait() == (143 if number == signal.SIGTERM else -9)
  again = start(tmp_path / 'out')
  assert 'resumed from step' in again.communicate()[0] and again.wait() == 0
  tables = [(tmp_path / name / 'results.md').read_text()
            for name in ('whole', 'out')]
  assert tables[0] == tables[1] and tables[0].count('| linear |') == 2


@pytest.fixture(scope='module')
def odd_sizes(tmp_path_factory):
  """Groups of images of many sizes, in each an original and its copies."""
  root = tmp_path_factory.mktemp('odd_sizes')
  rng = np.random.default_rng(0)
  for group in range(6):
    low = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    for name in ('original', 'small', 'dark'):
      size = tuple(int(x) for x in rng.integers(30, 90, 2))
      pixels = np.asarray(Image.fromarray(low).resize(size)) // (
          2 if name == 'dark' else 1)
      (root / f'g{group}').mkdir(exist_ok=True)
      Image.fromarray(pixels).save(root / f'g{group}/{name}.png')
  return root


@pytest.mark.slow  # minutes of real processes; it adds moments by chance
def test_kills_at_any_moment_end_in_the_same_table(run, odd_sizes, tmp_path):
  def start(out):
    return forked.Command([
        f'--model={run}', '--protocols=knn,linear,retrieval,copydays,rankme',
        f'--out={out}', CACHE, '--config.linear.layers=(1,2)',
        '--config.linear.min_steps=400',
        f'--config.retrieval.database=folder:{odd_sizes}',
        '--config.retrieval.image_px=32',
        f'--config.copydays.images=copies:{odd_sizes}'],
        module='dinojax.commands.evaluate', JAX_PLATFORMS='cpu')

  whole = start(tmp_path / 'whole')
  told = whole.communicate()[0].splitlines()
  assert whole.wait() == 0
  working = next(i for i, line in enumerate(told) if line.startswith('| '))
  seed = random.randrange(2**32)
  rng, killed = random.Random(seed), []
  for _ in range(3):
    # A start that goes on has fewer lines than the first, and may end before.
    line = rng.randrange(1, working if killed else working // 2)
    process = start(tmp_path / 'out')
    for number, _ in enumerate(process.stdout):
      if number == line:
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
    killed.append(process.wait())
  last = start(tmp_path / 'out')
  assert last.communicate() and last.wait() == 0
  tables = [(tmp_path / name / 'results.md').read_text()
            for name in ('whole', 'out')]
  assert tables[0] == tables[1], f'seed {seed}'
  assert -9 in killed, f'seed {seed}: {killed}'
  assert tables[0].count('| copydays |') == 1


@pytest.mark.slow  # it adds two processes
def test_two_processes_of_four_devices_give_the_same_table(
    run, odd_sizes, tmp_path):
  words = [f'--model={run}', '--suite=all', CACHE,
           '--config.linear.layers=(1,2)', '--config.linear.min_steps=60',
           '--config.finetune.min_steps=10', '--config.finetune.epochs=0.1',
           f'--config.retrieval.database=folder:{odd_sizes}',
           '--config.retrieval.image_px=32',
           '--config.retrieval.scales=(1.0,0.5)',
           f'--config.copydays.images=copies:{odd_sizes}',
           '--config.copydays.image_px=32']
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  both = [forked.Command(
      [*words, f'--out={tmp_path}/two'], module='dinojax.commands.evaluate',
      JAX_PLATFORMS='cpu', JAX_COORDINATOR_ADDRESS=f'localhost:{port}',
      JAX_NUM_PROCESSES='2', JAX_PROCESS_ID=str(i),
      XLA_FLAGS=os.environ['XLA_FLAGS']
      + ' --xla_force_host_platform_device_count=4') for i in range(2)]
  told = [process.communicate(timeout=300)[0] for process in both]
  assert [process.wait() for process in both] == [0, 0], told
  assert ['| rankme |' in text for text in told] == [True, False]
  assert forked.run([*words, f'--out={tmp_path}/one'],
                    module='dinojax.commands.evaluate',
                    JAX_PLATFORMS='cpu')[0] == 0
  tables = [(tmp_path / name / 'results.md').read_text()
            for name in ('two', 'one')]
  assert tables[0] == tables[1] and '| copydays |' in tables[0]


def test_unknown_keys_are_mistakes():
  with pytest.raises(errors.UserError, match='knn.ks is not a key'):
    registry.read({'knn': {'ks': (5,)}})
  with pytest.raises(errors.UserError, match=r'temperature=0.0 is not above 0'):
    registry.read({'knn': {'temperature': 0.0}})


def test_intervals_hold_what_was_measured():
  """Of a hundred rows of which seventy are right, ±9 points."""
  right = np.r_[np.ones(70), np.zeros(30)]
  low, high = protocol.Measured(
      't', {'top-1': right}, protocol.means).intervals()['top-1']
  assert 59 < low < 63 and 77 < high < 81
  same = protocol.Measured('t', {'top-1': np.ones(5)}, protocol.means)
  assert same.intervals()['top-1'] == (100.0, 100.0)


def test_keys_change_with_what_changes_numbers():
  settings = registry.Settings()
  key = lambda section, sets: protocol.key('knn', section, sets)
  first = key(settings.knn, {'test': ['a', 5]})
  assert first == key(settings.knn, {'test': ['a', 5]})
  other = registry.read({'knn': {'k': (5,)}}).knn
  assert len({first, key(other, {'test': ['a', 5]}),
              key(settings.knn, {'test': ['a', 6]})}) == 3


def test_knn_votes_as_counted_by_hand():
  """Four images at two places; temperature decides between near and many."""
  train = np.eye(4, dtype=np.float32)[[0, 1, 1, 1]]
  labels = np.array([0, 1, 1, 1])
  test = np.float32([[1.0, 0.9, 0, 0]])
  for k, label in ((1, 0), (4, 1)):
    scores = knn_functions.scores(
        train, labels, test, ks=(k,), temperature=1.0, num_classes=2)[k]
    assert scores.argmax() == label


def test_a_score_that_a_resample_lacks_is_no_error():
  """Two queries, of which one has no answer: half of the samples lack it."""
  rows = {'mAP': np.array([0.5, np.nan])}
  low, high = protocol.Measured('t', rows, protocol.means).intervals()['mAP']
  assert low == high == 50.0


def test_batches_of_heads_are_the_same_on_any_mesh():
  """Seven images of a batch are padded for four devices, which weighs 0."""
  labels = np.arange(10)
  alone, padded = (
      next(linear_probe.stored_rows({'f': labels[:, None]}, labels, 7, rows, 3))
      for rows in (7, 8))
  np.testing.assert_array_equal(alone['target'], padded['target'][:7])
  assert list(padded['weight']) == [1] * 7 + [0] and alone['weight'].all()


def test_a_page_shows_table_curves_and_pictures(tmp_path):
  """Sizes are a curve; what is not HTML is shown as it is."""
  identity = {'model': '<run>', 'weights': 'w', 'protocol': 'knn', 'key': 'k'}
  picture = np.zeros((4, 6, 3), np.uint8)
  for px, right in ((16, 0.0), (32, 1.0)):
    scores.keep(epath.Path(tmp_path), identity | {'px': px}, [
        protocol.Measured('a&b', {'top-1': np.full(9, right)}, protocol.means,
                          pictures={'first': picture})], 1.0)
  page.write_evaluation(epath.Path(tmp_path))
  text = (tmp_path / 'results.html').read_text()
  assert '&lt;run&gt;' in text and '<run>' not in text and 'a&amp;b' in text
  assert text.count('src="data:image/jpeg;base64,') == 1, 'one file, one name'
  assert 'knn, top-1, by pixels' in text and 'By the size of images' in text

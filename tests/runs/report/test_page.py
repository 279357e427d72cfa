"""The report of real runs: everything is in the file, and it is true."""

import html.parser
import json
import os
import re
import shutil
import subprocess

import numpy as np
from PIL import Image
import pytest

from dinojax import commands
from dinojax.core import errors
from dinojax.metrics import similarity as cosines
from dinojax.runs.report import curves
from dinojax.runs.report import facts
from dinojax.runs.report import gallery
from dinojax.runs.report import page
from tests.runs import finished
from tests.runs import test_run

VOID = {'meta', 'img', 'line', 'polyline', 'polygon', 'circle', 'br'}


class Parsed(html.parser.HTMLParser):
  """Elements with their attributes; what is not closed is an error."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.open, self.words = [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)

  @property
  def text(self):
    return ' '.join(' '.join(self.words).split())


def check(path, *, pictures):
  """A report that needs nothing but itself, with its numbers as text."""
  data = path.read_text()
  assert len(data) < 5_000_000
  parsed = Parsed(data)
  for tag, attributes in parsed.elements:
    assert tag not in ('script', 'link', 'iframe', 'a'), tag
    for name in ('src', 'href', 'srcset', 'data', 'action'):
      assert attributes.get(name, 'data:').startswith('data:'), attributes
  assert not re.search(r'url\(|@import|https?://', data)
  tags = [tag for tag, _ in parsed.elements]
  charts = [a for tag, a in parsed.elements if tag == 'svg']
  assert charts and all(a['aria-label'] for a in charts)
  # As many tables of numbers as charts.
  assert data.count('<summary>numbers</summary>') == len(charts)
  assert tags.count('img') == pictures, parsed.text
  return parsed


@pytest.fixture
def run():
  folder, text = finished.run()
  assert f'{folder}/report.html' in text
  return folder


def test_a_run_ends_with_a_report_of_it(run):
  parsed = check(run / 'report.html', pictures=4)
  knn = json.loads((run / 'results.json').read_text())['knn_top1_pct']
  for text in ('plankton', 'Finished at step 6', f'{knn["trained"]:.2f} %',
               'patterns:train (128)', 'ViT of 2 blocks', 'random weights',
               'demo:smoke', 'ended at step 6', '× cpu, 1 process,'):
    assert text in parsed.text, text


def test_cosines_of_patches_are_logged_and_drawn(run):
  rows = [row for row in test_run.rows(run) if 'patches/cls_cosine' in row]
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5, 6]
  for row in rows:
    assert -1 <= row['patches/cls_cosine'] <= 1
    assert -1 <= row['patches/patch_cosine'] <= 1
  maps = [json.loads(line) for line in
          (run / 'similarity.jsonl').read_text().splitlines()]
  assert [row['step'] for row in maps] == [1, 2, 3, 4, 5, 6]
  first = np.array(maps[0]['maps']['student']['map'])
  assert maps[0]['maps']['student']['record'] == 0
  assert first.shape == (4, 4) and first[1, 1] == pytest.approx(1, abs=1e-3)
  text = Parsed((run / 'report.html').read_text()).text
  assert 'CLS with its patches' in text


def test_curves_are_what_was_logged(run):
  rows = [row for row in test_run.rows(run) if 'loss/ibot' in row]
  history = curves.read(run)
  line, = history.lines('loss/ibot')
  assert list(line.values) == [row['loss/ibot'] for row in rows]
  loss, knn, *_ = curves.of_run(run)
  assert loss.levels[0].value == pytest.approx(np.log(64))
  assert {level.name for level in knn.levels} == {'untrained', 'raw pixels'}


@pytest.fixture
def copy(run, tmp_path):
  return shutil.copytree(run, tmp_path / 'copied')


def test_runs_are_compared(run, copy, tmp_path, capsys):
  out = tmp_path / 'both.html'
  assert commands.run('report', [
      f'--workdir={run}', f'--compare={copy}', f'--out={out}']) == 0
  assert f'wrote {out}' in capsys.readouterr().out
  parsed = check(out, pictures=4)
  assert 'Compared' in parsed.text and 'copied' in parsed.text
  assert 'Losses, nats: iBOT' in parsed.text


def test_a_run_is_compared_with_itself_and_its_like(run, copy, tmp_path):
  """Runs of the same folder name, and the same run twice."""
  twin = shutil.copytree(run, tmp_path / 'other' / run.name)
  names = [history.name for history in facts.histories(
      [str(run), str(twin), str(copy), str(copy), str(copy)])]
  assert names == ['plankton', str(twin), 'copied', str(copy), f"{copy}'"]


def test_a_run_that_was_killed_says_so(copy):
  (copy / 'results.json').unlink()
  page.write(str(copy))
  text = check(copy / 'report.html', pictures=4).text
  assert 'Not finished: its log ends at step 6' in text


def test_a_run_that_still_trains_says_so(copy):
  import fcntl
  (copy / 'results.json').unlink()
  with open(copy / 'lock', 'a') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    page.write(str(copy))
  assert 'Still training' in check(copy / 'report.html', pictures=4).text


def test_what_cannot_be_drawn_has_a_reason(copy):
  shutil.rmtree(copy / 'checkpoints')
  config = json.loads((copy / 'config.json').read_text())
  config['data'] |= {'train': 'folder:/gone', 'validation': None}
  (copy / 'config.json').write_text(json.dumps(config))
  lines = (copy / 'metrics.jsonl').read_text().splitlines()
  (copy / 'metrics.jsonl').write_text('\n'.join(
      line for line in lines if 'knn/' not in line) + '\n')
  (copy / 'events.jsonl').unlink()
  page.write(str(copy))
  text = check(copy / 'report.html', pictures=0).text
  assert text.count('Not drawn: ') == 4 and '/gone' in text
  assert 'k-NN accuracy was not measured' in text and 'None were' in text


def test_whatever_a_picture_dies_of_ends_no_report(copy, monkeypatch):
  def broken(*_, **__):
    raise RuntimeError('out of memory')
  monkeypatch.setattr(gallery.patch_picture, 'of_models', broken)
  page.write(str(copy))
  text = check(copy / 'report.html', pictures=3).text
  assert 'Not drawn: RuntimeError: out of memory' in text


def test_names_of_others_are_no_markup(copy):
  config = json.loads((copy / 'config.json').read_text())
  config['init'] = {'source': '<script>alert(1)</script>'}
  (copy / 'config.json').write_text(json.dumps(config))
  (copy / 'bad_images.jsonl').write_text(json.dumps(
      {'source': 'x', 'name': '<img src=x onerror=alert(1)>',
       'reason': '<b>&'}) + '\n')
  page.write(str(copy))
  parsed = check(copy / 'report.html', pictures=4)
  assert '<img src=x onerror=alert(1)> <b>&' in parsed.text
  assert '1 images could not be read' in parsed.text


@pytest.mark.parametrize('change, message', [
    (lambda folder: (folder / 'metrics.jsonl').unlink(),
     'has logged nothing yet'),
    (lambda folder: (folder / 'config.json').unlink(),
     'holds no run: config.json is missing')])
def test_a_folder_without_numbers_is_a_sentence(change, message, copy):
  change(copy)
  with pytest.raises(errors.UserError, match=message):
    page.write(str(copy))


def test_a_file_that_cannot_be_written_is_a_sentence(run):
  with pytest.raises(errors.UserError, match='/proc/x/report.html'):
    page.write(str(run), '/proc/x/report.html')


def test_a_chain_is_a_table_of_its_stages(run, tmp_path):
  """Of which one has logged nothing yet; before there is a results.json."""
  shutil.copytree(run, tmp_path / 'pretrain')
  (tmp_path / 'gram').mkdir()
  shutil.copy(run / 'config.json', tmp_path / 'gram')
  page.write(str(tmp_path))
  text = check(tmp_path / 'report.html', pictures=0).text
  assert 'A chain of runs: 1 of 2' in text
  assert 'has logged nothing yet' in text
  with pytest.raises(errors.UserError, match='compare its stages'):
    page.write(str(tmp_path), compare=[str(run)])


def test_the_nearest_config_is_that_of_the_run(run):
  name, rows = facts.config(curves.read(run))
  assert name == 'demo:smoke'
  assert rows == [('crops.num_local', '2', '0')]


def test_cosines_are_those_of_all_pairs():
  rng = np.random.default_rng(0)
  cls, patches = rng.normal(size=(2, 5)), rng.normal(size=(2, 7, 5))
  cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  for i in range(2):
    pairs = [cosine(patches[i, a], patches[i, b])
             for a in range(7) for b in range(7) if a != b]
    assert cosines.between_patches(patches)[i] == pytest.approx(
        np.mean(pairs), abs=1e-6)
    assert cosines.cls_with_patches(cls, patches)[i] == pytest.approx(
        np.mean([cosine(cls[i], p) for p in patches[i]]), abs=1e-6)


BROWSER = next(filter(None, map(
    shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.mark.skipif(
    not BROWSER, reason='no Chromium is installed: nothing looks at the page')
@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('is_dark', [False, True])
def test_a_browser_shows_it_within_its_width(run, width, is_dark, tmp_path):
  shot = tmp_path / 'shot.png'
  # The page tells its own width: what is wider would be seen in the title.
  data = (run / 'report.html').read_text().replace('</body>', (
      # A browser has no window as narrow as a telephone: the page is made so.
      f'<script>document.documentElement.style.width="{width}px";'
      'document.body.setAttribute("data-wide",[...document.'
      'querySelectorAll("main *")].filter(e=>!e.closest(".scroll")&&'
      f'e.getBoundingClientRect().right>{width}+1).map(e=>e.tagName+'
      '"."+e.className).join()+"|"+document.body.offsetWidth)'
      '</script></body>'))
  copy = tmp_path / 'page.html'
  copy.write_text(data)
  command = [
      BROWSER, '--headless', '--no-sandbox', '--disable-gpu',
      f'--user-data-dir={tmp_path}/profile', '--enable-logging=stderr',
      f'--window-size={width},900',
      *(['--blink-settings=preferredColorScheme=0'] if is_dark else [])]
  done = subprocess.run(
      [*command, f'--screenshot={shot}', '--dump-dom', copy.as_uri()],
      capture_output=True, text=True, timeout=120,
      env=os.environ | {'HOME': str(tmp_path)})
  assert done.returncode == 0, done.stderr
  assert 'CONSOLE' not in done.stderr, done.stderr
  wide = re.search(r'data-wide="([^"]*)\|(\d+)"', done.stdout)
  assert wide and not wide[1], wide[1]
  assert int(wide[2]) == width
  if shot.exists():
    corner = np.asarray(Image.open(shot).convert('L'))[:4, :4].mean()
    assert corner < 60 if is_dark else corner > 200

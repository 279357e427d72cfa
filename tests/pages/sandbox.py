"""A folder in which the blocks of a page run as they stand.

What a page says in capitals is there by that name: DIR has images, FILE has
weights. `dinojax` on the path is the program with less to do: configs get their
`smoke`, a config for one's own images is stopped after a step, topologies are
of CPUs. Clouds, containers and installers are stand-ins that write down what
they were asked.
"""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
from PIL import Image

from dinojax.data import photos
from dinojax.runs import conversions
from tests import forked
from tests.launch import fakes
from tests.pages import blocks

# Hands its words to the test, which forks the command.
_CLIENT = '''#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as s:
  s.connect({address!r})
  with s.makefile('rw') as stream:
    stream.write(json.dumps(
        [sys.argv[1:], os.getcwd(), dict(os.environ)]) + '\\n')
    stream.flush()
    text, code = json.loads(stream.readline())
print(text, end='')
sys.exit(code)
'''
_KEPT: dict[tuple[str, ...], tuple[str, pathlib.Path]] = {}
_STAND_INS = ('gcloud', 'xpk', 'docker', 'pip', 'make', 'tensorboard')
# Values of pages that stand for what no test has.
_SMALLER = {r'--suite=quick': '--protocols=knn',
            r'--protocols=knn,linear,': '--protocols=knn,',
            r'--topology=.*': '--topology=cpu:2',
            r'tfds:imagenet2012/train': 'patterns:train'}
# What a page has without a block that makes it. A file of published weights has
# a published size, which no smoke has: a folder of ours stands for it.
_TAKEN = {
    'evaluate': dict.fromkeys(('runs/mine', 'FILE'), 'vits:smoke'),
    'weights': dict.fromkeys(
        ('runs/mine', 'FILE', 'dinov2_vits14_pretrain.pth'), 'vits:smoke'),
    'reports': dict.fromkeys(('runs/demo', 'runs/a', 'runs/b'), 'vits:smoke'),
    'recipes': {'runs/large': 'vit7b:smoke', 'FILE': 'vitl:v3,smoke'},
}


class Sandbox:
  """The folder, its stand-ins, and the server of the program."""

  def __init__(self, folder: pathlib.Path):
    """Fills the folder and begins to serve; `close` ends that."""
    self.folder = folder
    self.programs = folder / 'programs'
    self.programs.mkdir()
    self.fakes = fakes.Fakes(self.programs, *_STAND_INS)
    self.fakes.reply('list', '', 'ACTIVE')
    self.fakes.reply('end_of_run', '0')
    self._socket = socket.socket(socket.AF_UNIX)
    address = str(self.programs / 'socket')
    self._socket.bind(address)
    self._socket.listen()
    program = self.programs / 'dinojax'
    program.write_text(_CLIENT.format(python=sys.executable, address=address))
    program.chmod(0o755)
    for path in blocks.ROOT.iterdir():
      if path.name not in ('.venv', '.git', 'runs', 'build', 'dist'):
        (folder / path.name).symlink_to(path)
    python = folder / '.venv/bin/python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    self._images()
    threading.Thread(target=self._serve, daemon=True).start()

  def _images(self):
    """Two classes of photographs, a table of them, and single files."""
    pixels = photos.photograph('chelsea')
    rows = ['file,class']
    for i in range(24):
      kind = ('stripes', 'checks')[i % 2]  # as those of patterns are called
      image = Image.fromarray(np.roll(pixels, 16 * i, i % 2)[:128, :128])
      for folder in ('DIR', 'LABELLED', 'plankton/train', 'plankton/test'):
        path = self.folder / folder / kind / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
      rows.append(f'DIR/{kind}/{i}.png,{kind}')
    (self.folder / 'train.csv').write_text('\n'.join(rows) + '\n')
    for name in ('a.jpg', 'b.jpg'):
      image.save(self.folder / name)
    for name in ('WEB', 'CURATED'):
      conversions.to_records(f'folder:{self.folder}/DIR',
                             str(self.folder / name), images_per_shard=16)

  def run(self, page: pathlib.Path):
    """Runs the blocks of a page, in order.

    Raises:
      AssertionError: one ends with another code than 0; with its output.
    """
    for name, config in _TAKEN.get(page.stem, {}).items():
      self._take(name, config)
    for block in blocks.of_page(page):
      if block.file:
        (self.folder / block.file).write_text(block.text)
      elif block.language in ('sh', 'python'):
        words = (['bash', '-eu', '-c', block.text] if block.language == 'sh'
                 else [sys.executable, '-c', block.text])
        done = subprocess.run(
            words, cwd=self.folder, text=True, timeout=600, env=self._env(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, (
            f'{page.name}:{block.line}\n{block.text}\n{done.stdout}')
        (self.folder / 'told.txt').open('a').write(
            f'{page.name}:{block.line}\n{block.text}{done.stdout}\n')

  def _take(self, name: str, config: str):
    """The run of a config, or its weights, which a page does not make."""
    path = self.folder / name
    if not path.exists():
      run = _trained(self.programs, config)
      path.parent.mkdir(exist_ok=True)
      shutil.copytree(run if name.startswith('runs/') else run / 'export', path)

  def _env(self) -> dict[str, str]:
    return self.fakes.environment() | {
        'HOME': str(self.folder), 'POLL_S': '0', 'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''),
        'PYTHONPATH': str(blocks.ROOT)}

  def _serve(self):
    """Answers calls of the program, one after the other, until `close`."""
    while True:
      try:
        connection, _ = self._socket.accept()
      except OSError:
        return
      with connection, connection.makefile('rw') as stream:
        words, cwd, env = json.loads(stream.readline())
        stream.write(json.dumps(_command(words, cwd, env)) + '\n')

  def close(self):
    """Ends the server."""
    self._socket.shutdown(socket.SHUT_RDWR)
    self._socket.close()


def smaller(word: str) -> str:
  """A word of a call, with less to do."""
  for pattern, value in _SMALLER.items():
    word = re.sub(pattern, value, word)
  match = re.fullmatch(r'(--(?:config|recipe)=)([\w/.]+?)(?::(.*))?', word)
  if not match or 'smoke' in word or match[2] == 'plankton.py':
    return word
  return f'{match[1]}{match[2]}:{",".join(filter(None, (match[3], "smoke")))}'


def _command(words: list[str], cwd: str, env: dict[str, str]
             ) -> tuple[str, int]:
  """Output and exit code of `dinojax words`, made smaller."""
  name, *words = words
  words = [smaller(word) for word in words]
  if name in ('train', 'doctor', 'embed', 'report', 'evaluate'):
    words.append(f'--compile_cache={forked.CACHE}')
  if name == 'train' and '--config=plankton.py' in words:
    words += ['--config.train.batch_size=8', '--config.train.group_images=8',
              '--config.koleo.group_images=8', '--config.log.every_steps=1']
  if any(word.startswith('--recipe=') for word in words):
    words.append('--stages=pretrain')  # whole chains: tests/runs/test_chains.py
  # The other processes of a page are not there to wait for.
  env = {key: value for key, value in env.items() if key not in (
      'JAX_COORDINATOR_ADDRESS', 'JAX_PROCESS_ID')} | {'JAX_NUM_PROCESSES': '1'}
  chosen = name == 'train' and not any('smoke' in word for word in words)
  if chosen and tuple(words) in _KEPT:
    # Several pages begin with it.
    text, kept = _KEPT[tuple(words)]
    shutil.copytree(kept, pathlib.Path(cwd) / 'runs' / kept.name)
    return text, 0
  process = forked.Command(
      words, cwd, f'dinojax.commands.{name}', **env)
  lines = []
  for line in process.stdout:
    lines.append(line)
    if chosen and re.match(r'step +[1-9]', line):
      process.send_signal(signal.SIGTERM)
      chosen = False
  code, text = process.wait(60), ''.join(lines)
  if '--workdir=runs/mine' in words and code == 0:
    _KEPT[tuple(words)] = text, pathlib.Path(cwd) / 'runs/mine'
  return text, code


@functools.cache
def _trained(root: pathlib.Path, config: str) -> pathlib.Path:
  """A run of a config, made once."""
  folder = root / config.replace(':', '_')
  code, text = forked.run(
      [f'--config={config}', f'--workdir={folder}',
       f'--compile_cache={forked.CACHE}'], JAX_PLATFORMS='cpu')
  assert code == 0, text
  return folder

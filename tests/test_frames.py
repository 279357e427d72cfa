"""The way from the command to the first product of matrices is short."""

import ast
import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

import dinojax

PACKAGE = pathlib.Path(dinojax.__file__).parent
MOST = 18
# The calls of ours that lead to the first product of a training run.
PROGRAM = '''
import json, sys, traceback
from jax.extend.core import primitives
from dinojax.commands import cli

class Reached(BaseException):
  pass

def stop(*_, **__):
  frames.extend([frame.filename, frame.lineno, frame.name]
                for frame in traceback.extract_stack())
  raise Reached

frames = []
primitives.dot_general_p.bind = stop
try:
  cli.main()
except Reached:
  print(json.dumps(frames))
'''


@dataclasses.dataclass(frozen=True)
class Frame:
  """A call on the way."""

  file: str
  line: int
  name: str

  def only_forwards(self) -> bool:
    """Tells whether it hands its arguments on, and does nothing else."""
    tree = ast.parse((PACKAGE / self.file).read_text())
    for node in ast.walk(tree):
      if (isinstance(node, ast.FunctionDef) and node.name == self.name
          and node.lineno <= self.line <= node.end_lineno):
        break
    else:
      return self.name == '<lambda>'
    body = node.body[1:] if ast.get_docstring(node) else node.body
    if len(body) != 1 or not isinstance(body[0], ast.Return) or not isinstance(
        body[0].value, ast.Call):
      return False
    call = body[0].value
    given = [*call.args, *(word.value for word in call.keywords)]
    return all(isinstance(value, ast.Name) for value in given)


@pytest.mark.slow
def test_few_calls_lead_to_the_first_product(tmp_path):
  done = subprocess.run(
      [sys.executable, '-c', PROGRAM, 'train', '--config=vits:smoke',
       f'--workdir={tmp_path / "run"}', '--compile_cache=',
       '--config.train.check_memory=False',
       '--config.train.batch_size=32'],
      capture_output=True, text=True, cwd=PACKAGE.parent)
  assert done.returncode == 0, done.stderr
  frames = [Frame(str(pathlib.Path(file).relative_to(PACKAGE)), line, name)
            for file, line, name in json.loads(done.stdout.splitlines()[-1])
            if pathlib.Path(file).is_relative_to(PACKAGE)]
  story = '\n'.join(map(str, frames))
  assert frames[0].name == 'main' and (
      frames[-1].file == 'models/layers.py'), story
  assert len(frames) <= MOST, story
  assert not [frame for frame in frames if frame.only_forwards()], story

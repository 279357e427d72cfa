"""The way from the command to the first product of matrices is short."""

import ast
import pathlib
import sys
import traceback

from jax.extend.core import primitives

from dinojax import commands

PACKAGE = str(pathlib.Path(commands.__file__).parents[1])
MOST = 18  # with that of commands/cli.py, which the test leaves out


class Reached(BaseException):
  """Nothing in between handles it."""


def frames(tmp_path, monkeypatch) -> list[traceback.FrameSummary]:
  """Our calls that lead to the first product of a training run."""
  found = []

  def stop(*_, **__):
    found.extend(frame for frame in traceback.extract_stack()
                 if frame.filename.startswith(PACKAGE))
    raise Reached

  monkeypatch.setattr(primitives.dot_general_p, 'bind', stop)
  for stream in ('stdout', 'stderr'):  # a command puts its own there
    monkeypatch.setattr(sys, stream, getattr(sys, stream))
  try:
    commands.run('train', [
        '--config=configs/vits.py:smoke', f'--workdir={tmp_path / "run"}',
        '--compile_cache=', '--config.train.check_memory=False',
        '--config.train.batch_size=32'])
  except Reached:
    pass
  return found


def only_forwards(frame: traceback.FrameSummary) -> bool:
  """Whether a function hands its own arguments on, and does nothing else."""
  tree = ast.parse(pathlib.Path(frame.filename).read_text())
  for node in ast.walk(tree):
    if (isinstance(node, ast.FunctionDef) and node.name == frame.name
        and node.lineno <= frame.lineno <= node.end_lineno):
      break
  else:
    return frame.name == '<lambda>'
  body = node.body[1:] if ast.get_docstring(node) else node.body
  if len(body) != 1 or not isinstance(body[0], ast.Return) or not isinstance(
      body[0].value, ast.Call):
    return False
  call = body[0].value
  given = [*call.args, *(word.value for word in call.keywords)]
  return all(isinstance(value, ast.Name) for value in given)


def test_few_calls_lead_to_the_first_product(tmp_path, monkeypatch):
  found = frames(tmp_path, monkeypatch)
  story = '\n'.join(f'{frame.filename.removeprefix(PACKAGE)}:{frame.lineno} '
                    f'{frame.name}' for frame in found)
  assert found[0].name == 'run' and found[-1].filename.endswith('layers.py')
  assert len(found) + 1 <= MOST, story
  assert not [frame for frame in found if only_forwards(frame)], story

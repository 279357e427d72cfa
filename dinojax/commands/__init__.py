"""The `dinojax` command, one file a word.

A command is a module with `define(values, argv)`, which defines its flags for
one call, and `main(values, words)`, which reads them, calls one function below
and returns the exit code. Nothing is defined when it is imported, so that any
commands run one after the other in one process.
"""

from collections.abc import Sequence
import importlib

COMMANDS = {
    'train': 'train or resume a run',
    'configs': 'list configs, or copy one',
    'crops': 'draw the first training batch as a picture',
    'curate': 'a pile of images to a training set',
    'embed': 'features of a folder of images, as a file',
    'evaluate': 'how good frozen features are, at what',
    'predict': 'masks, boxes, depths or heights, by a trained head',
    'pca': 'draw patch features of images in colour',
    'report': 'one HTML file that tells a run',
    'compile': 'what a config needs on a machine',
    'doctor': 'what is wrong, or slow, before a run',
    'convert': 'images to records, weights in and out',
}


def run(name: str, argv: Sequence[str]) -> int:
  """Runs a command of COMMANDS; a mistake is a sentence on stderr.

  Args:
    name: name of the command.
    argv: its flags and words, without program and command.

  Returns:
    The exit code: 0, 1 where a check found errors, 2 for a mistake.
  """
  module = importlib.import_module(f'dinojax.commands.{name}')
  # What can be said where the rest of dinojax cannot be imported.
  early = getattr(module, 'early', lambda: None)()
  if early is not None:
    return early
  call = importlib.import_module('dinojax.commands.call')
  guard = importlib.import_module('dinojax.commands.guard')
  parsed = call.parse(module, name, argv)
  if isinstance(parsed, int):
    return parsed
  values, words = parsed
  stopped = getattr(module, 'stopped_exit_code', lambda values: None)
  with guard.guarded(getattr(module, 'ADVICE', guard.AGAIN),
                     stopped(values)) as ended:
    ended.code = module.main(values, words)
  return ended.code

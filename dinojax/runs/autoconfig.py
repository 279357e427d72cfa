"""A config for a folder of images and this machine: `dinojax train --data`.

Facts are looked up, choices follow from facts by rules that are printed, and
the choices are a config file in the workdir: what a second start, and a second
run, read.
"""

from collections.abc import Callable, Iterator
import os
import re
import time
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import paths
from dinojax.data import inspection
from dinojax.data import sources
from dinojax.parallel import hardware
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.planning import memory
from dinojax.planning import throughput
from dinojax.runs import choices
from dinojax.runs import models
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib

CONFIG = 'config.py'  # in the workdir
_TRAIN, _TEST = ('train', 'training'), ('val', 'valid', 'validation', 'test')
_LEAST_IMAGES = 16
_NUM_SAMPLED = 32
# Below this many images a device, micro-batches instead.
_SMALL_BATCH, _LEAST_PART = 32, 8


def config_for(data: str, workdir: str, *, validation: str | None = None,
               model: str | None = None,
               say: Callable[[str], None] = print) -> Any:
  """The config of a workdir: chosen at its first start, then read.

  Args:
    data: folder of images, or a source such as tfds:NAME/SPLIT.
    workdir: folder of the run; config.py is written to it if it is missing.
    validation: the same, labelled; None: found below `data`, or held out.
    model: name such as 'vits14'; None: chosen.
    say: gets every choice with its reason.

  Returns:
    A ConfigDict, as --config=WORKDIR/config.py gives it.

  Raises:
    UserError: no images, an unknown model, or a workdir of other data.
  """
  path = epath.Path(workdir) / CONFIG
  asked = f'data={data!r}, validation={validation!r}, model={model!r}'
  text = path.read_text() if path.exists() else ''
  text = processes.of_first(text)
  if text:
    _check_asked(text, asked, path)
    say(f'{path}: chosen at the first start, and used again')
    return config_of(text, str(path))
  taken = (path.parent / models.CONFIG).exists()
  if processes.of_first(str(taken)) == 'True':
    raise errors.UserError(
        f'{path.parent} holds a run of another config, which was not chosen '
        'for images: use another workdir')
  made, lines = written(look(data, validation, model), asked, workdir)
  text = processes.of_first(made)
  for line in lines:
    say(line)
  if processes.is_first():
    write(path, text)
  say(f'written to {path}: edit it before another run, or give it as '
      '--config')
  return config_of(text, str(path))


def _check_asked(text: str, asked: str, path: epath.Path):
  """Checks that a config was made for the same flags."""
  before = re.search(r'^# Chosen for (.*)$', text, re.MULTILINE)
  if before and before.group(1) != asked:
    raise errors.UserError(
        f'{path} was chosen for {before.group(1)}, and {asked} is '
        'asked for now: use another workdir, or ask for the same')


def write(path: epath.Path, text: str):
  """Writes a config.

  Raises:
    UserError: it cannot be written.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, text)
  except OSError as error:
    raise errors.UserError(
        f'--workdir={path.parent} cannot be written: '
        f'{error.strerror or error}; choose a folder you may write to'
    ) from error


def config_of(text: str, name: str) -> Any:
  """The ConfigDict of a config file's text.

  Raises:
    UserError: it is no config.
  """
  place: dict[str, Any] = {'__name__': 'dinojax_run_config'}
  try:
    exec(compile(text, name, 'exec'), place)  # configs are programs
    return place['get_config']()
  except (SyntaxError, KeyError, NameError, AttributeError, TypeError,
          ValueError, ImportError) as error:
    raise errors.UserError(
        f'{name} is no config: {type(error).__name__}: {error}; mend it, or '
        'remove it and a new one is chosen') from error


def look(data: str, validation: str | None,
         model: str | None) -> choices.Facts:
  """Opens the images and asks the devices.

  Raises:
    UserError: nothing there, too few images, or an unknown model.
  """
  choices.sizes_of(model)
  train, validation, whence = find(data, validation)
  source = sources.open_source(train)
  if validation:
    sources.open_source(validation)
  if len(source) < _LEAST_IMAGES:
    count = '1 image' if len(source) == 1 else f'{len(source)} images'
    raise errors.UserError(
        f'{train} holds {count}: at least {_LEAST_IMAGES} are needed to learn '
        'anything')
  seen = inspection.sample(source, _NUM_SAMPLED)
  if not seen.short_px:
    name, reason = seen.problems[0]
    raise errors.UserError(
        f'{train}: none of {len(seen.problems)} images that were tried can be '
        f'decoded; {name}: {reason}')
  device = mesh_lib.one_device()[0]
  dtype = 'float32' if device.platform == 'cpu' else 'bfloat16'
  return choices.Facts(
      train, validation, whence, len(source), len(source.classes),
      seen.short_px, device.platform, jax.device_count(), hardware.num_cores(),
      hardware.available_gib(device),
      _speed(device, dtype), model)


def _speed(device: jax.Device, dtype: str) -> float:
  """FLOPs a second of matrix products.

  A CPU's by the time that its processors gave us, so that what is chosen does
  not depend on what else runs.
  """
  clock = time.monotonic
  if device.platform == 'cpu':
    clock = lambda: time.process_time() / hardware.num_cores()
  return throughput.matrix_flops(jnp.dtype(dtype), device, clock=clock)


def find(data: str, validation: str | None) -> tuple[str, str | None, str]:
  """Sources to train on and to measure on, and where they are from, in words.

  A folder that holds train/ and val/ or test/ is two; other labelled folders
  give every tenth image to be measured on.
  """
  train = as_source(data)
  if validation:
    return train, as_source(validation), '--data and --validation'
  folder = train.removeprefix('folder:')
  below = {} if folder == train else inside(folder)
  inner = next((below[x] for x in _TRAIN if x in below), None)
  if inner:
    test = next((below[x] for x in _TEST if x in below), None)
    pair = [f'folder:{os.path.join(folder, x)}' if x else None
            for x in (inner, test)]
    if test:
      return pair[0], pair[1], f'{folder} holds {inner}/ and {test}/'
    train = pair[0]
  if len(sources.open_source(train).classes) < 2:
    return train, None, 'no labels: sub-folders would be classes'
  return (f'kept:{train}', f'held_out:{train}',
          'every tenth image is held out for k-NN, the others train')


def as_source(data: str) -> str:
  """A source; a plain path is a folder, by its absolute path."""
  scheme, _, rest = data.partition(':')
  if rest and scheme in (
      'arrayrecord', 'tfds', 'photos', 'kept', 'held_out', 'python'):
    return data
  folder = rest if scheme == 'folder' and rest else data
  if '://' not in folder:
    folder = os.path.abspath(paths.expand(folder))
  return f'folder:{folder}'


def inside(folder: str) -> dict[str, str]:
  """Sub-folders of a folder by their names in small letters."""
  path = epath.Path(folder)
  if not path.is_dir():
    return {}
  return {x.name.lower(): x.name for x in path.iterdir() if x.is_dir()}


def written(facts: choices.Facts, asked: str, workdir: str
            ) -> tuple[str, list[str]]:
  """The text of a config, and what was chosen with its reason, in lines.

  Args:
    facts: facts that the choices follow from.
    asked: the flags, in words; kept in the file.
    workdir: folder of the run.

  Raises:
    UserError: the model does not fit the device.
  """
  made = [choices.data(facts), choices.model(facts)]
  patch_px = _config(made, asked, workdir).model.patch_px
  made.append(choices.crops(facts, patch_px))
  colours = choices.colours(facts)
  made += [colours] if colours else []
  size, parts, step_flops = _fitting(facts, made, asked, workdir)
  made.append(choices.batch(facts, size, parts))
  made.append(choices.epochs(facts, size, step_flops))
  return (choices.text(made, asked, workdir),
          choices.body(made).splitlines())


def _config(made: list[choices.Choice], asked: str, workdir: str) -> Any:
  return config_of(choices.text(made, asked, workdir), 'the chosen config')


def _fitting(facts: choices.Facts, made: list[choices.Choice], asked: str,
             workdir: str) -> tuple[int, int, float]:
  """Batch and micro-batches that fit, and FLOPs of such a step."""
  limit, first = memory.DOUBTFUL * facts.free_gib, None
  mesh = mesh_lib.make()
  for size, parts in _batches(choices.largest_batch(facts),
                              facts.num_devices):
    if first and _at_least(*first, size // parts) > limit:
      continue  # not to be traced
    config = _config([*made, choices.batch(facts, size, parts)], asked,
                     workdir)
    config.train.total_epochs = 1.0
    with mesh_lib.activate(mesh):
      method = method_lib.build(settings_lib.read(config), mesh, 1)
      need = memory.of_pretraining(method, mesh)
      if need.peak <= limit:
        return size, parts, throughput.step_flops(method, mesh)
    first = first or (need, size)
  raise errors.UserError(
      f'{memory.sentence(first[0], facts.free_gib)}: no batch of it fits; '
      'choose a smaller one with --model, such as vitti16')


def _batches(largest: int, num_devices: int) -> Iterator[tuple[int, int]]:
  """Batches and micro-batches to try, the best first."""
  least = min(_SMALL_BATCH * num_devices, largest)
  sizes = [largest >> i for i in range(16) if largest >> i >= least]
  yield from ((size, 1) for size in sizes)
  for parts in (2, 4, 8):
    if least // num_devices // parts >= _LEAST_PART:
      yield least, parts


def _at_least(need: memory.Estimate, images: int, fewer: int) -> float:
  """GiB that fewer images at a time need, guessed low."""
  rest = need.batch + need.activations
  return need.state + need.gradients + 0.9 * rest * fewer / images

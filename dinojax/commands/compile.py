"""`dinojax compile --config=vitg --topology=v5e:16x16`.

Compiles the very step that training runs, for TPUs that are not here (with
libtpu, on any CPU) or for n CPU devices, and says what it needs and takes:
memory, collectives, a roofline. `--fit` looks for the largest batch.
"""

import json
import os
import time

from absl import flags

from dinojax.commands import call
from dinojax.core import atomic
from dinojax.core import paths

REQUIRED = ('config', 'topology')


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  call.config_flag(
      'config', 'Config to compile: a name of `dinojax configs`, or a file.',
      values, argv)
  text, switch = call.texts(values), call.switches(values)
  text('topology', "Devices: a TPU slice, 'v5e:16x16' or 'v5p:4x4x4', or "
       "'cpu:8'.")
  switch('fit', 'Finds the largest train.batch_size that fits memory.')
  switch('explain', 'Also: where the time goes.')
  text('json', 'File that gets the same numbers.')


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Prints the table."""
  del words
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  # Only now: what these import must not look for devices before.
  from dinojax.planning import fit
  from dinojax.planning import plan
  from dinojax.planning import text as plan_text
  began = time.monotonic()
  say = lambda text: print(
      f'[{time.monotonic() - began:5.0f} s] {text}', flush=True)
  if values.fit:
    numbers = fit.largest(values.config, values.topology, say)
    say(f'largest: {numbers["fit"]["images_per_device"]} images a device, '
        f'train.batch_size={numbers["images_per_step"]}')
  else:
    say(f'compiling the step for {values.topology}: seconds for a small '
        'model, 5 to 10 minutes for a large one')
    numbers = plan.compiled(values.config, values.topology)
    say('compiled')
  numbers['compile_s'] = round(time.monotonic() - began, 1)
  print(plan_text.table(numbers, values.explain))
  if values.json:
    atomic.write_text(paths.expand(values.json), json.dumps(numbers, indent=1))
  return 0

"""`dinojax compile --config=vitg --topology=v5e:16x16`.

Compiles the very step that training runs, for TPUs that are not here (with
libtpu, on any CPU) or for n CPU devices, and says what it needs and takes:
memory, collectives, a roofline. `--fit` looks for the largest batch.
"""

import json
import os
import sys
import time

from absl import app
from absl import flags

from dinojax.commands import commandline
from dinojax.commands import entry as entry_lib
from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import paths

_CONFIG = commandline.config_flag(
    'config', 'Config to compile: a name of `dinojax configs`, or a file.')
_TOPOLOGY = flags.DEFINE_string(
    'topology', None, "Devices: a TPU slice, 'v5e:16x16' or 'v5p:4x4x4', or "
    "'cpu:8'.")
_FIT = flags.DEFINE_bool(
    'fit', False, 'Finds the largest train.batch_size that fits memory.')
_EXPLAIN = flags.DEFINE_bool('explain', False, 'Also: where the time goes.')
_JSON = flags.DEFINE_string('json', None, 'File that gets the same numbers.')


@entry_lib.guarded()
def main(argv: list[str]) -> int:
  """Prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  # Only now: what these import must not look for devices before.
  from dinojax.planning import fit
  from dinojax.planning import plan
  from dinojax.planning import text as plan_text
  began = time.monotonic()
  say = lambda text: print(
      f'[{time.monotonic() - began:5.0f} s] {text}', flush=True)
  try:
    if _FIT.value:
      found = fit.largest(_CONFIG.value, _TOPOLOGY.value, say)
      say(f'largest: {found["fit"]["images_per_device"]} images a device, '
          f'train.batch_size={found["images_per_step"]}')
    else:
      say(f'compiling the step for {_TOPOLOGY.value}: seconds for a small '
          'model, 5 to 10 minutes for a large one')
      found = plan.compiled(_CONFIG.value, _TOPOLOGY.value)
      say('compiled')
    found['compile_s'] = round(time.monotonic() - began, 1)
    print(plan_text.table(found, _EXPLAIN.value))
    if _JSON.value:
      atomic.write_text(paths.expand(_JSON.value), json.dumps(found, indent=1))
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def entry():
  """The `compile` entry of the console command."""
  commandline.run(main, 'compile', required=['config', 'topology'])


if __name__ == '__main__':
  entry()

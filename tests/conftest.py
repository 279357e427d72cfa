"""Eight CPU devices, strict ranks, exact matmuls, a compile cache.

Files run whole, in two processes (docs/testing.md); the last lines of a run
are its minutes and its memory.
"""

import gc
from importlib import metadata
import os
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# A folder of all processes of this call of pytest, which inherit its name.
if 'DINOJAX_TESTS_SHARED' not in os.environ:
  os.environ['DINOJAX_TESTS_SHARED'] = tempfile.mkdtemp()
# Below nohup, or behind a shell's &, these are ignored, which the programs that
# tests start would inherit: a handler they do not.
for number, handler in ((signal.SIGHUP, lambda *_: None),
                        (signal.SIGINT, signal.default_int_handler)):
  if signal.getsignal(number) == signal.SIG_IGN:
    signal.signal(number, handler)
# Tiny programs, many compilations: optimising them costs more than it saves,
# and the newer emitters of fused loops take twice as long as the older. Parts
# that are compiled beside each other take longer in all.
_FLAGS = ['--xla_backend_optimization_level=0',
          '--xla_cpu_parallel_codegen_split_count=1']
# A flag that a later compiler does not know ends the process.
if metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join(
    (*_FLAGS, os.environ.get('XLA_FLAGS', '')))

from absl import flags
import jax
import pytest

from dinojax.core import signals
from tests import memory

_CACHE = pathlib.Path(__file__).parents[1] / '.jax_cache'

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_default_matmul_precision', 'highest')
jax.config.update('jax_compilation_cache_dir', str(_CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)

# Tracing makes much that lives on and little garbage: looking for it at every
# 700 new objects took a sixth of the time of Python. It is after each file.
gc.set_threshold(400_000, 20, 100)

# grain's worker processes read absl flags, which pytest never parses.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True)
def no_mesh_is_left():
  """A mesh that stays active changes what later tests compile."""
  yield
  assert jax.sharding.get_abstract_mesh().empty


@pytest.fixture(autouse=True)
def no_watch_is_left():
  """A watch over signals would end the process of a later test."""
  yield
  assert not signals.is_watched()


# Tests marked `torch` compare with PyTorch packages; TORCH=0 does without.
_LEFT_OUT = []


# Begun first, so that both processes end together.
_LONGEST = [f'tests/{name}.py' for name in (
    # Those of make test-all, then those of make test.
    'reliability/test_kills', 'fuzz/test_weights', 'fuzz/test_images',
    # What this makes, runs/test_evaluation takes.
    'runs/report/test_page', 'test_goldens', 'runs/test_run',
    'runs/test_teachers',
    'reliability/test_runs', 'train/test_step', 'train/test_students',
    'runs/test_initial_weights', 'doctor/test_doctor', 'test_configs',
    'features/test_embed', 'features/test_store', 'kernels/test_attention_tpu',
    'interop/test_checking', 'models/test_vit', 'data/test_pipeline')]


def pytest_collection_finish():
  gc.collect()
  gc.freeze()


def pytest_collection_modifyitems(config, items):
  place = {name: i for i, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: place.get(
      item.nodeid.partition('::')[0], len(place)))
  if os.environ.get('DINOJAX_TORCH') != '0':
    return
  _LEFT_OUT.extend(
      item for item in items if item.get_closest_marker('torch'))
  items[:] = [item for item in items if item not in _LEFT_OUT]
  config.hook.pytest_deselected(items=_LEFT_OUT)


_drop_at_gib = 1.2


@pytest.fixture(autouse=True, scope='module')
def programs_of_a_file_are_dropped():
  """Before they pile up: other files use few of them again.

  What is left is frozen: to look for garbage among all of it, which the code
  under test does as well, would take a second each time.
  """
  global _drop_at_gib
  yield
  drops = _held_gib() > _drop_at_gib
  if drops:
    gc.unfreeze()
    jax.clear_caches()
  gc.collect()
  if drops:
    _drop_at_gib = _held_gib() + 0.4
  gc.freeze()


_STARTED, _PEAK = time.monotonic(), memory.Peak()


def _held_gib() -> float:
  """Memory of this process; where it is not known, the most it was."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return memory.gib([os.getpid()]) or (
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30)


def pytest_sessionstart(session):
  if not hasattr(session.config, 'workerinput'):  # of pytest-xdist
    _PEAK.start()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
  if 'tests.forked' in sys.modules:
    sys.modules['tests.forked'].stop()
  if not hasattr(session.config, 'workerinput'):
    shutil.rmtree(os.environ['DINOJAX_TESTS_SHARED'])


def pytest_terminal_summary(terminalreporter):
  minutes, peak = (time.monotonic() - _STARTED) / 60, _PEAK.stop()
  terminalreporter.section(f'{minutes:.1f} minutes' + (
      f', at most {peak:.1f} GiB of all processes' if peak else ''))
  if _LEFT_OUT:
    terminalreporter.section(f'{len(_LEFT_OUT)} tests left out: TORCH=0')
    for item in _LEFT_OUT:
      terminalreporter.line(item.nodeid)

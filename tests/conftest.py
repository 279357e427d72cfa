"""Eight CPU devices, strict ranks, exact matmuls, a compile cache."""

import gc
import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tiny programs, many compilations: optimising them costs more than it saves,
# and the newer emitters of fused loops take twice as long as the older.
os.environ['XLA_FLAGS'] = ' '.join((
    '--xla_backend_optimization_level=0', '--xla_cpu_use_fusion_emitters=false',
    os.environ.get('XLA_FLAGS', '')))

from absl import flags
import jax
import pytest

_CACHE = pathlib.Path(__file__).parents[1] / '.jax_cache'

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_default_matmul_precision', 'highest')
jax.config.update('jax_compilation_cache_dir', str(_CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)

# Tracing makes much that lives on and little garbage: looking for it at every
# 700 new objects took a sixth of Python's time.
gc.set_threshold(100_000, 20, 100)

# grain's worker processes read absl flags, which pytest never parses.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True)
def no_mesh_is_left():
  """A mesh that stays active changes what later tests compile."""
  yield
  assert jax.sharding.get_abstract_mesh().empty


# Tests marked `torch` compare with PyTorch packages; TORCH=0 does without.
_LEFT_OUT = []


def pytest_collection_modifyitems(config, items):
  if os.environ.get('DINOJAX_TORCH') != '0':
    return
  _LEFT_OUT.extend(
      item for item in items if item.get_closest_marker('torch'))
  items[:] = [item for item in items if item not in _LEFT_OUT]
  config.hook.pytest_deselected(items=_LEFT_OUT)


def pytest_terminal_summary(terminalreporter):
  if _LEFT_OUT:
    terminalreporter.section(f'{len(_LEFT_OUT)} tests left out: TORCH=0')
    for item in _LEFT_OUT:
      terminalreporter.line(item.nodeid)

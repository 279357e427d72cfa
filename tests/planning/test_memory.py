"""Memory of a step before it is compiled, against what compilers report.

The recorded figures are `throughput.compiled(...).peak_gib` of `settings` below
on one CPU device, jax 0.10.2: `python -m tests.planning.test_memory` makes them
again (a quarter of an hour). Those of the GPU: NVIDIA H200, jax 0.11.2.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dinojax.configs import common
from dinojax.configs import demo
from dinojax.configs import vitl
from dinojax.configs import vits
from dinojax.core import errors
from dinojax.engine import program
from dinojax.models import zoo
from dinojax.parallel import hardware
from dinojax.parallel import mesh as mesh_lib
from dinojax.planning import cards
from dinojax.planning import liveness
from dinojax.planning import memory
from dinojax.planning import throughput
from dinojax.runs import assemble
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib
from tests.engine import heads

# GiB by size, images of a batch and what is kept for the backward pass.
COMPILED = {
    ('ti', 8, 'dots'): 1.111, ('ti', 32, 'dots'): 3.408,
    ('ti', 128, 'dots'): 12.514, ('s', 8, 'dots'): 2.248,
    ('s', 32, 'dots'): 6.776, ('s', 128, 'dots'): 24.872,
    ('b', 8, 'dots'): 5.049, ('b', 32, 'dots'): 14.028,
    ('b', 128, 'dots'): 49.952}
FAST = [('b', 8, 'dots')]


def settings(size, batch, remat):
  c = vits.get_config()
  for name, value in zoo.size(size).items():
    c.model[name] = value
  c.model.ffn_hidden = 4 * c.model.embed_dim
  c.model.remat = remat
  c.train.batch_size = batch
  c.train.group_images = c.koleo.group_images = 8
  common.small_batch(c)
  return settings_lib.read(c)


def mesh_of_one():
  return mesh_lib.make(devices=jax.devices()[:1])


def estimated(s):
  mesh = mesh_of_one()
  with mesh_lib.activate(mesh):
    return memory.of_pretraining(method_lib.build(s, mesh, 1), mesh)


def compiled(s):
  mesh = mesh_of_one()
  with mesh_lib.activate(mesh):
    return throughput.compiled(method_lib.build(s, mesh, 1), mesh).peak_gib


@pytest.mark.parametrize('case', [
    case if case in FAST else pytest.param(case, marks=pytest.mark.slow)
    for case in COMPILED])
def test_estimates_are_near_what_the_compiler_plans(case):
  need = estimated(settings(*case))
  assert need.peak == pytest.approx(COMPILED[case], rel=0.25)


@pytest.mark.slow
def test_a_vit_ti_as_it_is_compiled_here():
  s = settings('ti', 8, 'dots')
  assert estimated(s).peak == pytest.approx(compiled(s), rel=0.25)


def on_gpu(config):
  mesh = mesh_of_one()
  with mesh_lib.activate(mesh):
    return memory.of_pretraining(cards.method_on_gpu(config, mesh), mesh)


@pytest.mark.slow
def test_estimates_are_near_what_a_gpu_used():
  assert on_gpu(vits.get_config()).peak == pytest.approx(24.93, rel=0.25)
  c = vitl.get_config()
  c.model.patch_px, c.crops.local_px, c.train.batch_size = 14, 98, 128
  assert on_gpu(c).peak == pytest.approx(18.68, rel=0.25)


KIB = 2**8  # float32 elements


def floats(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def kib(function, *arguments):
  return liveness.temporaries(jax.jit(function).trace(*arguments).jaxpr) / 1024


def test_arithmetic_on_elements_is_not_stored():
  x, w = floats(KIB, 4), floats(4, 4)
  assert kib(lambda x: jnp.sum(jnp.tanh(x * 2) + 1), x) == pytest.approx(0,
                                                                        abs=.1)
  # A product is, and so is what a product reads.
  assert kib(lambda x, w: jnp.tanh(x) @ w, x, w) == pytest.approx(8, abs=.1)
  # The first product is free when the third one is made.
  chain = lambda x, w: jnp.sum(x @ w @ w @ w @ w)
  assert kib(chain, x, w) == pytest.approx(8, abs=.1)


def test_loops_keep_what_the_backward_pass_reads():
  def loss(policy):
    def body(x, w):  # whose derivatives read x and the cosine
      return jnp.sin(x @ w), None

    body = body if policy is None else jax.checkpoint(body, policy=policy)
    return lambda x, ws: jnp.sum(jax.lax.scan(body, x, ws)[0])

  x, ws = floats(KIB, 16), floats(10, 16, 16)  # 16 KiB a layer, 10 KiB
  needs = [kib(jax.grad(loss(policy), (0, 1)), x, ws) for policy in (
      None, jax.checkpoint_policies.everything_saveable,
      jax.checkpoint_policies.nothing_saveable)]
  for need in needs[:2]:  # both of ten layers
    assert 320 <= need <= 420, needs
  assert 160 <= needs[2] <= 260, needs  # inputs alone


def test_arrays_are_counted_by_what_a_device_holds():
  mesh = mesh_lib.make(-1, 2)
  whole = jax.ShapeDtypeStruct((64, 4), jnp.float32)
  with mesh_lib.activate(mesh):
    split = jax.ShapeDtypeStruct((64, 4), jnp.float32,
                                 sharding=jax.NamedSharding(mesh,
                                                            mesh_lib.ROWS))
    program = jax.jit(lambda x: x @ jnp.ones((4, 4))).trace(split)
    assert memory.gib(whole) == mesh.size * memory.gib(split)
  parts = liveness.temporaries(program.jaxpr)
  whole_bytes = liveness.temporaries(
      jax.jit(lambda x: x @ jnp.ones((4, 4))).trace(whole).jaxpr)
  assert parts < whole_bytes / 4


@pytest.fixture
def linear(monkeypatch):
  """A recipe that takes 1 GiB, and a tenth for every image at a time."""
  def estimate(method, mesh):
    train = method.settings.train
    rows = train.batch_size / mesh.size
    return memory.Estimate(
        0.6, 0.01 * rows, 0.4, 0.09 * rows / train.num_micro_batches)

  monkeypatch.setattr(memory, 'of_pretraining', estimate)

  def make(**changes):
    c = demo.get_config()
    c.train.update({'group_images': 8} | changes)
    c.koleo.group_images = c.train.group_images
    return settings_lib.read(c)

  return make


@dataclasses.dataclass(frozen=True)
class Method:
  """As far as what fits looks at one."""

  settings: settings_lib.Settings
  students: dict = dataclasses.field(default_factory=dict)


def test_a_step_that_cannot_fit_is_refused_with_values_that_fit(linear):
  mesh, messages = mesh_of_one(), []
  check = lambda free, **changes: memory.check(
      Method(linear(**changes)), mesh, free, messages.append)
  check(10.0)  # 7.4 of 10
  assert not messages
  check(8.0)
  assert len(messages) == 1 and 'has 8 GiB free: it may not fit' in messages[0]
  with pytest.raises(errors.UserError) as caught:
    check(6.0)
  text = str(caught.value)
  # 0.8 × 6 is 4.8: 1 + 0.64 + 5.76 / 2 with two parts, 38 images without.
  for part in ('7.4 GiB', '6 GiB free', 'does not fit',
               'train.num_micro_batches=2', 'train.batch_size=32',
               'configs/photos.py', 'train.check_memory=False'):
    assert part in text, text
  with pytest.raises(errors.UserError, match='no batch of this model fits'):
    check(1.5)


def test_values_that_fit_are_of_whole_groups(linear):
  mesh = mesh_of_one()
  method = Method(linear())
  assert memory.fitting_batch(method, mesh, 3.0) == 8  # 14 images
  assert memory.fitting_batch(method, mesh, 100.0) % 8 == 0
  # 64 images in 8 parts are groups of 8; in 16 they are none.
  need = memory.of_pretraining(method, mesh)
  assert memory.fitting_micro_batches(method, mesh, 3.0, need) == 8
  assert memory.fitting_micro_batches(method, mesh, 2.0, need) is None


def test_training_stops_before_it_compiles(tmp_path, monkeypatch, linear):
  monkeypatch.setattr(hardware, 'available_gib', lambda _: 0.01)
  monkeypatch.setattr(assemble.loop, 'run', lambda _: pytest.fail('has begun'))
  config = demo.get_config('smoke')
  config.train.batch_size = 32  # groups of 4 on each of eight devices
  with pytest.raises(errors.UserError, match='does not fit'):
    assemble.train(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run/config.json').exists()
  config.train.check_memory = False
  with pytest.raises(pytest.fail.Exception, match='has begun'):
    assemble.train(config, str(tmp_path / 'run'))


def test_memory_that_is_free():
  meminfo = 'MemTotal:  8388608 kB\nMemAvailable:   4194304 kB\n'
  assert hardware.free_in('', ('', '', '')) == []
  assert hardware.free_in(meminfo) == [4.0]
  limits = str(3 * 2**30), str(2 * 2**30), f'inactive_file {2**29}\n'
  assert hardware.free_in(meminfo, limits) == [4.0, 1.5]
  older = limits[2] + f'total_inactive_file {2**28}\ntotal_active_file 0\n'
  assert hardware.free_in('', (*limits[:2], older)) == [1.25]
  assert hardware.free_in('', ('max', '5', '')) == []
  assert 0 < hardware.free_memory_gib() <= hardware.memory_gib()


def measure():
  """Prints COMPILED."""
  for size in ('ti', 's', 'b'):
    for batch in (8, 32, 128):
      print((size, batch, 'dots'),
            round(compiled(settings(size, batch, 'dots')), 3), flush=True)



def test_any_trainable_is_planned():
  """Heads on a frozen backbone, which know nothing of DINO."""
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    trainable = heads.Heads(mesh)
    need = memory.estimate(trainable, mesh)
    step = program.planned(trainable, mesh)
    program_now = step.traced.lower().compile()
  assert step.variant == 'averaged' and 'average' in step.state
  assert need.state == pytest.approx(memory.gib(step.state))
  used = program_now.memory_analysis()
  assert need.state + need.batch == pytest.approx(
      used.argument_size_in_bytes / 2**30, rel=0.1)


if __name__ == '__main__':
  measure()


@pytest.mark.parametrize('told, expected', [
    ('0::/', ['']), ('0::/job/step', ['', '/job', '/job/step']),
    ('4:memory:/job\n0::/', ['/memory', '/memory/job', '']),
    ('3:cpu,memory:/docker/0123', ['/memory']),  # as seen from inside
    ('0::/../other', ['']), ('2:cpuset:/job', []), ('', [])])
def test_groups_of_a_job_are_found(told, expected, tmp_path):
  (tmp_path / 'proc/self').mkdir(parents=True)
  (tmp_path / 'proc/self/cgroup').write_text(told)
  mount = tmp_path / 'sys/fs/cgroup'
  for name in ('job/step', 'memory/job'):
    (mount / name).mkdir(parents=True)
  assert [str(path).removeprefix(str(mount))
          for path in hardware.groups('memory', tmp_path)] == expected


@pytest.mark.parametrize('names', [
    ('max', 'current'), ('limit_in_bytes', 'usage_in_bytes')])
def test_memory_of_either_kind_of_group(names, tmp_path):
  for name, text in zip((*names, 'stat'), ('800', '300', ''), strict=True):
    (tmp_path / f'memory.{name}').write_text(f'{text}\n')
  assert hardware._memory_of(tmp_path) == ('800', '300', '')

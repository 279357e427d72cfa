"""How fast a machine multiplies, a step runs, and images come: findings."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from dinojax.core import chips
from dinojax.core import errors
from dinojax.core import log
from dinojax.doctor import findings
from dinojax.doctor import supply
from dinojax.parallel import hardware
from dinojax.parallel import mesh as mesh_lib
from dinojax.planning import memory
from dinojax.planning import throughput
from dinojax.runs import batches as batches_lib
from dinojax.train import method as method_lib

Findings = list[findings.Finding]
Say = Callable[[str], None]

# Of least time, by arithmetic alone: real steps take a few times as long.
_LONGEST_S = 60.0
# Images of a batch of the input pipeline while it is timed, at least.
_INPUT_BATCH = 16


def of_machine() -> Findings:
  """Matrix products in the dtype that its platform computes in."""
  device = mesh_lib.one_device()[0]
  return [_matrices(
      device, 'float32' if device.platform == 'cpu' else 'bfloat16')[0]]


def of_run(method: method_lib.Method, mesh: jax.sharding.Mesh,
           training: list, homogeneous: list, *, total_steps: int, steps: int,
           input_s: float, say: Say) -> Findings:
  """Findings on the step, the input pipeline, and which limits training.

  Args:
    method: training method whose step is timed.
    mesh: devices that the step runs on.
    training: sources and weights; empty: they could not be opened.
    homogeneous: sources of whole batches, with their probabilities.
    total_steps: length of the run, in steps.
    steps: number of steps that are timed, or 0.
    input_s: seconds that the pipeline is timed, or 0.
    say: gets a line before anything slow.
  """
  finding, flops = _matrices(mesh_lib.one_device()[0],
                             method.settings.model.dtype)
  with mesh_lib.activate(mesh):
    step, taken = _step(method, mesh, flops, steps, total_steps, say)
  out, brought = [finding, *step], None
  if not training:
    out.append(findings.skip('input', 'the data cannot be opened'))
  elif not input_s:
    out.append(findings.skip('input', '--input_s=0'))
  else:
    say(f'timing the input pipeline for {input_s:g} s')
    try:
      brought = _input(method, training, homogeneous, input_s)
    except errors.UserError as wrong:
      return [*out, findings.error('input', str(wrong))]
    data = method.settings.data
    out.append(findings.ok(
        'input', f'{brought:.3g} images/s from '
        + (f'{data.num_workers} workers of ' if data.num_workers else '')
        + f'{data.num_threads} threads'))
  if taken and brought:
    out.append(supply.balance(
        brought, taken, method.settings, cores=hardware.num_cores(),
        platform=mesh_lib.platform(mesh)))
  return out


def _matrices(device: jax.Device, dtype: str
              ) -> tuple[findings.Finding, float]:
  """How fast a device multiplies: as a finding, and FLOPs a second."""
  speed = throughput.matrix_flops(jnp.dtype(dtype), device)
  chip = chips.of_device_kind(device.device_kind)
  peak = chip.bf16_flops / chip.cores if (
      chip and dtype == 'bfloat16') else None
  return supply.products(speed, dtype, peak), speed


def _long(seconds: float) -> str:
  """A duration that may be years."""
  years = seconds / (365 * 86400)
  return log.duration(seconds) if years < 1 else f'{years:,.0f} years'


def _input(method: method_lib.Method, training: list, homogeneous: list,
           seconds: float) -> float:
  """Images a second of all processes, in batches of few groups."""
  train = method.settings.train
  unit = train.group_images * jax.process_count()
  small = dataclasses.replace(
      train, batch_size=unit * -(-_INPUT_BATCH // unit))
  settings = dataclasses.replace(method.settings, train=small)
  return jax.process_count() * throughput.input_rate(
      batches_lib.make(settings, training, homogeneous, 0), seconds)


def _step(method: method_lib.Method, mesh: jax.sharding.Mesh, flops: float,
          steps: int, total_steps: int, say: Say
          ) -> tuple[Findings, float | None]:
  """The step as compiled and timed; images a second, or None."""
  if not steps:
    return [findings.skip('step', '--steps=0')], None
  have = hardware.available_gib(mesh.local_devices[0])
  batch = method.settings.train.batch_size
  least = throughput.step_flops(method, mesh) / flops / mesh.size
  if memory.of_pretraining(method, mesh).peak > memory.REFUSED * have:
    return [findings.skip('step', 'not run: it does not fit')], None
  if least * (steps + 1) > _LONGEST_S:
    return [findings.warn(
        'step', 'not run: this machine is too slow for it. By arithmetic '
        f'alone one takes {log.duration(least)}, and training '
        f'{_long(least * total_steps)}',
        'a smaller config (README), or a machine with accelerators: `dinojax '
        'compile` says what it needs there')], None
  say('compiling the step')
  try:
    program = throughput.compiled(method, mesh)
  except errors.UserError as wrong:
    return [findings.error('memory', str(wrong))], None
  step_findings = [
      supply.memory(program.peak_gib, have, 'the compiled step takes')]
  if program.peak_gib > have:
    return [*step_findings,
            findings.skip('step', 'not run: it does not fit')], None
  say(f'running {steps + 1} steps')
  try:
    seconds = throughput.step_seconds(program, method, mesh, steps)
  except errors.UserError as wrong:
    return [*step_findings, findings.error('step', str(wrong))], None
  step_findings.append(findings.ok(
      'step', f'{1e3 * seconds:.0f} ms, {batch / seconds:.3g} images/s; '
      f'compiled in {program.compile_s:.0f} s; {least / seconds:.0%} of the '
      'speed of matrix products'))
  whole = seconds * total_steps
  step_findings.append(supply.time(
      whole, f'{_long(whole)} for {total_steps} steps, if images come in time',
      mesh_lib.platform(mesh)))
  return step_findings, batch / seconds

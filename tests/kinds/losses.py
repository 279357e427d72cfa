"""Losses and what makes their targets."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.losses import centering
from dinojax.losses import dino
from dinojax.losses import gram
from dinojax.losses import ibot
from dinojax.losses import koleo
from dinojax.losses import sinkhorn
from tests import golden


def with_gradients(jobs):
  """{name: (loss, gradient)} of {name: (function, *arguments)}, one program.

  The gradient is that of the first argument.
  """
  functions = {name: job[0] for name, job in jobs.items()}
  args = {name: tuple(map(jnp.asarray, job[1:]))
          for name, job in jobs.items()}
  return jax.jit(lambda args: {
      name: jax.value_and_grad(f)(*args[name])
      for name, f in functions.items()})(args)


@golden.kind('dino_loss')
def dino_loss(case):
  jobs, out = {}, {}
  case.config.skip('cases')
  for call in case.calls:
    name = call['id']
    call.skip('note')
    by_image = lambda key, name=name: case.inputs[f'{name}/{key}'].transpose(
        1, 0, 2)
    loss = functools.partial(
        dino.dino, student_temperature=call['student_temp'],
        ignore_diagonal=call.get('ignore_diagonal', False))
    student, teacher = by_image('student'), by_image('teacher')
    # DINOv2 sums over pairs what DINOv3 averages.
    pairs = dino.num_pairs(student.shape[1], teacher.shape[1], False) if (
        name.startswith('v2')) else 1
    jobs[name] = (lambda s, t, loss=loss, pairs=pairs: pairs * loss(s, t),
                  student, teacher)
  for name, (value, grad) in with_gradients(jobs).items():
    out[f'{name}/loss'] = value
    out[f'{name}/grad_student'] = grad.transpose(1, 0, 2)
  return out


@golden.kind('ibot_patch_loss')
def ibot_loss(case):
  masks, count = case.inputs['masks'], int(case.inputs['n_masked'])
  case.config.skip('n_masked', 'upperbound')
  loss = functools.partial(
      ibot.ibot, num_rows=len(masks),
      student_temperature=case.config['student_temp'])
  buffer, probs = case.inputs['student_buffer'], case.inputs['teacher_probs']
  given, pad = case.inputs['masks_weight'], len(buffer) - count
  weight = ibot.mask_weight(masks)
  calls = {
      'sliced': (buffer[:count], probs, given),
      'noweight': (buffer[:count], probs, weight[masks]),
      'padded': (buffer, jnp.pad(probs, ((0, pad), (0, 0))),
                 jnp.pad(given, (0, pad))),
      'dense': (case.inputs['dense_student'], case.inputs['dense_teacher'],
                weight)}
  out = {}
  jobs = {name: (loss, *args) for name, args in calls.items()}
  for name, (value, grad) in with_gradients(jobs).items():
    for variant in ('v2_xformers_path', 'v2_torch_path', 'v3'):
      out[f'{variant}/{name}/loss'] = value
      out[f'{variant}/{name}/grad_student'] = grad
  return out


@golden.kind('koleo_loss')
def koleo_loss(case):
  case.config.skip('cases')
  shapes = {}
  for call in case.calls:
    call.skip('B', 'D', 'note')
    shapes[call['id']] = call.get('world', 1), call.get('local_batch')
  jobs, out = {}, {}
  for name in {key.rpartition('/')[0] for key in case.outputs}:
    words = name.split('/')
    world, local = shapes[words[0]]
    topk = re.search(r'top(\d+)', words[1])
    topk = int(topk.group(1)) if topk else 1
    if world == 1:
      jobs[name] = (lambda x, topk=topk: koleo.koleo(x[None], topk=topk),
                    case.inputs[f'{words[0]}/x'])
      continue
    x = case.inputs[f'{words[0]}/global_x']
    group = re.search(r'group(all|\d+)', words[1]).group(1)
    group = len(x) if group == 'all' else int(group)
    rank = int(words[2].removeprefix('rank'))

    def of_rank(x, group=group, rank=rank, topk=topk, local=local):
      terms = koleo.koleo_per_row(
          x.reshape(-1, group, x.shape[-1]), topk=topk)
      return terms.reshape(-1, local, topk)[rank].mean()

    jobs[name] = of_rank, x
  for name, (value, grad) in with_gradients(jobs).items():
    whose = 'grad' if f'{name}/grad' in case.outputs else 'grad_global_x'
    out[f'{name}/{whose}'] = golden.Within(grad, of_largest=1e-5)
    out[f'{name}/loss'] = golden.Within(value, rtol=1e-5, atol=1e-6)
  return out


@golden.kind('gram_loss')
def gram_loss(case):
  case.config.skip('B', 'N', 'D')
  student, teacher, chosen = (
      jnp.asarray(case.inputs[key])
      for key in ('student', 'teacher', 'token_mask'))
  modes = {'none': {}, 'remove_neg': dict(remove_negative=True),
           'remove_only_teacher_neg': dict(remove_only_teacher_negative=True)}
  jobs, out = {}, {}

  def add(name, **options):
    jobs[name] = lambda s: gram.gram(s, teacher, **options), student

  for call in case.calls:
    options = modes[call['mode']] | dict(normalize=call['apply_norm'])
    add(call['id'], per_image=call['img_level'], **options)
    stem = call['id'].rpartition('_img')[0]
    if not call['img_level']:
      add(f'{stem}_masked_tokens', per_image=False, weight=chosen, **options)
  for name, (value, grad) in with_gradients(jobs).items():
    out[f'{name}/loss'] = value
    out[f'{name}/grad_student'] = golden.Within(grad, of_largest=1e-5)
  return out


@golden.kind('sinkhorn_knopp')
def sinkhorn_knopp(case):
  case.config.skip('cases')
  out = {}
  for call in case.calls:
    call.skip('rows', 'prototypes', 'buffer_rows', 'n_masked')
    name = call['id']
    center = jax.jit(functools.partial(
        sinkhorn.sinkhorn_knopp, temperature=call['teacher_temp'],
        num_iterations=call['n_iterations']))
    rows = center(jnp.asarray(case.inputs[f'{name}/logits']))
    out |= {f'{name}/{variant}': rows
            for variant in ('dino_v2', 'dino_v3', 'ibot_v2', 'ibot_v3')}
    buffer = jnp.asarray(case.inputs[f'{name}/buffer'])
    count = int(case.inputs[f'{name}/n_masked'][0])
    padded = center(
        buffer, weight=(jnp.arange(len(buffer)) < count).astype(jnp.float32))
    for variant in ('ibot_rows_only', 'ibot_v2_rows_only'):
      out[f'{name}/{variant}'] = padded[:count]
    out[f'{name}/ibot_literal_whole_buffer'] = center(buffer)
  return out


@golden.kind('softmax_center')
def softmax_center(case):
  case.config.skip('K')
  softmax_center, row_mean, group_mean, update_center = map(jax.jit, (
      centering.softmax_center, centering.row_mean, centering.group_mean,
      centering.update_center))
  momentum, out = case.config['momentum'], {}
  starts = [key for key in case.inputs if key.endswith('_center0')]
  for start in starts:
    name = start.removesuffix('_center0')  # 'v2/dino'
    shape = case.inputs[start].shape
    version, head = name.split('/')
    center = case.inputs[start].reshape(-1)
    for i in range(sum(key.startswith(f'{name}_teacher')
                       for key in case.inputs)):
      logits = case.inputs[f'{name}_teacher{i}']
      out[f'{name}_center_after_apply{i}'] = center.reshape(shape)
      out[f'{name}_probs{i}'] = softmax_center(
          logits, center, case.inputs[f'{version}/temp{i}'])
      mean = (row_mean(logits) if head == 'dino' else
              group_mean(logits, np.ones(logits.shape[:2], np.float32)))
      center = update_center(center, mean, momentum)
    out[f'{name}_center_final'] = center.reshape(shape)
  return out

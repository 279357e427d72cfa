"""Former layouts of the checkpoints of pretraining, which are still read.

Layout 1 (until 0.1) had one student without a name: items student, opt, and
the EMA as `teacher`, or as `ema` where a frozen teacher was distilled; all
counters and centers in `meta`. Several students lay as they do now.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax.numpy as jnp

from dinojax.engine import items
from dinojax.train import sections
from dinojax.train import state as state_lib

_OF_STUDENT = ('skipped_steps', 'nonfinite_in_row')  # counters of a student


@dataclasses.dataclass(frozen=True)
class First:
  """Layout 1 of one student.

  Attributes:
    ema: item of the EMA.
  """

  ema: str

  def split(self, state: dict) -> items.Items:
    """The items of a state of today."""
    student = dict(state[state_lib.STUDENTS][sections.ALONE])
    out = {'student': student['student'], 'opt': student['opt'],
           self.ema: student['ema']}
    if 'gram' in state:
      out['gram'] = state['gram']
    meta = {key: state[key] for key in ('step', 'key', 'centers')
            if key in state}
    meta['counters'] = state['counters'] | student['counters']
    return out | {'meta': meta}

  def join(self, parts: items.Items) -> dict:
    """The inverse of `split`."""
    meta = dict(parts['meta'])
    counters = meta.pop('counters')
    student = {'student': parts['student'], 'opt': parts['opt'],
           'ema': parts[self.ema],
           'counters': {name: counters[name] for name in _OF_STUDENT},
           'begun': jnp.zeros_like(meta['step'])}
    rest = {name: x for name, x in counters.items() if name not in _OF_STUDENT}
    return meta | {'counters': rest,
                   state_lib.STUDENTS: {sections.ALONE: student}} | (
                       {'gram': parts['gram']} if 'gram' in parts else {})


def of(info: Mapping[str, Any], distils: bool) -> items.Layout:
  """The layout of a checkpoint.

  Args:
    info: facts saved beside it.
    distils: True if its run has a frozen teacher.
  """
  if 'layout' in info or 'students' in info:
    return items.Current(state_lib.STUDENTS)
  return First('ema' if distils else 'teacher')


def item(info: Mapping[str, Any], part: str, student: str,
         distils: bool) -> str:
  """The name of the item that holds a part of a student.

  Args:
    info: facts saved beside the checkpoint.
    part: 'student', 'ema' or 'opt'.
    student: name of the student.
    distils: True if the run has a frozen teacher.
  """
  layout = of(info, distils)
  if isinstance(layout, First):
    return layout.ema if part == 'ema' else part
  return f'{part}.{student}'

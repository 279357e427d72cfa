"""Shapes of a fused attention, for plans where its library is not there.

cuDNN's is traced only on a machine that has it. This one has the same arrays
for arguments, results and what the backward pass finds, and cannot run.
"""

import jax
from jax.extend import core

_forward = core.Primitive('planned_attention')
_backward = core.Primitive('planned_attention_gradient')
_backward.multiple_results = True
_forward.def_abstract_eval(lambda q, k, v: v)
_backward.def_abstract_eval(lambda q, k, v, out, cotangent: [q, k, v])


@jax.custom_vjp
def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """[b, n, h, d] queries, keys and values to values, by shapes alone."""
  return _forward.bind(q, k, v)


def _mix_forward(q: jax.Array, k: jax.Array, v: jax.Array):
  out = _forward.bind(q, k, v)
  return out, (q, k, v, out)


mix.defvjp(_mix_forward,
           lambda kept, cotangent: tuple(_backward.bind(*kept, cotangent)))

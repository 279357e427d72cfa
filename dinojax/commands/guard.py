"""The end of a command: a sentence, whatever happens."""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import sys

from dinojax.core import errors
from dinojax.core import output
from dinojax.core import signals

_STOPPED = 143  # as of a program that SIGTERM ended
AGAIN = 'the same command begins again'


@dataclasses.dataclass
class Ended:
  """The exit code of a command, once it has one."""

  code: int = 2


@contextlib.contextmanager
def guarded(advice: str = AGAIN, code: int | None = None) -> Iterator[Ended]:
  """A command inside it ends with a sentence, whatever happens.

  Errors of the user's to mend are a sentence and exit code 2, a signal is a
  sentence too, a terminal that goes away ends nothing, and a JAX that does
  not start is what `dinojax doctor` says of it.

  Args:
    advice: the end of a sentence that tells what to do after a signal.
    code: exit code after a signal; None: 128 and its number.
  """
  output.install()
  unwatch, ended = signals.watch(advice, code), Ended()
  try:
    yield ended
    return
  except errors.UserError as error:
    text = str(error)
  except errors.Stopped:
    ended.code = _STOPPED if code is None else code
    return
  except KeyboardInterrupt:
    print(f'stopped: {advice}', file=sys.stderr)
    ended.code = 130
    return
  except Exception as error:  # noqa: BLE001 (raised again if unknown)
    text = _reason(error)
    if not text:
      raise
  finally:
    unwatch()
  print(f'error: {text}', file=sys.stderr, flush=True)


def _reason(error: Exception) -> str:
  """In words, what is wrong on this machine; '': it is a fault of ours."""
  if isinstance(error, OSError):
    names = [str(name) for name in (error.filename, error.filename2) if name]
    return (f'{" and ".join(names)}: ' if names else '') + (
        f'{error.strerror or error}: free space or fix the permissions, and '
        'start the same command again') if error.errno else ''
  if not isinstance(error, AssertionError | RuntimeError):
    return ''
  from dinojax.parallel import hardware  # with jax, which may be what fails
  text = str(error)
  if 'RESOURCE_EXHAUSTED' in text:
    return (f'a device has too little memory: {text.splitlines()[0]}; '
            '`dinojax doctor --config=…` says what fits')
  return not_started(hardware.failure())


def not_started(reason: str) -> str:
  """A sentence about a JAX that does not start; '' when it does."""
  if not reason:
    return ''
  forced = os.environ.get('JAX_PLATFORMS', '')
  return f'JAX does not start: {reason}; ' + (
      f'unset JAX_PLATFORMS, which is {forced!r}, or install what it names'
      if forced else 'reinstall jax with the extra of this machine: `dinojax '
      'doctor` says more')

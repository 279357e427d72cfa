"""Words for errors that end a run: what is wrong, and what helps."""

from collections.abc import Sequence
import errno
import os
from typing import Protocol

from etils import epath

from dinojax.core import errors
from dinojax.engine import checkpoint
from dinojax.engine import report

# EFBIG: a limit on the size of files (`ulimit -f`), or of the file system.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM}
_WORKDIR = FULL | {errno.EROFS}


class Advice(Protocol):
  """Advice on errors whose cause depends on the training method."""

  def batches(self, error: OSError | RuntimeError) -> errors.UserError | None:
    """The words of an error of the input pipeline; None: it is not known."""

  def nonfinite(self, error: report.NonFinite, workdir: epath.Path,
                steps: Sequence[int]) -> errors.UserError:
    """The words of a stop for gradients that are not finite.

    Args:
      error: the stop, with the first non-finite step.
      workdir: folder of the run.
      steps: steps of the checkpoints there.
    """


class NoAdvice:
  """Says no more than what was seen."""

  def batches(self, error: OSError | RuntimeError) -> None:
    """Knows no error."""

  def nonfinite(self, error: report.NonFinite, workdir: epath.Path,
                steps: Sequence[int]) -> errors.UserError:
    """The error itself."""
    return error


def disk(error: OSError, workdir: epath.Path,
         latest: int | None) -> errors.UserError:
  """Words for an error of the operating system, by the file it is about.

  Args:
    error: error whose path is in the workdir, elsewhere, or missing.
    workdir: folder of the run.
    latest: step of the last checkpoint.
  """
  again = f'start the same command again: it resumes from step {latest or 0}'
  reason = error.strerror or checkpoint.first_line(error)
  name = os.fspath(error.filename) if error.filename else ''
  if name.startswith(str(workdir)) or (
      not name and error.errno in _WORKDIR):
    return errors.UserError(
        f'{workdir} could not be written: {reason}'
        f'{f" ({name})" if name else ""}; free space or fix the permissions, '
        f'and {again}')
  return errors.UserError(
      f'{name or type(error).__name__}: {reason} (the workdir {workdir} is not '
      f'at fault); mend it, and {again}')

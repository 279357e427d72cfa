"""dinojax: DINOv2 and DINOv3 in JAX."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing dinojax imports no JAX
  from dinojax.engine import loop
  from dinojax.evals import aligned
  from dinojax.features import backbone

__version__ = '0.1.0'
__all__ = ['load', 'load_aligned', 'train']


def load(path: 'str | os.PathLike', *, part: str = 'ema',
         num_heads: int | None = None, image_px: int | None = None,
         exact_periods: bool = False) -> 'backbone.Backbone':
  """A ready model: `model(model.preprocess('a.jpg'))` gives its features.

  Args:
    path: the workdir of a run, or workdir/NAME of one of its students, with
      @STEP for another checkpoint than the last; a folder that `dinojax
      convert import` wrote; a file or folder of DINOv2, DINOv3, transformers
      or timm; or 'hf:owner/name[@revision]', a model of the Hugging Face Hub.
      '~' is your home.
    part: 'ema', or 'student' of a run or of a file that holds both; of a file
      with several backbones, also the name of one.
    num_heads: heads of attention, which files do not tell; needed for sizes
      that were never published.
    image_px: side of square images, in pixels, that learned positions are
      resampled to once; None keeps them, and images of other sizes resample
      them as they come.
    exact_periods: computes the periods of RoPE in float32, as transformers
      and timm do; DINOv3's own files hold them rounded to bfloat16, as it was
      trained.

  Returns:
    A `dinojax.features.backbone.Backbone`: call it with [b, y, x, c] normalised
    images for `cls` [b, d], `registers` [b, n, d] and `patches` [b, p, d]; it
    has `preprocess`, `intermediate`, `attention_maps`, `config`, `params`,
    `mean` and `std`. Its parameters are on the first device.

  Raises:
    UserError: (a ValueError) nothing there, damaged, or not known; the
      message says what to do.
  """
  from dinojax.runs import models  # now: importing dinojax imports no JAX
  return models.load(path, part=part, num_heads=num_heads, image_px=image_px,
                    exact_periods=exact_periods)


def load_aligned(model: 'str | os.PathLike | backbone.Backbone',
                 head: 'str | os.PathLike', *,
                 tokenizer: str | None = None) -> 'aligned.Aligned':
  """Images and texts in one space: `texts` and `images` give embeddings.

  Args:
    model: the backbone, or what `load` takes.
    head: folder `head` of a run of configs/dinotxt.py, or published files of
      dino.txt: one of DINOv3, 'VISION.pth,TEXT.pth' of DINOv2.
    tokenizer: vocabulary of published files, 'clip:FILE'; None: that of the
      head's folder.

  Returns:
    A `dinojax.evals.aligned.Aligned`.

  Raises:
    UserError: (a ValueError) nothing there, or a head of another backbone.
  """
  from dinojax.evals import aligned_heads
  if isinstance(model, str | os.PathLike):
    model = load(model)
  return aligned_heads.read(os.fspath(head), model, tokenizer)


def train(config: Any, workdir: 'str | os.PathLike', *,
          compile_cache: 'str | os.PathLike | None' = None) -> 'loop.Result':
  """Trains, or continues what is in `workdir`, as `dinojax train` does.

  Works in a notebook, data workers included. They are processes of their own:
  in a script, call it below `if __name__ == '__main__':`.

  Args:
    config: a name of `dinojax configs` or a file, such as 'vits:smoke'; or
      what `get_config` of one returns, a ConfigDict or nested dicts of the
      same keys, changed as you like.
    workdir: folder of the run, local or gs://; '~' is your home. The same
      call with the same folder continues where it was stopped.
    compile_cache: folder of compiled programs, so that a second start is
      quick; None: the one of `dinojax train`; '': none.

  Returns:
    The `Result`: `step`, `finished`, `seconds` of all starts, `evaluation`
    (numbers by name) and `state`, whose arrays are on the devices.

  Raises:
    UserError: (a ValueError) every mistake of the config, before work starts;
      or what ends a run, with what to do.
  """
  from absl import flags

  from dinojax.runs import assemble
  from dinojax.runs import catalog
  from dinojax.runs import training
  if isinstance(config, str):
    config = catalog.load(config)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # the workers of the data read them
  assemble.compile_cache(assemble.DEFAULT_COMPILE_CACHE if compile_cache is None
                    else os.fspath(compile_cache))
  return training.runner(config).train(config, os.fspath(workdir))


# The package dinojax.train takes the place of this function once anything
# imports it, and is the same when it is called.
_train = train

"""`dinojax pca --workdir=runs/demo [--images=SOURCE] [--out=pca.png]`.

Patch features of a trained run as colours: their first principal components,
and how similar every patch is to a marked one. `--compare=A,B` draws those of
other runs or weights beside them: before and after a stage, for one.
"""

from absl import flags

from dinojax.commands import call
from dinojax.core import paths
from dinojax.runs import patch_picture
from dinojax.runs import pictures

REQUIRED = ('workdir',)


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  del argv
  text, number, switch = (
      f(values) for f in (call.texts, call.numbers, call.switches))
  text('workdir', 'Folder of the run, or any weights that dinojax.load takes.')
  text('images', 'Images, as `embed --source` takes them: a folder, one image, '
       'arrayrecord:GLOB, …, or a video; default: regions of the embedded '
       'photographs far from every training tile.')
  text('out', 'Picture to write; default: pca.png in the workdir, or beside it '
       'where that names a student, a step or a file.')
  flags.DEFINE_list(
      'compare', [], 'Other runs or weights, drawn beside the first.',
      flag_values=values)
  number('count', 'Images shown, or frames of a video.', 4)
  number('grid', 'Patches along the side of an image.', 32, least=2)
  switch('foreground', 'Colours the foreground alone, by its own components.')
  text('classifier', 'Colours the foreground that a logistic classifier of '
       'patches tells: an npz of `weight` and `bias`.')
  switch('attention', 'Also: attention of the CLS token, mean of the heads.')


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Writes the picture."""
  del words
  runs = [paths.expand(run) for run in (values.workdir, *values.compare)]
  out = paths.expand(values.out or patch_picture.default_out(runs[0]))
  pictures.check_out(out)
  patch_picture.draw(runs, patch_picture.Look(**{
      name: values[name].value for name in (
          'images', 'count', 'grid', 'foreground', 'attention',
          'classifier')})).save(out)
  print(f'wrote {out}')
  return 0

# %% [markdown]
# # 9 · What is where: masks from frozen features
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/example/dinojax/blob/main/colabs/09_segment.ipynb)
#
# A backbone that has never seen a label knows what belongs together. Two heads
# learn here to name every pixel from its frozen patches: a linear layer, and
# queries with a mask each (PMT). Both are measured on the same images, and used
# on others.
#
# Without images of your own, scenes are pasted together from the photographs of
# the demo: every region shows another one, and its mask is known exactly. It
# runs on a CPU, a GPU and a TPU without a change.

# %% tags=["install"]
# Installs dinojax, with what the accelerator of this machine needs, unless it
# is here. If Colab then asks to restart the session: do, and go on below.
import importlib.util
import os
import shutil
import subprocess
import sys

REPOSITORY = 'https://github.com/example/dinojax'
if importlib.util.find_spec('dinojax') is None:
  extras = 'notebooks'
  driver = shutil.which('nvidia-smi') and subprocess.run(
      ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'],
      capture_output=True, text=True).stdout.split('.')[0]
  if driver and driver.isdigit():  # else there is no GPU in this runtime
    extras += ',cuda13' if int(driver) >= 580 else ',cuda12'
  elif os.path.exists('/dev/vfio/0') or os.path.exists('/dev/accel0'):
    extras += ',tpu'
  subprocess.check_call([sys.executable, '-m', 'pip', 'install', '--quiet',
                         f'dinojax[{extras}] @ git+{REPOSITORY}'])

# %% [markdown]
# `TRAIN` and `TEST` are folders with `images` and `masks` (the number of a class
# in every pixel, 255 where it is not known) and `classes.txt`, a name a line;
# leave them empty for pasted scenes.

# %% tags=["parameters"]
SMOKE = os.environ.get('SMOKE') == '1'  # seconds: only to try the notebook
MODEL = 'runs/demo_smoke' if SMOKE else 'runs/demo'
TRAIN, TEST = '', ''  # such as 'masks:/content/drive/MyDrive/reef/train'
OUT = 'runs/segment_smoke' if SMOKE else 'runs/segment'

# %%
import io
import json
import pathlib

from IPython.display import Image as Shown
from IPython.display import Markdown
from IPython.display import display
import numpy as np
from PIL import Image

import dinojax
from dinojax.data import sources
from dinojax.runs import evaluation
from dinojax.runs import predictions

# %%
if not os.path.exists(MODEL):
  dinojax.train('demo:smoke' if SMOKE else 'demo', MODEL)
dinojax.load(MODEL)

# %% [markdown]
# ## Scenes with masks
#
# Tiles of four photographs fill the regions around four points.

# %%
KINDS = ('coffee', 'chelsea', 'gravel', 'flower')


def paste(folder, split, count, seed):
  """Writes scenes of 96 pixels with their masks."""
  source = sources.open_source(f'photos:{split}')
  tiles = {kind: [] for kind in KINDS}
  for i in range(len(source)):
    record = source[i]
    kind = next((k for k in KINDS if k in source.classes[record.label]), None)
    if kind:
      tiles[kind].append(np.asarray(Image.open(
          io.BytesIO(record.image)).convert('RGB').resize((96, 96))))
  rng, place = np.random.default_rng(seed), pathlib.Path(folder)
  for part in ('images', 'masks'):
    (place / part).mkdir(parents=True, exist_ok=True)
  (place / 'classes.txt').write_text('\n'.join(KINDS))
  y, x = np.mgrid[:96, :96]
  for i in range(count):
    points = rng.uniform(0, 96, (4, 2))
    near = np.argmin([(y - a) ** 2 + (x - b) ** 2 for a, b in points], axis=0)
    mask = rng.permutation(4)[near]
    layers = np.stack([tiles[kind][rng.integers(len(tiles[kind]))]
                       for kind in KINDS])
    pixels = np.take_along_axis(layers, mask[None, ..., None], axis=0)[0]
    Image.fromarray(pixels).save(place / f'images/{i:03d}.png')
    Image.fromarray(mask.astype(np.uint8)).save(place / f'masks/{i:03d}.png')
  return f'masks:{folder}'


if not TRAIN:
  TRAIN = paste(f'{OUT}/train', 'train', 16 if SMOKE else 200, 0)
  TEST = paste(f'{OUT}/test', 'validation', 4 if SMOKE else 40, 1)

# %% [markdown]
# ## Two heads, one table
#
# mIoU is the mean over classes of what prediction and truth share, as a part of
# what either covers. The backbone stays as it is: all that is learned is in the
# head, which is kept for later.

# %%
common = {'train': TRAIN, 'test': (TEST,), 'short_px': 96, 'crop_px': 96,
          'steps': 4 if SMOKE else 300, 'batch_size': 4 if SMOKE else 8,
          'warmup_steps': 2 if SMOKE else 30}
heads = {
    'linear': common | {'learning_rates': (1e-2,), 'weight_decays': (1e-4,)},
    'queries': common | {
        'recipe': 'masks', 'num_queries': 8, 'num_blocks': 2,
        'layers': 2 if SMOKE else 4,
        'num_points': 64 if SMOKE else 512, 'learning_rates': (1e-3,)}}
for name, section in heads.items():
  display(Markdown(f'### {name}\n\n' + evaluation.evaluate(
      evaluation.Request(models=[MODEL], protocols=['segmentation'],
                         config={'segmentation': section},
                         out=f'{OUT}/{name}'))))

# %% [markdown]
# ## Seen
#
# The image, what is true, and what the head says.

# %%
for name in heads:
  for file in sorted(pathlib.Path(f'{OUT}/{name}/pictures').glob('*.png'))[:2]:
    display(Shown(filename=str(file)))

# %% [markdown]
# ## On other images
#
# `predict` writes a mask for every image of a folder, with a picture beside it.

# %%
head, = pathlib.Path(f'{OUT}/queries/heads').iterdir()
print(predictions.predict(predictions.Request(
    model=MODEL, head=str(head), source=f'folder:{TEST.partition(":")[2]}/images',
    out=f'{OUT}/predicted')))
with open(f'{OUT}/predicted/{predictions.LINES}') as file:
  line = json.loads(file.readline())
display(Shown(filename=f'{OUT}/predicted/{line["picture"]}'))

# %% [markdown]
# ## Where to go from here
#
# - Objects and panoptic segments in COCO's formats: the protocol `segments`.
# - Depth: `depth`, with linear heads and DPT. The page on heads in the
#   documentation says which head is for what.
# - The same from a shell: `dinojax evaluate --protocols=segmentation`, and
#   `dinojax predict`.

# %% [markdown]
# # 3 · Continue from weights
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/example/dinojax/blob/main/colabs/03_continue_from_weights.ipynb)
#
# Weights that were trained on a hundred million photographs know much that
# your images need, and lack what only your images show. This notebook goes on
# from them, with the same losses, without labels: first new heads learn to
# speak for the backbone, then everything learns together.
#
# It runs on a CPU, a GPU and a TPU without a change.

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
# `WEIGHTS` is anything that `dinojax.load` takes, with or without heads.
# `IMAGES` is your folder; of the classes of its sub-folders k-NN accuracy is
# measured, before and after. Left empty, tiles of installed photographs are
# used; and in a smoke run a small network is trained first to start from.

# %% tags=["parameters"]
SMOKE = os.environ.get('SMOKE') == '1'  # seconds: only to try the notebook
WEIGHTS = '' if SMOKE else 'hf:facebook/dinov2-small'
IMAGES = ''
STEPS = 6 if SMOKE else 500
NAME = os.path.basename(IMAGES.rstrip('/')) or 'photographs'
WORKDIR = f'runs/continued_{NAME}' + ('_smoke' if SMOKE else '')

# %%
from IPython.display import display

import dinojax
from dinojax.configs import common
from dinojax.runs import catalog
from dinojax.runs import patch_picture
from dinojax.runs.report import curves

# %%
if not WEIGHTS:
  WEIGHTS = 'runs/start'
  dinojax.train('vits:smoke', WEIGHTS)
start = dinojax.load(WEIGHTS)
start

# %% [markdown]
# ## A config of the same network
#
# The config must describe the network whose weights it starts from: `vits` is
# the ViT-S/14 of DINOv2, `vitb` and `vitl14` the next sizes. What does not fit
# is an error that names the field. Positions are resampled to the new crops.

# %%
config = catalog.load('vits:smoke' if SMOKE else 'vits')
if IMAGES:  # every tenth image is measured on, and not trained
  config.data.train = f'kept:folder:{IMAGES}'
  config.data.validation = f'held_out:folder:{IMAGES}'
elif not SMOKE:
  config.data.train = 'photos:train'
  config.data.validation = 'photos:validation'
if not SMOKE:
  config.data.num_workers = 2
  config.train.batch_size = 32
  common.set_duration(config.train, 'total', steps=STEPS)
  common.set_duration(config.schedules.lr, 'warmup', steps=STEPS / 10)
  common.set_duration(
      config.schedules.teacher_temperature, 'warmup', steps=STEPS / 3)
  common.set_duration(config.knn, 'every', steps=STEPS / 5)
  common.set_duration(config.checkpoint, 'every', steps=STEPS / 5)

# %% [markdown]
# ## Start gently
#
# The weights come without the heads that a loss needs. New heads are random,
# and a gradient through a random head destroys what the backbone knows: so the
# backbone waits while the heads learn, and the learning rate is a tenth of what
# a training from scratch takes. If k-NN falls by more points than
# `max_knn_drop`, the run stops and says so, before a night is lost.

# %%
config.init.source = WEIGHTS
config.init.freeze_backbone_epochs = 0.0
config.init.freeze_backbone_steps = STEPS / 5
config.init.max_knn_drop = 100.0 if SMOKE else 5.0
if not SMOKE:
  config.schedules.lr = dict(config.schedules.lr, peak=2e-4)

result = dinojax.train(config, WORKDIR)
result

# %% [markdown]
# ## Before and after
#
# The dashed line *given weights* is where it started.

# %%
for chart in curves.of_run(WORKDIR)[:2]:
  display(chart)

# %%
patch_picture.draw([WEIGHTS, WORKDIR], patch_picture.Look(
    images=IMAGES or None, count=2, grid=8 if SMOKE else 16))

# %% [markdown]
# ## Where to go from here
#
# - More classes, more images, more steps: what helps is measured by k-NN above.
# - Both student and teacher of a whole training checkpoint:
#   `config.init.part = 'both'`.
# - The same from a shell: `dinojax train --config=vits
#   --config.init.source=WEIGHTS --config.data.train=folder:DIR
#   --workdir=runs/more`.

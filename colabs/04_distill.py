# %% [markdown]
# # 4 · Distil a large model into a small one
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/example/dinojax/blob/main/colabs/04_distill.ipynb)
#
# A small network learns more from a large one that is trained already than from
# images alone: the answers of the large one tell it what is alike. The teacher
# is frozen; its heads speak for it, and the student learns to give the same
# answers, for whole images and for patches.
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
# The teacher is a run of ours, with its heads. If `TEACHER` is not there, the
# demo is trained first: three minutes on two cores.

# %% tags=["parameters"]
SMOKE = os.environ.get('SMOKE') == '1'  # seconds: only to try the notebook
TEACHER = 'runs/demo_smoke' if SMOKE else 'runs/demo'
WORKDIR = 'runs/distilled_smoke' if SMOKE else 'runs/distilled'

# %%
import time

from IPython.display import display
import jax
import numpy as np

import dinojax
from dinojax.runs import catalog
from dinojax.runs import patch_picture
from dinojax.runs.report import curves

# %%
name = 'demo:smoke' if SMOKE else 'demo'
if not os.path.exists(TEACHER):
  dinojax.train(name, TEACHER)
teacher = dinojax.load(TEACHER)
teacher

# %% [markdown]
# ## A student of half the width and half the depth
#
# The images and crops stay those of the teacher, and so do the prototypes: they
# are the words in which the teacher answers. Everything that makes the task
# harder than it must be is left out: no stochastic depth.

# %%
config = catalog.load(name)
config.distillation.source = TEACHER
config.model.embed_dim = config.model.embed_dim // 2
config.model.depth = config.model.depth // 2
config.model.num_heads = 1
if config.model.ffn_hidden:
  config.model.ffn_hidden = config.model.ffn_hidden // 2
result = dinojax.train(config, WORKDIR)
result

# %% [markdown]
# ## What it learned, and how fast it is

# %%
for chart in curves.of_run(WORKDIR)[:2]:
  display(chart)

# %%
student = dinojax.load(WORKDIR)
side = config.crops.global_px
images = student.normalize(np.random.default_rng(0).integers(
    0, 256, (16, side, side, 3), dtype=np.uint8))


def milliseconds(model):
  """The time of one batch, compiled before."""
  jax.block_until_ready(model(images).cls)
  began = time.perf_counter()
  for _ in range(10):
    jax.block_until_ready(model(images).cls)
  return 100 * (time.perf_counter() - began)


for label, model in (('teacher', teacher), ('student', student)):
  size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
  print(f'{label}: {size / 1e6:.3f} M parameters, {milliseconds(model):.1f} ms '
        'for 16 images')

# %% [markdown]
# The teacher, and beside it the student:

# %%
patch_picture.draw([TEACHER, WORKDIR], patch_picture.Look(
    count=2 if SMOKE else 4, grid=8 if SMOKE else 32))

# %% [markdown]
# ## Where to go from here
#
# - Several students of one teacher at a time, ViTs and ConvNeXts: the teacher
#   answers once for all. See the configs `vit7b_distill` and
#   `convnext_distill`.
# - The same from a shell: `dinojax train --config=CONFIG
#   --config.distillation.source=runs/teacher --workdir=runs/student`.

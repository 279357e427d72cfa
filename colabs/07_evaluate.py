# %% [markdown]
# # 7 · How good are these features, and at what?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/example/dinojax/blob/main/colabs/07_evaluate.ipynb)
#
# Frozen features are judged by what little is needed on top of them: nearest
# neighbours, a linear layer, a mask handed on from frame to frame. This
# notebook measures a model by several of these protocols, beside the same
# network before it was trained, and shows the numbers with their intervals.
# `dinojax evaluate` does the same from a shell.
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
# `MODEL` is a run, a file of weights, or a name of the Hub. `TRAIN` and `TEST`
# are folders whose sub-folders are classes; leave them empty to measure on the
# images of the run. If the run is not there, the demo is trained first: three
# minutes on two cores.

# %% tags=["parameters"]
SMOKE = os.environ.get('SMOKE') == '1'  # seconds: only to try the notebook
MODEL = 'runs/demo_smoke' if SMOKE else 'runs/demo'
TRAIN, TEST = '', ''  # such as '/content/drive/MyDrive/plankton/test'
OUT = 'runs/evaluation_smoke' if SMOKE else 'runs/evaluation'

# %%
import json

from IPython.display import HTML
from IPython.display import Markdown
from IPython.display import display

import dinojax
from dinojax.runs import evaluation
from dinojax.runs.report import evaluation as pages

# %%
if not os.path.exists(MODEL) and not TRAIN:
  dinojax.train('demo:smoke' if SMOKE else 'demo', MODEL)
dinojax.load(MODEL)

# %% [markdown]
# ## One table
#
# k-NN asks whether the nearest images are of the same class; the linear probe,
# whether a linear layer tells classes apart; retrieval, whether images of a
# class come first in a ranking; RankMe needs no labels, and counts the
# directions that features use. In brackets: the middle 95 % of a bootstrap over
# the test images. Run the cell again: nothing is measured twice.

# %%
request = evaluation.Request(
    models=[MODEL], protocols=['knn', 'linear', 'retrieval', 'rankme'],
    config={'knn': {'k': (5, 20)}}, cache=True,
    train=TRAIN or None, test=[TEST] if TEST else [], predictions=True,
    out=OUT)
display(Markdown(evaluation.evaluate(request)))

# %% [markdown]
# `cache=True` computes features once and trains the heads on them; without it
# they learn from random crops, as in the papers, which takes longer.
#
# A number belongs to its *key*: the protocol with all of its values, its sets
# and the size of the images. Numbers of two keys are never in one line.

# %% [markdown]
# ## By the size of the images
#
# Features of another resolution are other features: each size has heads of its
# own.

# %%
px = dinojax.load(MODEL).config.patch_px
sizes = [str(px * n) for n in ((3, 4) if SMOKE else (4, 6, 8, 12))]
evaluation.evaluate(evaluation.Request(
    models=[MODEL], protocols=['knn'], config={'knn': {'k': (20,)}},
    train=TRAIN or None, test=[TEST] if TEST else [], sizes=sizes, out=OUT))
with open(f'{OUT}/results.jsonl') as file:
  rows = [json.loads(line) for line in file]
for chart in pages.curves([
    row for row in rows if row['metric'] == 'top-1, k 20']):
  display(chart)

# %% [markdown]
# ## Which images does it get wrong?
#
# `predictions/` has what was measured of every image.

# %%
linear = next(row for row in rows if row['protocol'] == 'linear')
name = linear['rows'].split('/')[1].removesuffix('.npz')
with open(f'{OUT}/predictions/{name}.csv') as file:
  lines = file.read().splitlines()
print('\n'.join(lines[:6]))

# %% [markdown]
# ## Everything on one page

# %%
with open(f'{OUT}/results.html') as file:
  page = file.read()
display(HTML(page[page.index('<main>'):page.index('</main>')]))

# %% [markdown]
# ## Where to go from here
#
# - Masks and depths of your own: `segmentation` and `depth`; videos: `video`
#   and `tracking`; pairs: `correspondence`. The page on evaluation in the
#   documentation says how their folders look.
# - Several models, `models=[A, B]`, make one table.
# - The same from a shell: `dinojax evaluate --model=MODEL --suite=quick`.

# %% [markdown]
# # 8 · From a pile of images to a training set
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/example/dinojax/blob/main/colabs/08_curate.ipynb)
#
# Half of what made DINOv2 and DINOv3 good is their data: copies taken out,
# images drawn evenly from all that a pile shows. This notebook plants copies
# among photographs, finds them, clusters the rest, draws from the clusters, and
# looks at all of it. `dinojax curate` does the same from a shell, and the same
# recipes curate billions of images.
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
# `POOL` is a folder, or anything else that holds images: `tar:GLOB`,
# `img2dataset:DIR`, `parquet:GLOB`. Empty: the embedded photographs are written
# to one, with copies planted among them.

# %% tags=["parameters"]
SMOKE = os.environ.get('SMOKE') == '1'  # seconds: only to try the notebook
POOL = ''  # such as 'tar:/content/drive/MyDrive/crawl/*.tar'
WORKDIR = 'runs/curated_smoke' if SMOKE else 'runs/curated'
IMAGES = 60 if SMOKE else 600

# %%
import io
import pathlib

from IPython.display import HTML
from IPython.display import Markdown
from IPython.display import display
from PIL import Image

from dinojax.configs.curate import folder as recipe
from dinojax.data import sources
from dinojax.runs import curation

# %%
if not POOL:
  pile = pathlib.Path(WORKDIR + '_pile')
  pile.mkdir(parents=True, exist_ok=True)
  photographs = sources.open_source('photos:train')
  for i in range(IMAGES):
    data = photographs[i * len(photographs) // IMAGES].image
    (pile / f'{i:04d}.png').write_bytes(data)
    if i % 10 == 0:  # a copy: smaller, and stored anew with losses
      image = Image.open(io.BytesIO(data)).convert('RGB')
      image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(
          pile / f'{i:04d}-copy.jpg', quality=70)
  Image.new('RGB', (64, 64), 'white').save(pile / 'blank.png')
  (pile / 'broken.jpg').write_bytes(b'no image')
  POOL = f'folder:{pile}'

# %% [markdown]
# ## A recipe
#
# Stages one after the other, each reading what those before it left. Descriptors
# by which copies are told, and features by which images are alike, are mean
# colours here, which need no weights; `sscd:FILE` and `model:NAME` are those of
# the papers.

# %%
config = recipe.get_config()
config.ingest.pools = (POOL,)
config.ingest.rows_per_shard = 500
config.hash.bits = 0  # equal pixels only: a hash is learned from some thousand
config.dedup.threshold, config.dedup.floor = 0.97, 0.95
config.cluster.levels = (12, 4) if SMOKE else (80, 16)
config.cluster.iterations = 10
config.sample.images = IMAGES // 2
display(Markdown(f'stages: {", ".join(config.stages)}'))

# %% [markdown]
# ## What it would take
#
# Before anything runs: what do ten million images need, on a machine with 64
# cores? Hours, bytes, and what they hang on.

# %%
print(curation.curate(curation.Request(config, plan='1e7', machine='cpu:64')))

# %% [markdown]
# ## Run it
#
# A line for every stage. Run the cell again: what is done is kept. Change a
# value, and what depends on it is made anew.

# %%
print(curation.curate(curation.Request(config, WORKDIR)))

# %% [markdown]
# ## Look
#
# The funnel, what each stage dropped and why, copies beside what stays,
# clusters, and how evenly they are drawn from.

# %%
page = pathlib.Path(WORKDIR, 'curation.html').read_text()
display(HTML(page[page.index('<main>'):page.index('</main>')]))

# %% [markdown]
# ## Why is an image there?
#
# Each record has a line: its name, its cluster, and address, licence and caption
# where the pool has them.

# %%
import pyarrow.parquet

table, = pathlib.Path(WORKDIR, 'materialize').glob(
    '*/records-sample/000000.parquet')
pyarrow.parquet.read_table(table).slice(0, 5).to_pylist()

# %% [markdown]
# `--config.data.train=curated:DIR` trains on it, as it is:
# `dinojax train --config=vits --config.data.train=curated:DIR`. In
# [docs/curate.md](../docs/curate.md): every stage, benchmarks that are kept out,
# retrieval, clusters of machines.

"""Protocols through dinojax and through PyTorch alone: the same numbers.

Backbones are those of transformers with random weights, saved as it saves
them, and read by dinojax.load. The evaluation in PyTorch is written here: its
own preprocessing, neighbours, batch norm, windows and areas.
"""

import functools
import io

import jax
import numpy as np
from PIL import Image
import pytest

from bench import peers
import dinojax
from dinojax.data import sources
from dinojax.evals import knn as knn_functions
from dinojax.evals import protocol
from dinojax.evals import registry
from dinojax.evals import windows as windows_lib
from dinojax.features import preprocessing
from dinojax.features import spec as spec_lib
from dinojax.kernels import resample
from dinojax.metrics import segmentation as areas_lib
from dinojax.probes.tasks import classify
from dinojax.probes.tasks import segment

try:
  import torch
except ImportError:
  torch = None  # TORCH=0 leaves these tests out and says so
pytestmark = pytest.mark.torch
NUM_CLASSES, K, TEMPERATURE = 3, 5, 0.07


@functools.cache
def made(name):
  """A model of transformers, and the side of its patches."""
  t = peers.transformers()
  torch.manual_seed(0)
  shared = {'hidden_size': 48, 'num_hidden_layers': 3, 'num_attention_heads': 2}
  if name == 'v2':
    model = t.Dinov2Model(t.Dinov2Config(
        **shared, patch_size=14, image_size=56))
  else:
    model = t.DINOv3ViTModel(t.DINOv3ViTConfig(
        **shared, patch_size=16, image_size=64, intermediate_size=96,
        num_register_tokens=4))
  with torch.no_grad():
    for parameter in model.parameters():  # none of them at its start
      parameter.add_(0.05 * torch.randn_like(parameter))
  return model.eval(), {'v2': 14, 'v3': 16}[name]


@pytest.fixture(scope='module', params=['v2', 'v3'])
def pair(request, tmp_path_factory):
  """The model there, the same here, and the side of its patches."""
  model, patch = made(request.param)
  folder = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(folder)
  return model, dinojax.load(folder), patch


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Drawn pictures of three classes, in colour and grain, of many sizes."""
  root = tmp_path_factory.mktemp('pictures')
  rng = np.random.default_rng(3)
  for part, count in (('train', 8), ('test', 6)):
    for label in range(NUM_CLASSES):
      (root / part / f'c{label}').mkdir(parents=True)
      for i in range(count):
        size = rng.integers(60, 140, 2)
        waves = np.sin(np.arange(size[1])[None] * (0.1 + 0.1 * label))
        pixels = 90 + 60 * waves[..., None] + rng.normal(
            0, 40, (*size, 3)) + 20 * np.eye(3)[label]
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
            root / part / f'c{label}' / f'{i}.png')
  return root


# --- the evaluation in PyTorch ---


def torch_pixels(source, patch, model):
  """[b, c, y, x] as torchvision prepares them, and labels."""
  t = peers.torchvision().transforms
  transform = t.Compose([
      t.Resize(5 * patch, interpolation=t.InterpolationMode.BICUBIC),
      t.CenterCrop(4 * patch), t.ToTensor(),
      t.Normalize(model.mean, model.std)])
  records = [source[i] for i in range(len(source))]
  return torch.stack([transform(Image.open(io.BytesIO(
      record.image)).convert('RGB')) for record in records]), torch.tensor(
          [record.label for record in records])


def torch_layers(model, pixels):
  """[b, n, d] tokens of every block after the final norm, without registers.
  """
  blocks = model.encoder.layer if hasattr(model, 'encoder') else (
      model.model.layer)
  norm = model.layernorm if hasattr(model, 'layernorm') else model.norm
  kept = []
  hooks = [block.register_forward_hook(lambda _, __, out: kept.append(
      out[0] if isinstance(out, tuple) else out)) for block in blocks]
  with torch.no_grad():
    model(pixels)
    layers = [norm(tokens) for tokens in kept]
  for hook in hooks:
    hook.remove()
  registers = getattr(model.config, 'num_register_tokens', 0)
  return [torch.cat([x[:, :1], x[:, 1 + registers:]], 1) for x in layers]


def torch_neighbours(train, labels, test):
  """[q] classes by the weighted votes of the nearest."""
  unit = torch.nn.functional.normalize
  cosine, index = (unit(test) @ unit(train).T).topk(K, dim=1)
  weight = torch.softmax(cosine / TEMPERATURE, dim=1)
  votes = torch.zeros(len(test), NUM_CLASSES).scatter_add_(
      1, labels[index], weight)
  return votes.argmax(1).numpy()


def torch_segment(model, pixels, head, size, crop=None, stride=None):
  """[y, x] classes of an image: batch norm, linear layer, windows."""
  tensors = {name: torch.from_numpy(np.asarray(value)) for part in (
      head['params'], head['stats']) for name, value in part.items()}
  norm = torch.nn.functional.batch_norm
  grow = functools.partial(torch.nn.functional.interpolate, mode='bilinear',
                           align_corners=False)
  patch = model.config.patch_size

  def predict(part):
    tokens = torch_layers(model, part)[-1][:, 1:]
    grid = [n // patch for n in part.shape[2:]]
    maps = tokens.transpose(1, 2).reshape(len(part), -1, *grid)
    maps = norm(maps, tensors['mean'], tensors['variance'], tensors['scale'],
                tensors['shift'], False, 0.0, 1e-5)
    logits = torch.nn.functional.conv2d(
        maps, tensors['kernel'].T[..., None, None], tensors['bias'])
    return grow(logits, part.shape[2:])

  with torch.no_grad():
    if crop is None:
      return grow(predict(pixels), size)[0].argmax(0).numpy()
    height, width = pixels.shape[2:]
    total = torch.zeros(1, NUM_CLASSES, height, width)
    count = torch.zeros(1, 1, height, width)
    for y in range(max(height - crop + stride - 1, 0) // stride + 1):
      for x in range(max(width - crop + stride - 1, 0) // stride + 1):
        bottom, right = (min(n * stride + crop, side) for n, side in (
            (y, height), (x, width)))
        window = (..., slice(max(bottom - crop, 0), bottom),
                  slice(max(right - crop, 0), right))
        total[window] += predict(pixels[window])
        count[window] += 1
    return grow(total / count, size)[0].argmax(0).numpy()


def torch_iou(predictions, labels):
  """[k] intersection over union of all images together."""
  known = torch.from_numpy(labels) != 255
  truth, guess = torch.from_numpy(labels)[known], torch.from_numpy(
      predictions)[known]
  return np.array([
      float(((truth == k) & (guess == k)).sum()
            / ((truth == k) | (guess == k)).sum())
      for k in range(NUM_CLASSES)])


# --- both sides ---


def test_neighbours_predict_the_same(pair, folders, tmp_path):
  theirs, ours, patch = pair
  opened = {part: sources.open_source(f'folder:{folders / part}')
            for part in ('train', 'test')}
  job = protocol.Job(
      ours, {name: (source,) for name, source in opened.items()},
      preprocessing.Preprocessing(5 * patch, 4 * patch), tmp_path)
  measured, = registry.run('knn', job, registry.read({
      'knn': {'k': (K,), 'temperature': TEMPERATURE}}))
  (train, labels), (test, answers) = (
      torch_pixels(opened[part], patch, ours) for part in ('train', 'test'))
  cls = lambda pixels: torch_layers(theirs, pixels)[-1][:, 0]
  want = torch_neighbours(cls(train), labels, cls(test))
  np.testing.assert_array_equal(
      measured.rows[f'top-1, k {K}'], want == answers.numpy())
  # Not only the same hits.
  ours_cls = {part: protocol.features(
      job, opened[part], {'cls': spec_lib.FeatureSpec()},
      registry.PROTOCOLS['knn'].cls) for part in opened}
  scores = knn_functions.scores(
      ours_cls['train']['cls'], ours_cls['train']['label'],
      ours_cls['test']['cls'], ks=(K,), temperature=TEMPERATURE,
      num_classes=NUM_CLASSES)[K]
  np.testing.assert_array_equal(scores.argmax(1), want)
  assert len(set(want)) > 1  # no constant answer


@pytest.mark.parametrize('layers, average', [(1, False), (1, True), (3, True)])
def test_linear_logits_are_the_same(pair, folders, layers, average):
  theirs, ours, patch = pair
  source = sources.open_source(f'folder:{folders / "test"}')
  pixels, _ = torch_pixels(source, patch, ours)
  task = classify.Classify(NUM_CLASSES, (layers,), (average,))
  choice, wanted = next(iter(task.choices.items()))
  head = task.init(jax.random.key(0), wanted.widths(ours.config), choice)
  head['params'] |= {'bias': np.arange(3.0, dtype=np.float32),
                     'weight': 100 * head['params']['weight']}
  images = np.asarray(ours.preprocess(
      [source[i].image for i in range(len(source))], resize_px=5 * patch,
      crop_px=4 * patch))
  got, _ = task.outputs(head, ours.read(images, wanted), {}, None)
  blocks = torch_layers(theirs, pixels)
  joined = [x[:, 0] for x in blocks[-layers:]]
  if average:
    joined.append(blocks[-1][:, 1:].mean(1))
  params = {name: torch.from_numpy(np.array(value))
            for name, value in head['params'].items()}
  want = torch.cat(joined, 1) @ params['weight'].T + params['bias']
  assert want.std() > 0.5
  np.testing.assert_allclose(got, want.numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('windows', [False, True])
def test_segmentation_overlaps_are_the_same(pair, windows):
  theirs, ours, patch = pair
  rng = np.random.default_rng(4)
  size = (61, 83)
  task = segment.Segment(num_outputs=NUM_CLASSES, width=48)
  head = {
      'params': {'scale': rng.uniform(0.5, 2, 48), 'shift': rng.normal(size=48),
                 'kernel': rng.normal(size=(48, NUM_CLASSES)),
                 'bias': np.zeros(NUM_CLASSES)},
      'stats': {'mean': 0.3 * rng.normal(size=48),
                'variance': rng.uniform(0.5, 2, 48)}}
  head = jax.tree.map(lambda x: x.astype(np.float32), head)
  crop, stride = (4 * patch, 3 * patch) if windows else (None, None)

  def predict(images):
    maps = ours.read(np.asarray(images), task.choices[segment.CHOICE])
    logits, _ = task.outputs(head, maps, {}, None)
    return np.asarray(resample.resize_linear(logits, images.shape[1:3]))

  total, guesses, truths = 0, [], []
  for _ in range(4):
    image = np.repeat(np.repeat(rng.normal(
        size=(1, 5, 7, 3)), patch, 1), patch, 2).astype(np.float32)
    image += 0.3 * rng.normal(size=image.shape).astype(np.float32)
    truth = rng.integers(0, NUM_CLASSES, size)
    truth[:5] = areas_lib.IGNORED
    if windows:
      logits = windows_lib.slid(predict, image[0], windows_lib.Windows(
          crop, stride), size)
    else:
      logits = resample.resize_linear(predict(image), size)[0]
    total = total + areas_lib.areas(
        np.asarray(logits).argmax(-1), truth, NUM_CLASSES)
    guesses.append(torch_segment(
        theirs, torch.from_numpy(image.transpose(0, 3, 1, 2).copy()), head,
        size, crop, stride))
    truths.append(truth)
  want = torch_iou(np.stack(guesses), np.stack(truths))
  got = areas_lib.scores(total)
  assert all(0 < x < 1 for x in want) and want.std() > 0
  np.testing.assert_allclose(got['per_class_iou'], want, atol=1e-6)
  assert got['mIoU'] == pytest.approx(want.mean(), abs=1e-6)

"""What evaluations compute."""

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.evals import knn
from dinojax.evals import linear
from dinojax.evals import windows
from dinojax.features import nearest as nearest_lib
from dinojax.features import pixels
from dinojax.features import spec
from dinojax.kernels import resample
from dinojax.losses import depth
from dinojax.metrics import classification as metrics
from dinojax.metrics import depth as depth_errors
from dinojax.metrics import retrieval
from dinojax.metrics import segmentation as segmentation_metrics
from dinojax.models.dense import bins
from dinojax.probes.tasks import segment
from tests import golden
from tests.kinds import dense
from tests.kinds import losses

nhwc = lambda x: jnp.asarray(x.transpose(0, 2, 3, 1))
nchw = lambda x: np.asarray(x).transpose(0, 3, 1, 2)


@golden.kind('knn_classifier')
def knn_classifier(case):
  c, x = case.config, case.inputs
  train, labels = x['train_features'], x['train_labels']
  out = {}

  def add(name, ks, test=x['test_features'], labels=labels, **options):
    got = knn.scores(train, labels, test, ks=ks, temperature=c['T'],
                     num_classes=c['num_classes'], **options)
    out.update({f'{name}/probas_k{k}': got[k] for k in ks})
    return got

  add('v2', c['ks'])
  got = add('v3', c['ks'])
  for k in c['ks']:
    add(f'v3_ks_only_{k}', (k,))
    out[f'top1_accuracy_k{k}'] = metrics.accuracy(got[k], x['test_labels'])
  add('v3_onehot_labels', c['ks'], labels=np.eye(
      c['num_classes'], dtype=np.float32)[labels])
  first = out_rows(case, 'v3_skip_first_nn_on_train')
  add('v3_skip_first_nn_on_train', c['ks'], train[:first], skip_first=True)
  similarity, index = nearest_lib.nearest(
      train, x['test_features'], max(c['ks']))
  return out | {'topk_sims': similarity, 'topk_labels': labels[index]}


def out_rows(case, prefix):
  return next(len(value) for key, value in case.outputs.items()
              if key.startswith(prefix))


@golden.kind('classification_metrics')
def classification_metrics(case):
  case.config.skip('num_classes')
  x = case.inputs
  logits, targets = x['logits'], x['targets']
  functions = {
      'mean_accuracy': lambda k: metrics.accuracy(logits, targets, k),
      'mean_per_class_accuracy': lambda k: metrics.mean_per_class_accuracy(
          logits, targets, k),
      'per_class_accuracy': lambda k: metrics.per_class_accuracy(
          logits, targets, k),
      'imagenet_real': lambda k: metrics.any_match_accuracy(
          logits, x['real_targets'], k),
      'mrr': lambda k: metrics.mean_reciprocal_rank(logits, targets),
      'map_voc2007': lambda k: metrics.voc2007_map(
          x['multilabel_probs'], x['multilabel_targets'])}
  out = {}
  for name in case.outputs:
    _, metric, top = name.split('/')
    out[name] = functions[metric](int(top.removeprefix('top-')))
  return out


@golden.kind('retrieval_map')
def retrieval_map(case):
  x = case.inputs
  scores = retrieval.similarities(x['query'], x['database'])
  whole = retrieval.average_precision(scores, x['positives'])
  revisited = retrieval.average_precision(
      scores, x['positives'], junk=x['junk'], trapezoid=True)
  return {'ap_sklearn': whole, 'map_sklearn': retrieval.mean(whole),
          'map_torchmetrics': retrieval.mean(whole),
          'ap_revisitop_trapezoid_junk_removed': revisited,
          'map_revisitop': retrieval.mean(revisited)}


@golden.kind('linear_probe_features')
def linear_probe_features(case):
  c, x, out = case.config, case.inputs, {}
  layers = [{'cls': x[f'layer{i}/cls'], 'patches': x[f'layer{i}/patch']}
            for i in range(c['layers'])]
  for key in x:
    if not key.endswith('/weight'):
      continue
    name = key.removesuffix('/weight')  # 'n4_avgpool1'
    count, average = name.removeprefix('n').split('_avgpool')
    out[name] = spec.probe_input(layers, int(count), average == '1')
    out[f'{name}_logits'] = linear.logits(
        out[name], x[key].T, x[f'{name}/bias'])
  for version in ('v2', 'v3'):
    names = case.outputs[f'{version}_classifier_names']
    counts = c.get('n_last_blocks_list') or list(dict.fromkeys(
        int(str(name).split('_')[1]) for name in names))
    grid = linear.grid(
        version, c['batch_size'], c['learning_rates'], counts)
    out[f'{version}_classifier_names'] = [linear.name(g) for g in grid]
    out[f'{version}_lrs'] = np.float32([g['lr'] for g in grid])
  return out


@golden.kind('segmentation_miou')
def segmentation_miou(case):
  c, out = case.config, {}
  c.only('ignore_index', segmentation_metrics.IGNORED)
  for name, labels in (('plain', 'label'),
                       ('reduce_zero', 'label_zero_is_background')):
    areas = np.stack([
        segmentation_metrics.areas(predicted, label, c['num_classes'],
                           zero_is_background=name == 'reduce_zero')
        for predicted, label in zip(
            case.inputs['pred'], case.inputs[labels], strict=True)])
    out[f'{name}/areas'] = areas
    for key, value in segmentation_metrics.scores(areas.sum(0)).items():
      # The case holds −1 for a class that is absent.
      out[f'{name}/{key}'] = np.nan_to_num(value, nan=-1)
  return out


@golden.kind('segmentation_inference')
def segmentation_inference(case):
  c, x = case.config, nhwc(case.inputs['x'])
  c.skip('classes')
  kernel = jnp.asarray(case.inputs['conv_weight'].transpose(2, 3, 1, 0))

  def convolve(image, stride):
    return jax.lax.conv_general_dilated(
        image, kernel, (stride, stride), ((1, 1), (1, 1)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  @jax.jit
  def predict(image):
    return resample.resize_linear(convolve(image, 2), image.shape[1:3])

  views = windows.Windows(c['crop'], c['stride'])
  infer = lambda key, flip=False: [windows.slid(
      predict, image, views, case.outputs[key].shape[2:], flip=flip)
                                   for image in np.asarray(x)]
  maps = [{'map': nhwc(case.inputs[key])} for key in sorted(case.inputs)
          if key.startswith('feat')]
  head = dense.head_of(case.weights['head'], 'conv')
  task = segment.Segment(
      num_outputs=head['params']['kernel'].shape[1],
      width=head['params']['kernel'].shape[0])
  logits, _ = jax.jit(lambda maps: task.outputs(head, maps, {}, None))(maps)
  size = case.outputs['linear_head_predict'].shape[2:]
  return {
      'slide': nchw(infer('slide')),
      'make_inference_slide_softmax': nchw(jax.nn.softmax(jnp.asarray(
          infer('make_inference_slide_softmax')))),
      'make_inference_slide_flip': nchw(
          infer('make_inference_slide_flip', flip=True)),
      'linear_head_eval': nchw(logits),
      'linear_head_predict': nchw(task.pixels.resize(logits, size)),
      'multiscale': pixels.multi_scale(
          jax.jit(lambda image: quarters(convolve(image, 1))), x)}


def quarters(maps):
  """The toy model's pooling: mean of overlapping quarters, [b, k·4]."""
  halves = lambda n: (slice(0, -(-n // 2)), slice(n // 2, n))
  rows, columns = (halves(n) for n in maps.shape[1:3])
  pooled = jnp.stack([maps[:, r, q].mean((1, 2))
                      for r in rows for q in columns], axis=-1)
  return pooled.reshape(pooled.shape[0], -1)


@golden.kind('depth_metrics')
def depth_metrics(case):
  c, x = case.config, case.inputs
  plane = lambda key: x[key][:, 0]
  target, predicted = plane('gt'), plane('pred')
  assert tuple(c['metric_order']) == depth_errors.METRICS
  out = {'metric_names': list(depth_errors.METRICS)}
  for name, crop in (('FULL', 'full'), ('NYU_EIGEN', 'nyu_eigen')):
    valid = depth_errors.valid_pixels(target, crop=crop)
    out[f'{name}/valid_mask'] = valid[:, None]
    out |= {f'{name}/image{i}': list(depth_errors.metrics(*arrays).values())
            for i, arrays in enumerate(zip(
                predicted, target, valid, strict=True))}
  out |= jax.jit(bins_to_depth)(nhwc(x['bin_logits']))
  jobs = {}

  def add(name, loss, predicted, target, **known):
    jobs[name] = (
        lambda p, t: loss(p, t, depth.known(t, **known)), predicted, target)

  both = x['pred'], x['gt']
  add('v3_sigloss', depth.scale_invariant, *both)
  add('v3_sigloss_warm', lambda *args: depth.scale_invariant(
      *args, with_variance=False), *both)
  add('v3_gradient', lambda *args: depth.gradient(*args, log=False), *both)
  add('v3_gradientlog', depth.gradient, *both)
  both, reach = (x['v2_pred'], x['v2_gt']), c['v2_max_depth']
  add('v2_sigloss', depth.scale_invariant, *both, max_depth=reach)
  add('v2_gradient_on_4d_as_in_training', lambda *args: depth.gradient(
      *args, axes=(0, 1)), *both, max_depth=reach)
  add('v2_gradient_on_single_HxW', depth.gradient,
      *(plane[1, 0] for plane in both), max_depth=reach)
  for name, (value, grad) in losses.with_gradients(jobs).items():
    out[f'loss/{name}'] = value
    out[f'grad/{name}'] = golden.Within(grad, rtol=1e-4, of_largest=1e-5)
  return out


def bins_to_depth(logits):
  """Every way from classes to metres, between 1 mm and 10 m."""
  reach, out = dict(min_depth=1e-3, max_depth=10.0), {}
  for spacing in ('linear', 'log'):
    depths = bins.bins(logits.shape[-1], spacing=spacing, **reach)
    for normalize in ('linear', 'softmax', 'sigmoid'):
      out[f'features_to_depth/{spacing}_{normalize}'] = bins.expected_depth(
          logits, depths, normalize=normalize)[:, None]
  out['features_to_depth/regression'] = bins.regressed_depth(
      logits, min_depth=1e-3)[:, None]
  return out

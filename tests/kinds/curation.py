"""Curation of data: copies, clusters and samples of a pool."""

import numpy as np

from dinojax.curate import balance
from dinojax.curate import components
from dinojax.curate import copies
from dinojax.curate import kmeans
from dinojax.curate import pca_hash
from dinojax.curate import retrieval
from dinojax.curate import seeds
from dinojax.models import sscd
from tests import golden


@golden.kind('balanced_sampling_allocation')
def balanced_sampling_allocation(case):
  sizes, times = case.inputs['sizes'], case.config['multiplicity']
  parents, children = np.nonzero(sizes >= 0)
  caps = times * sizes[parents, children]
  filled = balance.fill(caps, parents, case.inputs['budget'])
  base, candidates = np.full(sizes.shape, -1), np.zeros(sizes.shape, bool)
  base[parents, children] = filled.base
  candidates[parents, children] = caps > filled.level[parents]
  return {'level': filled.level, 'base': base, 'remainder': filled.remainder,
          'candidates': candidates}


@golden.kind('hierarchical_sampling_counts')
def hierarchical_sampling_counts(case):
  c, out = case.config, {}
  points, *above = [case.inputs[f'level{i + 1}/assignment']
                    for i in range(len(c['clusters']))]
  sizes = np.bincount(points, minlength=c['clusters'][0])
  nearest = {'closest': np.arange(len(points)), 'random': None}[c['strategy']]

  def draw(target, seed):
    levels = balance.cluster_budgets(
        sizes, above, target, multiplicity=c['multiplicity'], seed=seed)
    return levels, balance.point_counts(
        points, levels[0], multiplicity=c['multiplicity'], rank=nearest,
        seed=seed)

  flat = sizes
  for assignment in above:
    flat = np.bincount(assignment, flat).astype(int)
  out['flat_size_top'] = flat
  for target in c['targets']:
    name = f'target_{target}'
    if c['strategy'] == 'closest':
      out[f'{name}/multiplicity'] = draw(target, 0)[1]
      continue
    tries = [draw(target, seed) for seed in range(400)]
    counts = np.stack([np.bincount(
        points, multiple, len(sizes)) for _, multiple in tries])
    for levels, multiple in tries:
      assert multiple.max() <= c['multiplicity']
      assert [level.sum() for level in levels] == [multiple.sum()] * len(levels)
    out |= {f'{name}/total': counts[0].sum(),
            f'{name}/top_level': _top_level(case, flat, target)}
    want = {key: case.outputs[f'{name}/level1_{key}']
            for key in ('mean', 'min', 'max')}
    assert (counts.min(0) >= want['min'] - 1).all()
    assert (counts.max(0) <= want['max'] + 1).all()
    spread = (want['max'] - want['min']) / 2
    assert (np.abs(counts.mean(0) - want['mean'])
            <= 5 * spread / 20 + 0.05).all()
    out |= {f'{name}/level1_{key}': want[key] for key in want}
  return out


def _top_level(case, flat, target):
  return balance.fill(case.config['multiplicity'] * flat,
                      np.zeros(len(flat), int), [target]).level[0]


@golden.kind('connected_components')
def connected_components(case):
  c, x, out = case.config, case.inputs, {}
  for threshold in c['thresholds']:
    over = x['score'] > np.float32(threshold)
    label = components.labels(x['a'][over], x['b'][over], c['nodes'])
    kept = copies.kept(label)
    out |= {f'above_{threshold}/label': label, f'above_{threshold}/keep': kept,
            f'above_{threshold}/count': kept.sum(),
            f'above_{threshold}/largest': np.bincount(label).max()}
  return out


@golden.kind('decontamination')
def decontamination(case):
  c, x, out = case.config, case.inputs, {}
  pool, reference = x['pool'], x['reference']
  rows = np.concatenate([pool, reference]).astype(np.float64)
  cosine = rows @ rows.T
  np.fill_diagonal(cosine, -2)
  nearest = np.zeros_like(cosine, bool)
  np.put_along_axis(nearest, np.argsort(-cosine)[:, :c['k']], True, axis=1)
  for name, seen in (('exact', True), ('knn', nearest | nearest.T)):
    a, b = np.nonzero(np.triu((cosine > c['threshold']) & seen))
    gone = copies.removed(a, b, len(pool), len(reference))
    out |= {f'{name}/transitive/removed': gone.transitive,
            f'{name}/direct/removed': gone.direct,
            f'{name}/only_by_chaining': (
                gone.transitive & ~gone.direct).sum()}
  scores = cosine[:len(pool), len(pool):]
  return out | {'best_reference': scores.argmax(1),
                'best_score': scores.max(1)}


@golden.kind('knn_retrieval_counts')
def knn_retrieval_counts(case):
  k, scores = case.config['k'], case.inputs['query'] @ case.inputs['pool'].T
  ranked = np.argsort(-scores, kind='stable')
  index = ranked[:, :k]
  found = retrieval.of_samples(index, 'keep_multiplicity')
  times = np.zeros(len(case.inputs['pool']), int)
  times[found.rows] = found.counts
  taken = retrieval.next_nearest(ranked, k)
  return {'index': index, 'score': np.take_along_axis(scores, index, 1),
          'multiplicity': times, 'total': times.sum(),
          'unique': retrieval.of_samples(index).rows,
          'collision_rate': found.collision_rate,
          'next_nearest/index': taken,
          'next_nearest/total': (taken >= 0).sum()}


@golden.kind('cluster_retrieval')
def cluster_retrieval(case):
  c, x = case.config, case.inputs
  squares = lambda rows: (
      (rows[:, None].astype(np.float64) - x['centroids']) ** 2).sum(-1)
  pool, query = squares(x['pool']), squares(x['query'])
  clusters, num = pool.argmin(1), len(x['centroids'])
  counts = np.bincount(query.argmin(1), minlength=num)
  take = lambda cap: retrieval.of_clusters(
      counts, clusters, pool.min(1), more_than=c['more_than'],
      per_cluster=c['per_cluster'], cap=cap)
  all_ = take(None)
  chosen = np.zeros(num, bool)
  chosen[all_.clusters] = True
  return {
      'query_count': counts, 'pool_count': np.bincount(clusters, minlength=num),
      'chosen': chosen, 'taken_per_cluster': all_.taken,
      'cluster_order': all_.clusters, 'rows': all_.rows,
      **{f'cap_{cap}/rows': take(cap).rows for cap in c['caps']}}


@golden.kind('pca_hash')
def pca_hash_kind(case):
  c, x = case.config, case.inputs
  c.skip('luma')
  thumbnails = {name: np.stack([
      pca_hash.thumbnail(pixels.astype(np.uint8), c['side'])
      for pixels in x[name]]) for name in ('train_images', 'images')}
  hasher = pca_hash.fit(thumbnails['train_images'], c['bits'])
  got = hasher.bits(thumbnails['images'])
  return {'thumbnail': thumbnails['images'][0], 'mean': hasher.mean,
          'components': hasher.components, 'threshold': hasher.thresholds,
          'projection': hasher.projections(thumbnails['images']),
          'bits': np.unpackbits(got, axis=1).astype(bool), 'packed': got,
          'hamming': pca_hash.distances(got, got)}


@golden.kind('gem_pooling')
def gem_pooling(case):
  x, floor = case.inputs['x'].transpose(0, 2, 3, 1), case.config['floor']
  return {f'p{power:g}': sscd.gem(x, power, floor)
          for power in case.config['powers']}


@golden.kind('sscd_resnet_forward')
def sscd_resnet_forward(case):
  c, out = case.config, {}
  network = sscd.load(case.weights[''], case.meta['name'])
  config = sscd.config_of(case.weights[''])
  assert config.bottleneck == (c['block'] == 'bottleneck')
  assert list(config.blocks) == c['layers'] and config.dims == c['dims']
  assert config.stem == c['stem_width'] and config.groups == c['groups']
  assert list(config.inner) == [
      width * c['width_per_group'] // 64 * c['groups'] for width in c['planes']]
  c.only('gem_power', sscd.GEM_POWER)
  for name, x in case.inputs.items():
    last = network.map(x.transpose(0, 2, 3, 1))
    pooled = sscd.gem(last)
    row = network.fc(pooled)
    out |= {f'{name}/layer4': last.transpose(0, 3, 1, 2),
            f'{name}/gem': pooled, f'{name}/before_l2': row,
            f'{name}/embedding': sscd.unit(row)}
  return out


@golden.kind('hierarchical_kmeans_given_init')
def hierarchical_kmeans_given_init(case):
  c, out, points = case.config, {}, case.inputs['points']
  above = None
  for level, k in enumerate(c['clusters'], 1):
    initial = points[case.inputs[f'level{level}/initial_index']]
    assert len(initial) == k
    got = kmeans.fit(
        points, initial, iterations=c['iterations'], empty=c['empty'])
    label, _ = kmeans.assign(points, got.centroids)
    np.testing.assert_array_equal(np.bincount(label, minlength=k), got.counts)
    out |= {f'level{level}/{name}': value for name, value in (
        ('centroids', got.centroids), ('assignment', label),
        ('counts', got.counts), ('inertia', got.inertia))}
    above = label if above is None else label[above]
    points = got.centroids
  return out | {'flat_top_assignment': above}


@golden.kind('hierarchical_kmeans_resampling')
def hierarchical_kmeans_resampling(case):
  c, x, out, points = case.config, case.inputs, {}, case.inputs['points']
  c.only('strategy', 'closest')
  for level, (k, count) in enumerate(zip(
      c['clusters'], c['points_per_cluster'], strict=True), 1):
    chosen = np.arange(len(points))
    for run in range(c['resamples'] + 1 if count > 1 else 1):
      initial = points[chosen][x[f'level{level}/initial_index{run}']]
      got = kmeans.fit(points[chosen], initial, empty='keep',
                       iterations=c['iterations'])
      label, distance = kmeans.assign(points, got.centroids)
      out[f'level{level}/clustered_rows{run}'] = len(chosen)
      chosen = seeds.members(label, distance, k, count)
    out |= {f'level{level}/centroids': got.centroids,
            f'level{level}/assignment': label}
    points = got.centroids
  return out


@golden.kind('kmeans_plusplus_given_draws')
def kmeans_plusplus_given_draws(case):
  assert case.config['trials'] == case.inputs['draws'].shape[1]
  return {'index': seeds.plus_plus(
      case.inputs['points'], case.config['clusters'],
      first=int(case.inputs['first_index']), draws=case.inputs['draws'])}

"""From a raw pile of images to a corpus: filters, copies, clusters, samples."""

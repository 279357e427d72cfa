"""Pools of images: folders, tar files, Parquet, records."""

"""Photometric augmentation on the device."""

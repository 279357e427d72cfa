"""The loop of any training: checkpoints, optimizers, schedules, metrics log.

Knows a Trainable (trainable.py) and nothing of DINO.
"""

"""Losses as functions; they know no models."""

"""Prediction: scores any images with a trained detector; writes a table, overlays and a report."""

from devnet_jax.prediction.predict import Prediction, predict

__all__ = ["Prediction", "predict"]

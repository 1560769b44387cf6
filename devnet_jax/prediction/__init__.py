"""A trained detector over any images: a table of scores, overlays, and a report."""

from devnet_jax.prediction.predict import Prediction, predict

__all__ = ["Prediction", "predict"]

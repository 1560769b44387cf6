"""Backbones: feature extractors with ImageNet weights."""

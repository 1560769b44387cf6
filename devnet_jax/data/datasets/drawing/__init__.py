"""Draws the surfaces and defects of `synthetic_textures`."""

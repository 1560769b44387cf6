"""The drawing code of `synthetic_textures`: surfaces and defects."""

"""One TFDS builder a data set: its raw layout is known there and nowhere else."""

from collections.abc import Mapping

from devnet_jax.data.builders.anomaly_dataset import AnomalyDatasetBuilder
from devnet_jax.data.builders.brain_mri import BrainMri
from devnet_jax.data.builders.elpv import Elpv
from devnet_jax.data.builders.image_folder import ImageFolder
from devnet_jax.data.builders.mvtec_ad import MvtecAd
from devnet_jax.data.builders.synthetic_textures import SyntheticTextures

DATASETS: Mapping[str, type[AnomalyDatasetBuilder]] = {
    builder.name: builder for builder in (BrainMri, Elpv, ImageFolder, MvtecAd, SyntheticTextures)
}

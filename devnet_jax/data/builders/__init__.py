"""One TFDS builder a data set: its raw layout is known there and nowhere else."""

from collections.abc import Mapping

from devnet_jax.data.builders.aitex import Aitex
from devnet_jax.data.builders.anomaly_dataset import AnomalyDatasetBuilder
from devnet_jax.data.builders.brain_mri import BrainMri
from devnet_jax.data.builders.elpv import Elpv
from devnet_jax.data.builders.head_ct import HeadCt
from devnet_jax.data.builders.hyper_kvasir import HyperKvasir
from devnet_jax.data.builders.image_folder import ImageFolder
from devnet_jax.data.builders.mastcam import Mastcam
from devnet_jax.data.builders.mvtec_ad import MvtecAd
from devnet_jax.data.builders.optical import Optical
from devnet_jax.data.builders.sdd import Sdd
from devnet_jax.data.builders.synthetic_textures import SyntheticTextures
from devnet_jax.data.builders.visa import Visa

DATASETS: Mapping[str, type[AnomalyDatasetBuilder]] = {
    builder.name: builder
    for builder in (
        Aitex,
        BrainMri,
        Elpv,
        HeadCt,
        HyperKvasir,
        ImageFolder,
        Mastcam,
        MvtecAd,
        Optical,
        Sdd,
        SyntheticTextures,
        Visa,
    )
}

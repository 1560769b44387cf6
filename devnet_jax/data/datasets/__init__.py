"""The registry of data sets, `DATASETS`, and one TFDS builder for each."""

from collections.abc import Mapping

from devnet_jax.data.datasets.aitex import Aitex
from devnet_jax.data.datasets.brain_mri import BrainMri
from devnet_jax.data.datasets.builder import AnomalyDatasetBuilder
from devnet_jax.data.datasets.elpv import Elpv
from devnet_jax.data.datasets.head_ct import HeadCt
from devnet_jax.data.datasets.hyper_kvasir import HyperKvasir
from devnet_jax.data.datasets.image_folder import ImageFolder
from devnet_jax.data.datasets.image_list import ImageList
from devnet_jax.data.datasets.mastcam import Mastcam
from devnet_jax.data.datasets.mvtec_ad import MvtecAd
from devnet_jax.data.datasets.optical import Optical
from devnet_jax.data.datasets.sdd import Sdd
from devnet_jax.data.datasets.synthetic_textures import SyntheticTextures
from devnet_jax.data.datasets.visa import Visa

DATASETS: Mapping[str, type[AnomalyDatasetBuilder]] = {
    builder.name: builder
    for builder in (
        Aitex,
        BrainMri,
        Elpv,
        HeadCt,
        HyperKvasir,
        ImageFolder,
        ImageList,
        Mastcam,
        MvtecAd,
        Optical,
        Sdd,
        SyntheticTextures,
        Visa,
    )
}

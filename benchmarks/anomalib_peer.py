"""Trains and measures anomalib's PatchCore for patchcore.py; prints one line of JSON.

python benchmarks/anomalib_peer.py FOLDER WEIGHTS SIZE SHARE

SHARE is the share of the feature vectors that its coreset keeps; anomalib's default is 0.1.

It is run by a Python that has anomalib installed, which may be another one than this package's.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

STARTED = time.perf_counter()

import torch  # noqa: E402
import torchvision  # noqa: E402
from anomalib.data import Folder  # noqa: E402
from anomalib.engine import Engine  # noqa: E402
from anomalib.models import Patchcore  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

BATCH_SIZE, ROUNDS = 32, 3


def rate(network: torch.nn.Module, images: torch.Tensor) -> float:
    """Returns how many images a second a network takes, after one batch that does not count."""
    with torch.inference_mode():
        network(images)
        started = time.perf_counter()
        for _ in range(ROUNDS):
            network(images)
    return ROUNDS * len(images) / (time.perf_counter() - started)


def main(folder: Path, weights: Path, size: int, share: float) -> None:
    """Trains on train/good, scores the test images, and prints the measures."""
    defects = sorted(p.name for p in (folder / "test").iterdir() if p.name != "good")
    data = Folder(
        name="parts",
        root=folder,
        normal_dir="train/good",
        abnormal_dir=[f"test/{defect}" for defect in defects],
        normal_test_dir="test/good",
        train_batch_size=BATCH_SIZE,
        eval_batch_size=BATCH_SIZE,
        num_workers=2,
        val_split_mode="same_as_test",
    )
    model = Patchcore(
        backbone="resnet18",
        layers=("layer2", "layer3"),
        pre_trained=False,
        coreset_sampling_ratio=share,
        pre_processor=Patchcore.configure_pre_processor(image_size=(size, size)),
    )
    # The names are torchvision's; the extractor has no layer after the third.
    extractor = model.model.feature_extractor.feature_extractor
    missing, _ = extractor.load_state_dict(load_file(weights), strict=False)
    assert not [name for name in missing if "num_batches" not in name], missing
    with tempfile.TemporaryDirectory() as root:
        # Without validation no test picture is spent on it, and scores are not clipped.
        engine = Engine(
            accelerator="cpu",
            devices=1,
            default_root_dir=root,
            logger=False,
            limit_val_batches=0,
        )
        engine.fit(model, datamodule=data)
        seconds = time.perf_counter() - STARTED
        scores, labels = [], []
        for batch in engine.predict(model, datamodule=data):
            scores += batch.pred_score.flatten().tolist()
            labels += batch.gt_label.flatten().int().tolist()
        file = Path(engine.export(model, export_type="torch"))
        n_bytes = file.stat().st_size
    images = torch.rand(BATCH_SIZE, 3, size, size)
    model.eval()
    network = torchvision.models.resnet18(weights=None).eval()
    result = {
        "seconds": seconds,
        "images_per_second": rate(model.model, images),
        "forward_per_second": rate(network, images),
        "auroc": roc_auc_score(labels, scores),
        "bytes": n_bytes,
        "memory_vectors": len(model.model.memory_bank),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))

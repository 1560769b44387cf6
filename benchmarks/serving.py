"""Compares the speed of examples/serve.py under many clients with scoring without HTTP.

pip install -e ".[serve]" && python benchmarks/serving.py --model=model.devnet --images=FOLDER \
  --output=serving.json

Without HTTP, one process decodes the same files with a thread per core and scores them in batches.
The clients run on the same cores as the service.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import itertools
import json
import multiprocessing
import shlex
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from devnet_jax.data.decode import load_image
from devnet_jax.launchers.local import HOST, free_port
from devnet_jax.runtime.host_devices import cpu_model, n_cores
from devnet_jax.runtime.startup import prepare
from devnet_jax.runtime.versions import software_versions

BATCH = 32
SERVICE = Path(__file__).parents[1] / "examples" / "serve.py"
WARM_UP_SECONDS = 3.0


def offline_rate(model: str, files: list[bytes], seconds: float) -> tuple[float, int]:
    """Returns the images per second of this process without HTTP, and the image size."""
    prepare(batch_size=1)
    from devnet_jax.export.read import ExportedDetector

    detector = ExportedDetector.load(model)
    endless = itertools.cycle(files)
    with ThreadPoolExecutor(n_cores()) as pool:

        def decode() -> list:
            settings = detector.preprocessing
            return [
                pool.submit(load_image, next(endless), "image", settings) for _ in range(BATCH)
            ]  # fmt: skip

        def score(decoding: list) -> None:
            detector.score(np.stack([image.result() for image in decoding]))

        score(decode())  # compiles
        following, n, start = decode(), 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            current, following = following, decode()
            score(current)
            n += BATCH
        return n / (time.perf_counter() - start), detector.image_size


async def client(port: int, files: list[bytes], first: int, begin: float, end: float) -> Counter:
    """Posts one image after another; counts the answers between `begin` and `end` by status."""
    statuses: Counter = Counter()
    reader, writer = await asyncio.open_connection(HOST, port)
    for i in itertools.count(first):
        body = files[i % len(files)]
        length = f"Content-Length: {len(body)}"
        writer.write(f"POST /score HTTP/1.1\r\nHost: {HOST}\r\n{length}\r\n\r\n".encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.split("content-length:")[1].split()[0]))
        now = time.perf_counter()
        if now > end:
            writer.close()
            return statuses
        if now > begin:
            statuses[int(head.split()[1])] += 1
    raise AssertionError("unreachable")


async def load(port: int, files: list[bytes], clients: int, seconds: float) -> Counter:
    """Runs clients and counts their answers by status; a broken connection counts as status 0."""
    begin = time.perf_counter() + WARM_UP_SECONDS
    each = (client(port, files, i, begin, begin + seconds) for i in range(clients))
    results = await asyncio.gather(*each, return_exceptions=True)
    statuses: Counter = Counter()
    for result in results:
        statuses += result if isinstance(result, Counter) else Counter({0: 1})
    return statuses


def resident_mib(process: int) -> float:
    """Returns the resident memory of a process in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def serve_and_measure(model: str, files: list[bytes], clients: int, seconds: float) -> dict:
    """Starts the service, measures it under load, and stops it."""
    port = free_port()
    command = [sys.executable, str(SERVICE), f"--model={model}", f"--port={port}"]
    with subprocess.Popen(
        [*command, f"--max_batch={BATCH}"], stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        try:
            if not service.stdout.readline().startswith("serving"):
                raise SystemExit("error: the service did not start")
            time.sleep(0.5)  # the line is printed just before the socket listens
            before = resident_mib(service.pid)
            statuses = asyncio.run(load(port, files, clients, seconds))
            after = resident_mib(service.pid)
        finally:
            service.terminate()
        return {
            "images_per_second": statuses[200] / seconds,
            "errors": statuses.total() - statuses[200],
            "memory_mib": before,
            "memory_growth_mib": after - before,
            "exit_status": service.wait(timeout=60),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compares serving over HTTP with scoring without HTTP."
    )
    parser.add_argument("--model", required=True, help="exported detector")
    parser.add_argument("--images", required=True, help="folder of PNG files, searched recursively")
    parser.add_argument("--output", required=True, help="JSON file of the results")
    parser.add_argument("--clients", type=int, default=64, help="number of clients")
    parser.add_argument("--seconds", type=float, default=30, help="duration of each part")
    options = parser.parse_args()
    files = [path.read_bytes() for path in sorted(Path(options.images).rglob("*.png"))[:256]]
    if not files:
        parser.error(f"--images={options.images}: there is no PNG file")
    # In a separate process, which ends before the service starts.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        measured = process.submit(offline_rate, options.model, files, options.seconds)
        offline, size = measured.result()
    served = serve_and_measure(options.model, files, options.clients, options.seconds)
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"cpu": cpu_model(), "cores": n_cores()},
        "versions": software_versions(),
        "image_size": size,
        "clients": options.clients,
        "seconds": options.seconds,
        "n_files": len(files),
        "mean_file_bytes": round(sum(map(len, files)) / len(files)),
        "offline_images_per_second": offline,
        "served": served,
        "ratio": served["images_per_second"] / offline,
    }
    Path(options.output).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

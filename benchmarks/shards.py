"""Build shards and say what it costs: throughput beside the encoder's own, memory, first shard.

A count of samples flows in (20,000 is what the documented numbers were measured with). First the
encoder alone is timed on pictures already drawn and prepared; then the same encoder builds, in a
process of its own so that peak memory is the builder's; then it builds again from the cache. A
table and a JSON file flow out. CPU time is told beside wall time; it leaves out other work on the
machine, and the process that draws.

    python benchmarks/shards.py --samples 20000 --out shards.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from saccade.config.schema import ModelConfig
from saccade.config.shards import ShardsConfig, ShardSource
from saccade.data.shards.builder import Builder
from saccade.data.shards.sources import open_sources
from saccade.models.shard_encoder import TowerEncoder

MB = 1e6
CODE = Path(torch.__file__).parent


def settings(arguments: argparse.Namespace, folder: Path) -> ShardsConfig:
    """Half scenes, half pages of code that every machine has."""
    half = arguments.samples // 2
    return ShardsConfig(
        path=folder,
        side=arguments.side,
        sources=[
            ShardSource(type="scenes", limit=arguments.samples - half),
            ShardSource(type="code", path=CODE, limit=half),
        ],
        batches_per_shard=arguments.batches_per_shard,
    )


def open_builder(arguments: argparse.Namespace, folder: Path) -> Builder:
    """The builder that is measured."""
    torch.set_num_threads(arguments.threads)
    config = settings(arguments, folder)
    model = ModelConfig(name=arguments.model, device=arguments.device)
    return Builder(
        config, mixture=open_sources(config), encoder=TowerEncoder(model, side=config.side)
    )


def encoder_alone(made: Builder, *, batches: int) -> dict[str, float]:
    """Samples per second of the encoder on prepared pixels."""
    size = made.config.batch_size
    samples = [made.mixture[i] for i in range(size * batches)]
    prepared = made.encoder.prepare([sample.draw() for sample in samples])
    made.encoder.encode(prepared[:size])
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(prepared), size):
        made.encoder.encode(prepared[start : start + size])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"per_wall_second": len(prepared) / wall, "per_cpu_second": len(prepared) / cpu}


def peak_mb(*, children: bool = False) -> float:
    """Most memory this process, or the largest of its finished children, has held."""
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    return resource.getrusage(who).ru_maxrss * 1024 / MB


def measure_build(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build here; called in a process of its own."""
    made = open_builder(arguments, folder)
    ready_mb, cpu = peak_mb(), time.process_time()
    summary = made.build(rebuild=True)
    return {
        **summary.to_json(),
        "cpu_seconds": time.process_time() - cpu,
        "ready_mb": ready_mb,
        "peak_mb": peak_mb(),
        "drawer_peak_mb": peak_mb(children=True),
    }


def build_apart(words: list[str], folder: Path) -> dict[str, Any]:
    """Run `measure_build` in a process of its own."""
    command = [sys.executable, __file__, *words, "--build", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone-batches", type=int, default=40)
    parser.add_argument("--batches-per-shard", type=int, default=100)
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write JSON there")
    parser.add_argument("--build", type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.out is not None and given.out.is_dir():
        parser.error(f"--out: {given.out} is a folder; name a file in it")
    return given


def rows(alone: dict[str, float], first: dict[str, Any], again: dict[str, Any]) -> dict[str, str]:
    """What is told, in words."""
    early = first["first_shard_seconds"] / first["seconds"]
    share = first["samples_per_second"] / alone["per_wall_second"]
    busy = first["encode_seconds"] / first["seconds"]
    hits = f"{first['cache_hits']} pictures seen before"
    per_cpu = first["built"] / first["cpu_seconds"]
    of_cpu = per_cpu / alone["per_cpu_second"]
    return {
        "encoder alone": f"{alone['per_wall_second']:.1f} samples/s"
        f" ({alone['per_cpu_second']:.1f} per CPU second)",
        "builder": f"{first['samples_per_second']:.1f} samples/s = {share:.0%} of the encoder"
        f" ({hits})",
        "by CPU time": f"{per_cpu:.1f} samples per CPU second = {of_cpu:.0%} of the encoder",
        "time in the encoder": f"{busy:.0%}",
        "first shard": f"after {early:.0%} of the build",
        "peak memory": f"{first['peak_mb']:.0f} MB, {first['peak_mb'] - first['ready_mb']:.0f} MB"
        f" above encoder and sources; the process that draws {first['drawer_peak_mb']:.0f} MB",
        "again from the cache": f"{again['samples_per_second']:.1f} samples/s,"
        f" {again['cache_hits']} hits",
    }


def main() -> int:
    arguments = read_arguments()
    if arguments.build is not None:
        print(json.dumps(measure_build(arguments, arguments.build)))
        return 0
    with tempfile.TemporaryDirectory(prefix="shards-") as folder:
        alone = encoder_alone(
            open_builder(arguments, Path(folder) / "none"), batches=arguments.alone_batches
        )
        target = Path(folder) / "shards"
        first, again = (build_apart(sys.argv[1:], target) for _ in range(2))
    told = rows(alone, first, again)
    print(f"{arguments.samples} samples of {arguments.side} pixels, {arguments.threads} threads")
    for name, value in told.items():
        print(f"{name:22} {value}")
    if arguments.out is not None:
        found = {"alone": alone, "build": first, "again": again, "samples": arguments.samples}
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

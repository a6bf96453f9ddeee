"""Race Quanto against dense layers, torch's own operators and other libraries, taking turns in one run.

    .venv/bin/python bench/race.py --weights int4 --activations bfloat16 --shapes 4096x14336 --json out.json

Each environment is a process of its own (`race_worker.py`) that waits while another one runs; `bench/setup_peers.sh`
makes those of other libraries. Every round asks each contender for a few calls, on weights that rotate through memory,
and measures the roof of the machine (`roof_turns`). A row shows the median of the rounds, their spread, the bytes of
the weight per second, `roof%`: max(bytes / read speed, multiply-adds / peak) in percent of the time, with the median
read speed and the highest peak of the rounds (in the files: of the run), and the largest error of a sample of
elements, relative to the bound that an exact layer keeps.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parent.parent
LLAMA_8B = ["4096x14336", "14336x4096", "4096x4096", "4096x1024", "4096x128256"]
SMOLLM2_135M = ["576x1536", "1536x576", "576x576", "576x192", "576x49152"]
SHAPES = [*LLAMA_8B, *SMOLLM2_135M]
"""K x N of the layers of Llama-3.1-8B and SmolLM2-135M."""
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 512, 2048]
WEIGHTS = ["int8", "int4", "int2", "float8", "float8_e5m2", "float8_e4m3fnuz"]
ACTIVATIONS = ["float32", "bfloat16", "float16", "int8", "float8"]
"""The last two are made from bfloat16 within the layer."""

_SPINNING = 5e-3
"""Seconds that the threads of a process wait for more work before they leave the cores to the next one."""

RACERS = {
    "ours": ("main", "qlinear"),
    "ours, operator": ("main", "operator"),
    "dense": ("main", "dense"),
    "torch int8pack_mm": ("main", "int8pack"),
    "torch int4pack_mm": ("main", "int4pack"),
    "torch _int_mm": ("main", "int_mm"),
    "quanto 0.2.7": ("quanto_0_2_7", "qlinear"),
    "torchao": ("torchao", "torchao"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
}


def enters(racer: str, weights: str, activations: str) -> bool:
    """Whether the racer has anything for the cell."""
    if activations == "float8" and weights in ("int4", "int2"):
        return False
    if activations in ("int8", "float8"):
        peers = {
            "torch _int_mm": (weights, activations) == ("int8", "int8"),
            "torchao": activations == "int8" and weights in ("int8", "int4", "int2"),
            "bitsandbytes": (weights, activations) == ("int8", "int8"),
        }
        known = racer in ("ours", "dense", "quanto 0.2.7")
        return not (activations == "int8" and weights.startswith("float8")) and peers.get(racer, known)
    if racer == "torch int8pack_mm":
        return weights == "int8"
    if racer == "torch int4pack_mm":
        return weights == "int4"
    if racer == "torch _int_mm":
        return False
    if racer == "torchao":
        return weights in ("int8", "int4", "float8", "float8_e5m2")
    # Its 8-bit layer quantizes the activations, so it enters there.
    return weights == "int4" if racer == "bitsandbytes" else True


@dataclass
class Row:
    """What one racer did in one cell."""

    weights: str
    activations: str
    shape: str
    rows: int
    racer: str
    ms: float = 0.0
    spread: float = 0.0  # interquartile range, percent of the median
    gbytes: float = 0.0  # of the weight, per second
    roof: float = 0.0  # percent
    read: float = 0.0  # gigabytes per second that reading alone reached meanwhile
    peak: float = 0.0  # billions of multiply-adds per second that the fastest exact instructions reached meanwhile
    error: float = 0.0  # relative to the bound of an exact layer
    failed: str = ""
    run: int = 0  # index into the runs of the file

    def key(self) -> tuple[Any, ...]:
        return (self.weights, self.activations, self.shape, self.rows, self.racer)


class Process:
    """A program that answers each line with a line of JSON."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,  # an interrupt is for the race, which ends its processes itself
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return json.loads(answer) if answer else {"failed": "its process ended"}

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # of a process that has ended, with requests it never read
            self.process.stdin.close()
        self.process.wait()


def pythons() -> dict[str, Path]:
    """The Python of each environment that is installed; says which are not."""
    found = {"main": ROOT / ".venv/bin/python"}
    for peer in sorted({home for home, _ in RACERS.values()} - {"main"}):
        python = ROOT / "build/peers" / peer / "bin/python"
        if python.exists():
            found[peer] = python
        else:
            print(f"race: {peer} is not installed (bench/setup_peers.sh): it is left out", file=sys.stderr)
    return found


def peak_of(roof: dict[str, float], activations: str) -> float:
    """Multiply-adds per second of the fastest instructions that are exact for these activations."""
    kinds = {"bfloat16": ["bf16"], "float8": ["bf16"], "int8": ["bf16", "int8"]}.get(activations, [])
    return max(roof[kind] for kind in ["fp32", *kinds] if kind in roof)


def share_of_roof(row: Row) -> float:
    """Percent of its time that a layer needs at least, by the read speed and the peak of the row."""
    K, N = map(int, row.shape.split("x"))
    return 100 * max(row.gbytes / row.read, K * N * row.rows / (1e6 * row.peak * row.ms))


class Race:
    """The processes, and the races between them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        worker = [str(ROOT / "bench/race_worker.py"), str(options.threads)]
        self.workers = {home: Process([str(python), *worker]) for home, python in pythons().items()}
        self.roof = Process([str(ROOT / "build/dev/bench/roof_turns"), str(options.threads), str(options.megabytes)])

    def close(self) -> None:
        for process in [*self.workers.values(), self.roof]:
            process.close()

    def versions(self) -> dict[str, str]:
        """Of torch and the library that races, for each environment."""
        return {home: worker.ask(do="versions", contender="")["versions"] for home, worker in self.workers.items()}

    def run(self, weights: str, activations: str, shape: str) -> Iterator[Row]:
        """One cell with every racer that enters it, for all numbers of rows."""
        K, N = map(int, shape.split("x"))
        prepared: dict[str, int] = {}
        for racer, (home, contender) in RACERS.items():
            if home not in self.workers or not enters(racer, weights, activations):
                continue
            if not re.fullmatch(self.options.racers, racer):
                continue
            answer = self.workers[home].ask(
                do="prepare", contender=contender, weights=weights, activations=activations, K=K, N=N,
                megabytes=self.options.megabytes,
            )  # fmt: skip
            if "failed" in answer:
                yield Row(weights, activations, shape, 0, racer, failed=answer["failed"])
            else:
                prepared[racer] = answer["bytes"]
        if not prepared:
            return
        slow: set[str] = set()
        for M in self.options.rows:
            rows = {r: Row(weights, activations, shape, M, r) for r in prepared if r not in slow}
            yield from self._heat(rows, prepared, M)
            slow |= {r for r, row in rows.items() if row.failed or row.ms > 1e3 * self.options.limit}
        for racer in prepared:
            home, contender = RACERS[racer]
            self.workers[home].ask(do="drop", contender=contender)

    def _heat(self, rows: dict[str, Row], sizes: dict[str, int], M: int) -> Iterator[Row]:
        calls, seconds = {}, {racer: [] for racer in rows}  # type: ignore[var-annotated]
        for racer in list(rows):
            first = min((self._ask(racer, "run", M=M, calls=1).get("seconds", 0.0) for _ in range(2)), default=0.0)
            calls[racer] = max(1, min(200, int(2e-3 / first))) if first > 0 else 1
        roofs: list[dict[str, Any]] = []
        start = time.perf_counter()
        while len(roofs) < 3 or (time.perf_counter() - start < self.options.seconds and len(roofs) < 50):
            time.sleep(_SPINNING)
            roofs.append(self.roof.ask(bytes=min(sizes.values())))
            for racer in rows:
                answer = self._ask(racer, "run", M=M, calls=calls[racer])
                rows[racer].failed = answer.get("failed", "")
                seconds[racer].append(answer.get("seconds", float("nan")))
        # Memory is faster at times than at others, for all racers; a peak missed its moment where threads woke late.
        roof = {kind: (statistics.median if kind == "read" else max)(r[kind] for r in roofs) for kind in roofs[0]}
        for racer, row in rows.items():
            if not row.failed:
                self._finish(row, seconds[racer], roof, sizes[racer])
            yield row

    def _finish(self, row: Row, seconds: list[float], roof: dict[str, float], size: int) -> None:
        median = statistics.median(seconds)
        low, _, high = statistics.quantiles(seconds, n=4)
        row.ms = 1e3 * median
        row.spread = 100 * (high - low) / median
        row.gbytes = size / median / 1e9
        row.read, row.peak = roof["read"] / 1e9, peak_of(roof, row.activations) / 1e9
        row.roof = share_of_roof(row)
        answer = self._ask(row.racer, "check", M=row.rows)
        row.error = answer.get("error", float("nan"))

    def _ask(self, racer: str, action: str, **request: Any) -> dict[str, Any]:
        home, contender = RACERS[racer]
        time.sleep(_SPINNING)
        return self.workers[home].ask(do=action, contender=contender, **request)


def print_row(row: Row) -> None:
    """A line of the table."""
    name = f"{row.weights} x {row.activations} {row.shape} M={row.rows}"
    if row.failed:
        print(f"{name:42} {row.racer:18} failed: {row.failed[:120]}", flush=True)
        return
    print(
        f"{name:42} {row.racer:18} {row.ms:10.4f} ms +-{row.spread:5.1f}% {row.gbytes:7.1f} GB/s "
        f"{row.roof:6.1f}% of roof, error {row.error:.2g}",
        flush=True,
    )


def first_line(*command: str) -> str:
    """What a command prints first, or nothing where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return (done.stdout.splitlines() or [""])[0]


def default_megabytes() -> int:
    """9 times the last-level cache, as far as copies of that size for every racer fit into half of the free memory."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    cache = max((int(size.read_text().rstrip("K\n")) for size in sizes), default=32 * 2**10) // 2**10
    available = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    assert available is not None
    wanted, possible = 9 * cache, int(available.group(1)) // 2**10 // 2 // len(RACERS)
    if wanted > possible:
        print(f"race: {possible} MB of copies for each racer, {wanted} would be 9 times the cache", file=sys.stderr)
    return max(64, min(wanted, possible))


def about(options: argparse.Namespace, versions: dict[str, str]) -> dict[str, Any]:
    """What the results of a run are of."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "commit": first_line("git", "describe", "--always", "--dirty", "--exclude", "*"),
        "processor": cpu.group(1) if cpu else "",
        "threads": options.threads,
        "megabytes": options.megabytes,
        "versions": versions,
    }


def raise_peaks(rows: list[Row]) -> None:
    """Count with the highest peak of the run: in a short cell all rounds may have met a thread that woke late."""
    for row in rows:
        peak = max(other.peak for other in rows if other.activations == row.activations)
        if row.failed or peak <= row.peak:
            continue
        row.peak = peak
        row.roof = share_of_roof(row)


def merge(path: Path, run: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """The run and its rows, after those of earlier ones in `path` that they do not replace."""
    earlier = json.loads(path.read_text()) if path.exists() else {"runs": [], "rows": []}
    new = {row.key() for row in rows}
    kept = [row for row in (Row(**row) for row in earlier["rows"]) if row.key() not in new]
    runs = [*earlier["runs"], run]
    for row in rows:
        row.run = len(runs) - 1
    numbers = sorted({row.run for row in kept + rows})
    for row in kept + rows:
        row.run = numbers.index(row.run)
    return {"runs": [runs[number] for number in numbers], "rows": [asdict(row) for row in kept + rows]}


def heat_map(rows: list[Row], path: Path) -> None:
    """A picture: racers in each kind of cell against shapes and rows; the numbers are percent of the roof."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done = [row for row in rows if not row.failed]
    order = {name: index for index, name in enumerate([*WEIGHTS])}
    kinds = sorted({(r.weights, r.activations) for r in done}, key=lambda k: (order[k[0]], ACTIVATIONS.index(k[1])))
    raced = {(r.weights, r.activations, r.racer) for r in done}
    lines = [(*kind, racer) for kind in kinds for racer in RACERS if (*kind, racer) in raced]
    columns = sorted({(SHAPES.index(r.shape), r.rows) for r in done})
    values = [[float("nan")] * len(columns) for _ in lines]
    for r in done:
        values[lines.index((r.weights, r.activations, r.racer))][columns.index((SHAPES.index(r.shape), r.rows))] = (
            r.roof
        )
    figure, axes = pyplot.subplots(figsize=(4 + 0.55 * len(columns), 1.8 + 0.26 * len(lines)))
    image = axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            if value == value:
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7)
    for i in range(1, len(lines)):
        if lines[i][:2] != lines[i - 1][:2]:
            axes.axhline(i - 0.5, color="black", linewidth=0.8)
    for j in range(1, len(columns)):
        if columns[j][0] != columns[j - 1][0]:
            axes.axvline(j - 0.5, color="black", linewidth=0.8)
    axes.set_yticks(range(len(lines)), [f"{w} · {a}: {racer}" for w, a, racer in lines], fontsize=7)
    axes.set_xticks(range(len(columns)), [f"{SHAPES[s]} M={m}" for s, m in columns], rotation=90, fontsize=7)
    axes.set_title("Percent of the roof of each cell", fontsize=9)
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS)
    parser.add_argument("--activations", nargs="+", choices=ACTIVATIONS, default=ACTIVATIONS)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--racers", default=".*", help="regular expression that matches the whole name")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=2.0, help="to spend on each cell")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds of a call after which a racer leaves")
    parser.add_argument("--megabytes", type=int, help="of copies of its weight for each racer (9 times the cache)")
    parser.add_argument("--json", type=Path, help="where to put the results; those of earlier runs stay")
    parser.add_argument("--picture", type=Path, help="where to put the heat map of all results (needs matplotlib)")
    options = parser.parse_args()
    options.megabytes = options.megabytes or default_megabytes()
    return options


def main() -> int:
    """Run the races."""
    options = parse()
    race = Race(options)
    run = about(options, race.versions())
    rows: list[Row] = []
    try:
        for cell in itertools.product(options.weights, options.activations, options.shapes):
            for row in race.run(*cell):
                print_row(row)
                rows.append(row)
    except KeyboardInterrupt:
        print("race: stopped; what it found so far is kept", file=sys.stderr)
    race.close()
    raise_peaks(rows)
    if options.json:
        results = merge(options.json, run, rows)
        options.json.write_text(json.dumps(results, indent=0) + "\n")
        rows = [Row(**row) for row in results["rows"]]
    if options.picture:
        heat_map(rows, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Start-up times, each command in turn in one run: medians with the range, beside `import torch` itself.

python -m benchmarks start_up --runs 9
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ZOO = str(Path(sys.executable).with_name("nlhf-zoo"))
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "nlhf-zoo --help": [ZOO, "--help"],
    "nlhf-zoo --version": [ZOO, "--version"],
    "nlhf-zoo solve --help": [ZOO, "solve", "--help"],
    "nlhf-zoo train --help": [ZOO, "train", "--help"],
    "nlhf-zoo list": [ZOO, "list"],
    "import nlhf_zoo": [sys.executable, "-c", "import nlhf_zoo"],
    "import nlhf_zoo; use it": [sys.executable, "-c", "import nlhf_zoo as nz; nz.MatrixOracle, nz.solve"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each command, after one warm-up")
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for count in range(runs + 1):
        for name, command in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if count:
                seconds[name].append(time.perf_counter() - begun)
    torch = statistics.median(seconds["import torch"])
    print(f"{'command':<26}{'median s':>9}{'min':>8}{'max':>8}{'over import torch':>20}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:<26}{median:>9.3f}{min(times):>8.3f}{max(times):>8.3f}{median - torch:>+20.3f}")


if __name__ == "__main__":
    main()

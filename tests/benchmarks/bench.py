"""All benchmarks: what the networks do by counting, then how long they take here.

python3 dev.py bench --counts [--record]     counts only: exact, and the same on every machine
python3 dev.py bench [--quick] [...]         counts, then times on this processor (bench_nets.py)
python3 dev.py bench --times [...]           times only
python3 dev.py bench --device cuda [--tiny]  the tour of a graphics card, nine minutes at most (bench_card.py)
"""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", action="store_true", help="count only")
    parser.add_argument("--times", action="store_true", help="time only")
    parser.add_argument("--record", action="store_true", help="write the counts anew")
    parser.add_argument("--device", default="cpu", help="cpu, or a graphics card such as cuda")
    parser.add_argument("--tiny", action="store_true", help="the card's tour on tiny networks, to see that it runs")
    options, rest = parser.parse_known_args()

    from comfy.cli_args import args

    args.cpu = options.device == "cpu"
    args.use_pytorch_cross_attention = True
    if options.device != "cpu" or options.tiny:
        import bench_card

        return bench_card.run_tour(options.device, options.tiny)
    import bench_counts

    code = 0 if options.times else bench_counts.run_counts(options.record)
    if options.counts or options.record:
        return code
    import bench_nets

    return code or bench_nets.run_times(rest)


if __name__ == "__main__":
    sys.exit(main())

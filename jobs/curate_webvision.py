"""Curate WebVision, or any WebDataset shards with noisy labels. Without options: the demo on the embedded sample.

python jobs/curate_webvision.py --preset webvision --data 'DIR/train-{00000..00099}.tar' --reference refs.csv --out RUN
ray job submit --working-dir . -- python jobs/curate_webvision.py ...
"""

import sys

from trainref_ray.cli import curate_command

if __name__ == "__main__":
    sys.exit(curate_command(sys.argv[1:], default_preset="webvision"))

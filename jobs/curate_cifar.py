"""Curate CIFAR-10 or CIFAR-100 shards (`jobs/prepare_shards.py` writes them). Without options: the demo.

python jobs/curate_cifar.py --preset cifar10 --data 'DIR/train-*.tar' --test-data 'DIR/test-*.tar' --out RUN
"""

import sys

from trainref_ray.cli import curate_command

if __name__ == "__main__":
    sys.exit(curate_command(sys.argv[1:], default_preset="cifar10"))

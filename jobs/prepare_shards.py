"""Write digits, CIFAR-10/100 or a folder of images as WebDataset shards, with known label noise if wanted.

python jobs/prepare_shards.py --source cifar10 --root DIR --noise sym:0.4 --out SHARDS
"""

import sys

from trainref_ray.cli import prepare_command

if __name__ == "__main__":
    sys.exit(prepare_command(sys.argv[1:]))

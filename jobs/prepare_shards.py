"""Write WebVision 1.0, Animal-10N, CIFAR-10/100, digits or a folder of images as WebDataset shards.

python jobs/prepare_shards.py webvision_mini DIR --out SHARDS
python jobs/prepare_shards.py cifar10 DIR --noise sym:0.4 --out SHARDS
"""

import sys

from trainref_ray.cli import prepare_command

if __name__ == "__main__":
    sys.exit(prepare_command(sys.argv[1:]))

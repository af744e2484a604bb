"""Run this project and its rivals on the same shards, features, references and seeds. Without options: on the demo.

python jobs/compare.py --preset cifar10 --data 'DIR/train-*.tar' --test-data 'DIR/test-*.tar' --seeds 0,1,2 --out OUT
python jobs/compare.py --methods disc,cross_entropy --limit 5000 ...
"""

import sys

from trainref_ray.cli import compare_command

if __name__ == "__main__":
    sys.exit(compare_command(sys.argv[1:], default_preset="cifar10"))

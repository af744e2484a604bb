"""Try settings of a curation with Ray Tune, and rank them by references that are left out.

python jobs/sweep.py --space jobs/sweeps/k.yaml --out SWEEP
python jobs/sweep.py --preset cifar10 --space jobs/sweeps/noise_k.yaml --data 'DIR/train-*.tar' --out SWEEP
"""

import sys

from trainref_ray.cli import sweep_command

if __name__ == "__main__":
    sys.exit(sweep_command(sys.argv[1:]))

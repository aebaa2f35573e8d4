"""accelerate's launcher, without its own account of a trainer that failed: the trainer has told why."""

import sys
from subprocess import CalledProcessError

from accelerate.commands.launch import main
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

if __name__ == "__main__":
    try:
        main()
    except CalledProcessError as error:
        sys.exit(error.returncode)
    except ChildFailedError as error:
        sys.exit(next(iter(error.failures.values())).exitcode)

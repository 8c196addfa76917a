"""A replica without an engine, in a process of its own: joins, beats, and never answers. Takes a credentials file."""

import os
import sys
import time
from pathlib import Path

from kilotron.coordinator.credentials import Credentials
from unit.coordinator.raw_peers import RawReplica


def main() -> None:
    replica = RawReplica(Credentials.from_file(Path(sys.argv[1])), 1000 + os.getpid(), os.getpid())
    while True:
        replica.beat()
        time.sleep(0.1)


if __name__ == "__main__":
    main()

"""A process of test_doctor: a run that takes the only slot of pool `gpu`. Usage: killed_run.py MARKER SECONDS"""

import sys
import time
from pathlib import Path

import dagster as dg

from rlaif_assets.instance import tag_run


@dg.asset(pool="gpu")
def holds_gpu(context: dg.AssetExecutionContext) -> None:
    tag_run(context.instance, context.run.run_id)
    Path(sys.argv[1]).write_text(context.run.run_id)
    time.sleep(float(sys.argv[2]))


if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        dg.materialize([holds_gpu], instance=instance)

"""Detection on a Ray cluster: `mdssd detect --engine ray`, `mdssd.bulk.detect`.

Ray Data hands shards of images to a pool of processes, each with a `Detector`. Each shard gets one
Parquet file. It is written whole or not at all, and a shard that has its file is done, so a job
that is started again writes each image once.
"""

from mdssd.bulk.job import detect
from mdssd.bulk.report import BulkReport
from mdssd.bulk.settings import Pool

__all__ = ["BulkReport", "Pool", "detect"]

"""A file system of an S3 server on this machine, for tests and benchmarks."""

from __future__ import annotations

import pyarrow.fs


def filesystem_of(address: str, bucket: str) -> pyarrow.fs.FileSystem:
    """Connect to a server, and make a bucket in it.

    Args:
        address: host and port.
        bucket: its name.
    """
    filesystem = pyarrow.fs.S3FileSystem(
        access_key="any",
        secret_key="any",
        region="us-east-1",
        scheme="http",
        endpoint_override=address,
        allow_bucket_creation=True,
    )
    filesystem.create_dir(bucket)
    return filesystem

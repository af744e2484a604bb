"""A real S3 server on loopback that checks every request's signature, for tests of object stores."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "bucket"
POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Yields the environment variables with which a client reaches the server and its one bucket."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        _post(f"{url}/moto-api/reset", "")  # what an earlier server of this process held, it holds too
        _check_signatures(url, "inf")  # not yet
        access = {"aws_access_key_id": "anyone", "aws_secret_access_key": "anything"}
        boto3.client("s3", endpoint_url=url, region_name="us-east-1", **access).create_bucket(Bucket=BUCKET)
        iam = boto3.client("iam", endpoint_url=url, region_name="us-east-1", **access)
        iam.create_user(UserName="curator")
        iam.put_user_policy(UserName="curator", PolicyName="s3", PolicyDocument=json.dumps(POLICY))
        key = iam.create_access_key(UserName="curator")["AccessKey"]
        _check_signatures(url, "0")
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }
        _check_signatures(url, "inf")
    finally:
        server.stop()


def _check_signatures(url: str, after_requests: str) -> None:
    _post(f"{url}/moto-api/reset-auth", after_requests)


def _post(url: str, text: str) -> None:
    request = urllib.request.Request(url, text.encode(), {"Content-Type": "text/plain"}, method="POST")
    urllib.request.urlopen(request, timeout=10).close()

"""`make retry STACK=… ID=gen_…`: a new attempt at a failed generation, on the same record.

Stored images stay, answered images are downloaded again, and only upstream calls without an answer are sent again. The
upstream may already have charged for those, so an operator has to start the attempt. The record counts them.
"""

import argparse
import sys
import time

import boto3
from boto3.session import Session
from botocore.exceptions import BotoCoreError, ClientError

from imagegen.aws.generations import DynamoGenerations
from imagegen.aws.quota_counters import DynamoQuotaCounters
from imagegen.aws.sqs import SqsGenerations
from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.generations import is_generation_id
from imagegen.usecases.manage_generation import RetryGeneration
from imagegen.usecases.quota import QuotaReturns
from tools.stacks import find_stack, no_stack, on_one_line, read_stack_name, refuse


def main() -> int:
    parser = argparse.ArgumentParser(prog="make retry", description=__doc__)
    parser.add_argument("--stack", type=read_stack_name, required=True, help="the name of the stack")
    parser.add_argument("--id", type=_generation_id, required=True, help="the generation's id")
    arguments = parser.parse_args()
    try:
        return _retry(boto3.session.Session(), arguments.stack, arguments.id)
    except (BotoCoreError, ClientError) as error:
        return refuse(on_one_line(error))
    except RecordsUnavailableError as error:
        return refuse(on_one_line(error.__cause__ or error))


def _retry(session: Session, stack: str, generation_id: str) -> int:
    if find_stack(session, stack) is None:
        return refuse(no_stack(session, stack))
    pages = session.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
    found = (each for page in pages for each in page["StackResourceSummaries"])
    resources = {each["LogicalResourceId"]: each.get("PhysicalResourceId", "") for each in found}
    if not {"GenerationTable", "GenerationQueue"} <= resources.keys():
        return refuse(f"{stack} has no generations: it is another application's stack")
    table = resources["GenerationTable"]
    records = DynamoGenerations(lambda: session.client("dynamodb"), table, retention_seconds=0)
    counters = DynamoQuotaCounters(lambda: session.client("dynamodb"), table)
    queue = SqsGenerations(
        lambda: session.client("sqs"),
        {"requests": resources["GenerationQueue"], "lines": resources["BatchGenerationQueue"]},
    )

    retry = RetryGeneration(records, QuotaReturns(counters, records), queue, time.time)
    generation = retry.retry(generation_id)
    if generation is None:
        return refuse(
            f"{generation_id} cannot be tried again: it does not exist, has not failed, or was retried 8 times. "
            "If it failed within the last minute, its failure is not published yet: try again in a minute"
        )
    unanswered = sum(call.answer is None for call in generation.calls)
    print(f"{generation.id} is queued again; upstream calls to send: {unanswered} of {len(generation.calls)}")
    return 0


def _generation_id(text: str) -> str:
    if not is_generation_id(text):
        raise argparse.ArgumentTypeError("a generation's id is gen_ and 22 letters, digits, - and _")
    return text


if __name__ == "__main__":
    sys.exit(main())

"""`make retry STACK=… ID=gen_…`: a new attempt at a failed generation, on the same record.

What is stored stays, what was answered is fetched again, and only calls without an answer are sent again. They may have
been paid for, so a person has to ask for it; the record counts them.
"""

import argparse
import sys
import time

import boto3
from boto3.session import Session
from botocore.exceptions import BotoCoreError, ClientError

from imagegen.aws.allowance import DynamoAllowanceCounters
from imagegen.aws.generations import DynamoGenerations
from imagegen.aws.sqs import SqsGenerations
from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.generations import is_generation_id
from imagegen.usecases.manage import retry
from tools.stacks import find_stack, no_stack, read_stack_name


def main() -> int:
    parser = argparse.ArgumentParser(prog="make retry", description=__doc__)
    parser.add_argument("--stack", type=read_stack_name, required=True, help="the name of the stack")
    parser.add_argument("--id", type=_generation_id, required=True, help="the generation's id")
    arguments = parser.parse_args()
    try:
        return _retry(boto3.session.Session(), arguments.stack, arguments.id)
    except (BotoCoreError, ClientError) as error:
        return _refused(" ".join(str(error).split()))
    except RecordsUnavailableError as error:
        return _refused(" ".join(str(error.__cause__ or error).split()))


def _retry(session: Session, stack: str, generation_id: str) -> int:
    if find_stack(session, stack) is None:
        return _refused(no_stack(session, stack))
    pages = session.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
    found = (each for page in pages for each in page["StackResourceSummaries"])
    resources = {each["LogicalResourceId"]: each.get("PhysicalResourceId", "") for each in found}
    if not {"GenerationTable", "GenerationQueue"} <= resources.keys():
        return _refused(f"{stack} has no generations: it is another application's stack")
    table = resources["GenerationTable"]
    records = DynamoGenerations(lambda: session.client("dynamodb"), table, retention_seconds=0)
    counters = DynamoAllowanceCounters(lambda: session.client("dynamodb"), table)
    queue = SqsGenerations(lambda: session.client("sqs"), resources["GenerationQueue"])

    generation = retry(generation_id, records, counters, queue, time.time)
    if generation is None:
        return _refused(
            f"{generation_id} cannot be tried again: it is not there, or it has not failed. "
            "If it failed within the last minute, its end is not published yet: wait for a minute"
        )
    unanswered = sum(call.answer is None for call in generation.calls)
    print(f"{generation.id} waits again; upstream calls to send: {unanswered} of {len(generation.calls)}")
    return 0


def _generation_id(text: str) -> str:
    if not is_generation_id(text):
        raise argparse.ArgumentTypeError("a generation's id is gen_ and 22 letters, digits, - and _")
    return text


def _refused(why: str) -> int:
    print(why, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""`make retry STACK=… ID=gen_…`: a new attempt at a failed generation, on the same record.

What is stored stays, what was answered is fetched again, and only calls without an answer are sent again. They may have
been paid for, so a person has to ask for it; the record counts them.
"""

import argparse
import sys
import time

import boto3

from imagegen.aws.allowance import DynamoAllowanceCounters
from imagegen.aws.generations import DynamoGenerations
from imagegen.aws.sqs import SqsGenerations
from imagegen.manage import retry


def main() -> int:
    parser = argparse.ArgumentParser(prog="make retry", description=__doc__)
    parser.add_argument("stack", help="the name of the stack")
    parser.add_argument("id", help="the generation's id")
    arguments = parser.parse_args()

    session = boto3.session.Session()
    found = session.client("cloudformation").list_stack_resources(StackName=arguments.stack)["StackResourceSummaries"]
    resources = {each["LogicalResourceId"]: each.get("PhysicalResourceId", "") for each in found}
    table = resources["GenerationTable"]
    records = DynamoGenerations(lambda: session.client("dynamodb"), table, retention_seconds=0)
    counters = DynamoAllowanceCounters(lambda: session.client("dynamodb"), table)
    queue = SqsGenerations(lambda: session.client("sqs"), resources["GenerationQueue"])

    generation = retry(arguments.id, records, counters, queue, time.time)
    if generation is None:
        print(
            f"{arguments.id} has not failed, is not there, or its end is not published yet; try again in a minute",
            file=sys.stderr,
        )
        return 1
    unanswered = sum(call.answer is None for call in generation.calls)
    print(f"{generation.id} waits again; upstream calls to send: {unanswered} of {len(generation.calls)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

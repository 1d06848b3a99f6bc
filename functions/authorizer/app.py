"""The gateway's authorizer: bearer credential → caller."""

from typing import Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.bootstrap.authorizer import authorizer
from imagegen.usecases.authorize import authorize

logger = Logger(service="authorizer")


def lambda_handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Answers a TOKEN authorizer's event with a policy.

    The gateway caches the policy by the token, for all routes, so it speaks of the whole stage. A denial is a policy
    too and not an error, so that the gateway caches it and a wrong key costs nothing when it is tried again; the
    template turns its 403 into the 401 that OpenAI's clients expect. What is raised means that nobody can tell just
    now who is calling; the template makes a 503 of it.
    """
    wired = authorizer()
    caller = authorize(
        event["authorizationToken"], clients=wired.clients, path=wired.settings.clients_path, tokens=wired.tokens
    )
    if caller is None:
        logger.info("denied")
    api, stage, *_ = event["methodArn"].split("/")
    policy: dict[str, Any] = {
        "principalId": caller.name if caller else "unknown",
        "policyDocument": {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Action": "execute-api:Invoke",
                    "Effect": "Allow" if caller else "Deny",
                    "Resource": f"{api}/{stage}/*",
                }
            ],
        },
    }
    if caller and caller.images_per_day is not None:
        policy["context"] = {"images_per_day": caller.images_per_day}
    return policy

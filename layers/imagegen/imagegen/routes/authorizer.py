"""API Gateway's Lambda authorizer: bearer credential → caller."""

from collections.abc import Mapping
from typing import Any

import msgspec
from aws_lambda_powertools.logging import Logger

from imagegen.ports import Parameters, TokenVerifier
from imagegen.usecases.authorize import authorize


class Authorizer(msgspec.Struct, frozen=True, eq=False):
    """`path` is the parameter path of the callers' records. `tokens` is `None` if no tokens are accepted."""

    callers: Parameters
    path: str
    tokens: TokenVerifier | None
    logger: Logger

    def policy(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Answers the event of a TOKEN authorizer with a policy.

        API Gateway caches the policy by token, for all routes, so it covers the whole stage. A denial is a policy and
        not an error, so that it is cached and repeating a wrong key costs nothing. The template turns its 403 into the
        401 that OpenAI's clients expect. An exception means that the credential cannot be checked now; the template
        turns it into a 503.
        """
        caller = authorize(event["authorizationToken"], callers=self.callers, path=self.path, tokens=self.tokens)
        if caller is None:
            self.logger.info("denied")
        api, stage, *_ = event["methodArn"].split("/")
        statement = {
            "Action": "execute-api:Invoke",
            "Effect": "Allow" if caller else "Deny",
            "Resource": f"{api}/{stage}/*",
        }
        policy: dict[str, Any] = {
            "principalId": caller.name if caller else "unknown",
            "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
        }
        own = {"images_per_day": caller.images_per_day, "usd_per_day": caller.usd_per_day} if caller else {}
        context = {name: quota for name, quota in own.items() if quota is not None}
        if context:
            policy["context"] = context
        return policy

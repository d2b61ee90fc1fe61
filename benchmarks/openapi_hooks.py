"""What schemathesis is told about `/openapi.json`, by SCHEMATHESIS_HOOKS=openapi_hooks.

Options go to a policy that has them, most of the time. Rules of stopping are made of signals, and signals of signals
without end, which is more than it can make up within hours: here a rule is any object of a kind that there is.
"""

import random
from typing import Any

import schemathesis

from reasonrt.options import option_names
from reasonrt.policies.registry import find_policy, policy_names
from reasonrt.policies.stopping.policy import CommonOptions

_OPTIONS = {
    policy: {name for kind in (*find_policy(policy).option_types(), CommonOptions) for name in option_names(kind)}
    for policy in policy_names()
}


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    properties = raw_schema["components"]["schemas"]["StoppingOptions"]["properties"]
    rules = properties["rule"]["anyOf"][0]["discriminator"]["mapping"]
    signal = {"type": "object", "properties": {"kind": {"enum": ["agreement", "recorded", "tokens_used", "ema"]}}}
    parts = {"kind": {"enum": [*rules]}, "threshold": {"type": "number"}, "signal": signal}
    properties["rule"] = {"anyOf": [{"type": "object", "properties": parts, "required": ["kind"]}, {"type": "null"}]}


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if not isinstance(body, dict) or not isinstance(own := body.get("reasonrt"), dict):
        return body
    options = own.get("options")
    known = [policy for policy, names in _OPTIONS.items() if isinstance(options, dict) and {*options} <= names]
    if known and options and random.random() < 0.9:
        body = body | {"model": random.choice(known), "reasonrt": own | {"policy": None}}
    return body

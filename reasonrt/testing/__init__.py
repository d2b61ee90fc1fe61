"""The contracts of `reasonrt.ports` and `reasonrt.routers`, for the tests of whoever adds an engine, policy or router.

```python
async def test_my_policy_keeps_the_contract() -> None:
    await check_policy(MyPolicy, {"level": 2})
```
Each check tries every rule and raises one `ContractError` that names those that are broken. Nothing here needs pytest.
"""

from reasonrt.testing.contract import ContractError
from reasonrt.testing.engines import ENGINE_RULES, EngineCase, check_engine
from reasonrt.testing.policies import check_policy
from reasonrt.testing.routers import check_router

__all__ = ["ENGINE_RULES", "ContractError", "EngineCase", "check_engine", "check_policy", "check_router"]

"""What a command of an execution gets: parameters, constants and secrets, as variables and in templates.

Owns the names `CPP_`, `CPC_`, `CPS_` and what may stand in a template. Secrets are not among the
templates' contents. Must not know where a command runs.
"""

from __future__ import annotations

from ctrl_exec.common.value import field, value
from ctrl_exec.tasks.parameters import as_text, secret_names
from ctrl_exec.tasks.templates import render_argument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctrl_exec.tasks.models import Execution, Task
    from ctrl_exec.tasks.store import Store


@value
class Materials:
    """`contents` by name for templates; `may_dash` are those that may make an argument begin with `-`.

    `variables` go into the environment of a local command; `secrets` by name are what a script on an
    agent gets, and what is masked.
    """

    contents: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    may_dash: frozenset[str] = frozenset()

    def arguments(self, args: tuple[str, ...]) -> tuple[str, ...]:
        """The arguments with their templates replaced. Raises: InvalidInputError."""
        return tuple(render_argument(each, self.contents, self.may_dash) for each in args)


def gather(
    task: Task,
    execution: Execution,
    *,
    constants: Mapping[str, str],
    project_secrets: Mapping[str, str],
    secret_parameters: Mapping[str, str],
) -> Materials:
    """All of it. A parameter hides a constant of its name."""
    hidden = secret_names(task.parameters)
    shown = {name: as_text(each) for name, each in execution.parameter_map.items() if name not in hidden}
    variables = {f"CPC_{name}": each for name, each in constants.items()}
    variables |= {f"CPP_{name}": each for name, each in shown.items()}
    variables |= {f"CPS_{name}": each for name, each in project_secrets.items()}
    variables |= {f"CPP_{name}": each for name, each in secret_parameters.items()}
    return Materials(
        contents={**constants, **shown},
        variables=variables,
        secrets={**project_secrets, **secret_parameters},
        may_dash=frozenset(
            each.name for each in task.parameters if each.allows_leading_dash or each.type == "INTEGER"
        ),
    )


def constants_of(store: Store, project_id: str) -> dict[str, str]:
    """The constants of a project by name."""
    rows = store.rows("SELECT name, content FROM constants WHERE project_id = ?", (project_id,))
    return {row["name"]: row["content"] for row in rows}
